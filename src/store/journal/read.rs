//! Reads a journal back: from the disk, or from its copy in memory.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{JOURNAL, JournalEntry, VERSION};
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::store::chain::{self, JournalChain};
use crate::store::disk;
use crate::store::run::{JournalEnd, RUN};
use crate::store::run_folder::RunFolder;

/// The content of a journal.
pub(super) struct Parsed<P> {
    pub(super) entries: Vec<JournalEntry<P>>,
    /// The offset at which the next line begins.
    pub(super) end: usize,
    pub(super) chain: JournalChain,
}

/// The content of a journal, from the file that has all of it.
pub(super) struct Newest<P> {
    pub(super) parsed: Parsed<P>,
    /// Its lines, as they are in that file.
    pub(super) lines: Vec<u8>,
}

/// Reads the file that has more lines, or, where that one is damaged, the other.
///
/// # Errors
/// As [`super::read`], about the file on the disk if both are damaged.
pub(super) fn newest<P: DeserializeOwned>(folder: &RunFolder) -> Result<Newest<P>> {
    let on_disk = || read_in(folder, folder.disk());
    let Some(memory) = folder.memory() else { return on_disk() };
    let in_memory = || read_in(folder, memory);
    // A line is written to the disk first, so the copy lacks lines if it could not be written.
    if is_behind(memory, folder.disk()) {
        on_disk().or_else(|e| in_memory().map_err(|_| e))
    } else {
        in_memory().or_else(|_: Error| on_disk())
    }
}

/// Whether the journal in the folder `one` lacks the last line of that in the folder `other`.
fn is_behind(one: &Path, other: &Path) -> bool {
    let Some(last) = chain::end_of(&other.join(JOURNAL)) else { return false };
    let lines = fs::read(one.join(JOURNAL)).unwrap_or_default();
    lines_after(&lines, &last).is_none()
}

/// The lines of a journal after the line at `end`; none if it has no such line.
pub(super) fn lines_after<'a>(journal: &'a [u8], end: &JournalEnd) -> Option<&'a [u8]> {
    let mut rest = journal;
    while let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = rest.split_at(length + 1);
        if chain::sum_of(line) == Some(end.sum.as_str()) {
            return Some(after);
        }
        rest = after;
    }
    None
}

/// What `run.json` says about the journal beside it.
#[derive(Default, Deserialize)]
struct KnownJournal {
    boot_id: Option<String>,
    journal: Option<JournalEnd>,
}

/// Reads the journal in `dir`, which is one of the two places of `folder`.
fn read_in<P: DeserializeOwned>(folder: &RunFolder, dir: &Path) -> Result<Newest<P>> {
    let path = dir.join(JOURNAL);
    // Whoever asks for this journal has read the run before. The end that it names is read first,
    // because the journal may grow meanwhile.
    let run = disk::read_file(&dir.join(RUN)).unwrap_or_default();
    let known: KnownJournal = serde_json::from_slice(&run).unwrap_or_default();
    let mut lines = fs::read(&path).map_err(|e| Error::io(&path, &e))?;
    let rebooted = known.boot_id.is_some_and(|id| id != clock::boot_id());
    let chain = JournalChain::of_run(folder.disk());
    let parsed = parse(&lines, chain, known.journal.as_ref(), rebooted).map_err(|cause| {
        Error::new(Kind::Store, path.display().to_string(), cause).hint(
            "nothing is done automatically with this run: keep its folder, and restore by hand \
             with the snapshot's restore.sh if need be",
        )
    })?;
    lines.truncate(parsed.end);
    Ok(Newest { parsed, lines })
}

/// Parses a journal that must have the line at the end `known`. After a crash of the machine,
/// `rebooted`, a last line may be broken although it has an end, because the disk writes in any
/// order.
fn parse<P: DeserializeOwned>(
    bytes: &[u8],
    mut chain: JournalChain,
    known: Option<&JournalEnd>,
    rebooted: bool,
) -> std::result::Result<Parsed<P>, String> {
    #[derive(Deserialize)]
    struct JournalHeader {
        v: u32,
    }
    let mut entries: Vec<JournalEntry<P>> = Vec::new();
    let mut end = 0;
    let mut is_known = known.is_none();
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let number = entries.len() as u64 + 1;
        let is_last = end + line.len() == bytes.len();
        // A line without its newline was not written completely, even if it parses.
        if is_last && !line.ends_with(b"\n") {
            break;
        }
        let entry = serde_json::from_slice::<JournalEntry<P>>(line);
        // A line may be as large as the node's state, so only a line that does not parse is parsed
        // a second time, to get its version.
        let v = match &entry {
            Ok(entry) => Some(entry.v),
            Err(_) => serde_json::from_slice(line).ok().map(|JournalHeader { v }| v),
        };
        if let Some(v) = v.filter(|v| *v > VERSION) {
            return Err(format!("line {number} was written by a newer proxyshift (version {v})"));
        }
        let entry = match entry {
            Err(_) if is_last && rebooted => break,
            Err(e) => return Err(format!("line {number} is broken: {e}")),
            Ok(entry) if entry.seq != number => {
                return Err(format!("line {number} has the number {}", entry.seq));
            }
            Ok(entry) => entry,
        };
        if !chain.follows(line) {
            if is_last && rebooted {
                break;
            }
            return Err(format!("line {number} is damaged: its checksum is wrong"));
        }
        entries.push(entry);
        end += line.len();
        is_known |= known.is_some_and(|known| chain.is_at(known));
    }
    if is_known {
        return Ok(Parsed { entries, end, chain });
    }
    Err(format!("lines after line {} are missing, which run.json knows of", entries.len()))
}
