//! The journal of a run: JSON lines, to which a run only appends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::chain::JournalChain;
use super::disk;
use super::run::{JournalEnd, RUN};
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::runtime::Caller;

/// The name of the journal in a run's folder.
pub const JOURNAL: &str = "journal.jsonl";

/// The version of the line format. A journal with lines of a later version is refused.
const VERSION: u32 = 1;

/// What a journal line says about a change or about the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// The change is about to be made. Written before the change.
    Intent,
    /// The change was made. Written after the change.
    Done,
    /// The change failed. The payload has the cause.
    Failed,
    /// The change was made earlier, and has been undone.
    Undone,
    /// The run's deadline was moved; no change was made.
    Extended,
    /// The operator confirmed the run; no change was made.
    Confirmed,
}

/// The content of a new journal line, to which the journal adds the line number, the time and the
/// boot.
#[derive(Debug, Clone, PartialEq)]
pub struct Record<P> {
    /// The name of the stage that writes the line.
    pub stage: String,
    /// The index of the step in its stage. The intent and the outcome of a step have the same
    /// index.
    pub step: u32,
    /// Whether the change is intended, done, failed or undone, or what happened to the run as a
    /// whole.
    pub kind: Mark,
    /// The details that belong to `kind`, such as the change or the cause of a failure.
    pub payload: P,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry<P> {
    /// The version of the line's format.
    pub v: u32,
    /// The line's number, from 1; no number is left out.
    pub seq: u64,
    /// When the line was written: `2026-11-21T20:15:02Z`.
    pub at: String,
    /// The kernel's identifier of the boot in which the line was written.
    pub boot_id: String,
    /// The nanoseconds from that boot until the line was written.
    pub boottime_ns: u64,
    /// The name of the stage that wrote the line.
    pub stage: String,
    /// The index of the step in its stage.
    pub step: u32,
    /// Whether the change is intended, done, failed or undone, or what happened to the run as a
    /// whole.
    pub kind: Mark,
    /// In the first line: who began the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Caller>,
    /// The details that belong to `kind`, such as the change or the cause of a failure.
    pub payload: P,
}

/// The journal of a run, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// The offset in the file at which the next line begins.
    end: u64,
    /// The number of the next line, from 1.
    next: u64,
    /// The checksum of the last line.
    chain: JournalChain,
}

impl Journal {
    /// Creates the journal of the run in `dir`, and reserves `reserve` bytes of space for it, so
    /// that a full disk stops neither the run nor its rollback.
    ///
    /// # Errors
    /// [`Kind::Store`] if the disk lacks the space, or if the file system cannot reserve any.
    pub fn create(dir: &Path, reserve: u64) -> Result<Journal> {
        let path = dir.join(JOURNAL);
        let file = disk::create_new(&path)?;
        disk::reserve(&file, &path, reserve)?;
        file.sync_all().map_err(|e| Error::io(&path, &e))?;
        disk::sync_dir(dir)?;
        Ok(Journal { path, file, end: 0, next: 1, chain: JournalChain::of_run(dir) })
    }

    /// Opens the journal of the run in `dir` to continue it, and returns the lines that it has.
    ///
    /// # Errors
    /// As [`read`].
    pub fn open<P: DeserializeOwned>(dir: &Path) -> Result<(Journal, Vec<JournalEntry<P>>)> {
        let path = dir.join(JOURNAL);
        let Parsed { entries, end, chain } = parse_file(dir)?;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(|e| Error::io(&path, &e))?;
        let next = entries.len() as u64 + 1;
        Ok((Journal { path, file, end: end as u64, next, chain }, entries))
    }

    /// Appends one line, and syncs it.
    ///
    /// # Errors
    /// [`Kind::Store`] on a full disk, once the reserved space is used up. What was written of the
    /// line is overwritten by the next line.
    pub fn append<P: Serialize>(&mut self, record: Record<P>) -> Result<JournalEntry<P>> {
        let entry = JournalEntry {
            v: VERSION,
            seq: self.next,
            at: clock::now(),
            boot_id: clock::boot_id(),
            boottime_ns: u64::try_from(clock::boottime().as_nanos()).unwrap_or(u64::MAX),
            stage: record.stage,
            step: record.step,
            kind: record.kind,
            by: (self.next == 1).then(Caller::here),
            payload: record.payload,
        };
        crash_point(CrashTime::Before, &entry);
        self.write(&entry)?;
        crash_point(CrashTime::After, &entry);
        Ok(entry)
    }

    fn write<P: Serialize>(&mut self, entry: &JournalEntry<P>) -> Result<()> {
        let io = |e: io::Error| Error::io(&self.path, &e);
        let length = self.file.metadata().map_err(io)?.len();
        // The line is written in pieces, because a change may be as large as the node's state.
        let mut line = BufWriter::with_capacity(1 << 16, At { file: &self.file, end: self.end });
        let mut hashing = self.chain.hashing(&mut line);
        serde_json::to_writer(&mut hashing, entry).map_err(|e| io(e.into()))?;
        let sum = hashing.sum();
        line.flush().map_err(io)?;
        // The checksum takes the place of the last brace.
        line.get_mut().end -= 1;
        let mut chain = self.chain.clone();
        line.write_all(chain.advance(sum).as_bytes()).and_then(|()| line.flush()).map_err(io)?;
        // A torn line is overwritten and not truncated, because truncating would give up the
        // reserved space. The rest of the torn line is overwritten with spaces, which mean nothing
        // at the end of a JSON line.
        let covered = line.get_ref().end + 1;
        let torn = usize::try_from(length.saturating_sub(covered)).unwrap_or(0);
        line.write_all(&b" ".repeat(torn)).map_err(io)?;
        line.write_all(b"\n").and_then(|()| line.flush()).map_err(io)?;
        self.file.sync_data().map_err(io)?;
        let end = line.get_ref().end;
        drop(line);
        self.end = end;
        self.next += 1;
        self.chain = chain;
        Ok(())
    }
}

/// Writes to a file from the offset `end` on, which moves with each write.
struct At<'a> {
    file: &'a File,
    end: u64,
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.end)?;
        self.end += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the journal of the run in `dir`. A last line that is torn counts as never written.
///
/// # Errors
/// [`Kind::Store`] for lines that are damaged, missing, in another order, or of a later version.
pub fn read<P: DeserializeOwned>(dir: &Path) -> Result<Vec<JournalEntry<P>>> {
    Ok(parse_file(dir)?.entries)
}

/// The content of a journal.
struct Parsed<P> {
    entries: Vec<JournalEntry<P>>,
    /// The offset at which the next line begins.
    end: usize,
    chain: JournalChain,
}

/// What `run.json` says about the journal beside it.
#[derive(Default, Deserialize)]
struct KnownJournal {
    boot_id: Option<String>,
    journal: Option<JournalEnd>,
}

fn parse_file<P: DeserializeOwned>(dir: &Path) -> Result<Parsed<P>> {
    let path = dir.join(JOURNAL);
    // Whoever asks for this journal has read the run before. The end that it names is read first,
    // because the journal may grow meanwhile.
    let run = disk::read_file(&dir.join(RUN)).unwrap_or_default();
    let known: KnownJournal = serde_json::from_slice(&run).unwrap_or_default();
    let bytes = fs::read(&path).map_err(|e| Error::io(&path, &e))?;
    let rebooted = known.boot_id.is_some_and(|id| id != clock::boot_id());
    parse(&bytes, JournalChain::of_run(dir), known.journal.as_ref(), rebooted).map_err(|cause| {
        Error::new(Kind::Store, path.display().to_string(), cause).hint(
            "nothing is done automatically with this run: keep its folder, and restore by hand \
             with the snapshot's restore.sh if need be",
        )
    })
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
        is_known |= known.is_some_and(|known| known.bytes == end as u64 && chain.is_at(known));
    }
    if is_known {
        return Ok(Parsed { entries, end, chain });
    }
    Err(format!("lines after line {} are missing, which run.json knows of", entries.len()))
}

/// Whether a test's crash happens before or after a journal line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CrashTime {
    /// Crash before the line is written.
    Before,
    /// Crash after the line is written.
    After,
}

/// Kills this process at a journal line, so that tests can crash a run anywhere. Does so only in
/// debug builds, and only if the environment has `PROXYSHIFT_CRASH=before|after:<line>`. `<line>`
/// is the line's number, or a stage and a mark, whose first line is meant: `after:switch:intent`.
/// [`Journal::append`] calls this function before and after each line.
fn crash_point<P>(when: CrashTime, entry: &JournalEntry<P>) {
    if !cfg!(debug_assertions) {
        return;
    }
    let Ok(requested) = std::env::var("PROXYSHIFT_CRASH") else { return };
    let when = if when == CrashTime::Before { "before" } else { "after" };
    let mark = format!("{:?}", entry.kind).to_lowercase();
    if requested == format!("{when}:{}", entry.seq)
        || requested == format!("{when}:{}:{mark}", entry.stage)
    {
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::store::Store;
    use crate::store::run::{Run, RunKind};

    fn record(step: u32) -> Record<Value> {
        let payload = serde_json::json!({"step": step});
        Record { stage: "clean".into(), step, kind: Mark::Intent, payload }
    }

    /// A run with a journal of this many lines, and the folder of the run.
    fn journal_of(lines: u32) -> (tempfile::TempDir, std::path::PathBuf, Run) {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(Some(&tmp.path().join("store"))).unwrap();
        let run = store.start(RunKind::Fix { checks: Vec::new() }, "s").unwrap();
        let dir = store.run_dir(&run.id);
        let mut journal = Journal::create(&dir, 64 * 1024).unwrap();
        for step in 0..lines {
            journal.append(record(step)).unwrap();
        }
        (tmp, dir, run)
    }

    fn text(dir: &Path) -> String {
        fs::read_to_string(dir.join(JOURNAL)).unwrap()
    }

    #[test]
    fn a_journal_reads_back_and_continues() {
        let (_tmp, dir, _) = journal_of(2);
        let (mut journal, entries) = Journal::open::<Value>(&dir).unwrap();
        assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2]);
        assert!(entries[0].boottime_ns <= entries[1].boottime_ns);
        assert_eq!(entries[1].payload["step"], 1);
        let third = journal.append(record(7)).unwrap();
        assert_eq!((third.seq, third.step), (3, 7));
        assert_eq!(read::<Value>(&dir).unwrap()[2], third);
        assert_eq!(Journal::create(&dir, 1).unwrap_err().kind, Kind::Unexpected);
    }

    #[test]
    fn a_torn_last_line_does_not_count_wherever_it_is_torn() {
        let (_tmp, dir, _) = journal_of(2);
        let whole = text(&dir);
        let first = whole.find('\n').unwrap() + 1;
        for cut in first + 1..whole.len() {
            fs::write(dir.join(JOURNAL), &whole[..cut]).unwrap();
            let (mut journal, entries) = Journal::open::<Value>(&dir).unwrap();
            assert_eq!(entries.len(), 1, "cut at {cut}");
            journal.append(record(9)).unwrap();
            journal.append(record(10)).unwrap();
            let steps: Vec<u32> = read::<Value>(&dir).unwrap().iter().map(|e| e.step).collect();
            assert_eq!(steps, [0, 9, 10], "cut at {cut}");
        }
    }

    #[test]
    fn a_broken_last_line_is_torn_only_after_a_reboot_and_then_covered() {
        let (tmp, dir, run) = journal_of(1);
        let torn = format!("{}{{{}\n", text(&dir), "x".repeat(5000));
        fs::write(dir.join(JOURNAL), torn).unwrap();
        assert!(read::<Value>(&dir).unwrap_err().cause.contains("line 2 is broken"));
        let store = Store::open(Some(&tmp.path().join("store"))).unwrap();
        store.update(&Run { boot_id: "earlier".into(), ..run }).unwrap();
        let (mut journal, entries) = Journal::open::<Value>(&dir).unwrap();
        assert_eq!(entries.len(), 1);
        journal.append(record(1)).unwrap();
        assert_eq!(read::<Value>(&dir).unwrap().len(), 2);
        assert!(!text(&dir).contains("xx"));
    }

    #[test]
    fn a_gap_a_newer_line_or_garbage_in_the_middle_refuses() {
        let (_tmp, dir, _) = journal_of(3);
        let whole = text(&dir);
        let lines: Vec<&str> = whole.lines().collect();
        let cause = |lines: &[&str]| {
            fs::write(dir.join(JOURNAL), lines.join("\n") + "\n").unwrap();
            let error = read::<Value>(&dir).unwrap_err();
            assert_eq!(error.kind, Kind::Store);
            error.cause
        };
        assert!(cause(&[lines[0], lines[2]]).contains("line 2 has the number 3"));
        assert!(cause(&[lines[0], lines[0]]).contains("line 2 has the number 1"));
        assert!(cause(&[lines[0], "garbage", lines[1]]).contains("line 2 is broken"));
        let newer = lines[2].replace("\"v\":1", "\"v\":2").replace("intent", "unheard-of");
        assert!(cause(&[lines[0], lines[1], &newer]).contains("newer proxyshift"));
        let other = lines[1].replace("\"step\":1", "\"step\":2");
        assert!(cause(&[lines[0], &other]).contains("line 2 is damaged"));
    }

    #[test]
    fn lines_that_the_run_knows_of_must_be_there() {
        let (tmp, dir, run) = journal_of(3);
        let store = Store::open(Some(&tmp.path().join("store"))).unwrap();
        store.update(&run).unwrap();
        let run = store.run(&run.id).unwrap().unwrap();
        let whole = text(&dir);
        assert_eq!(run.journal.as_ref().map(|end| end.bytes), Some(whole.len() as u64));
        read::<Value>(&dir).unwrap();
        let cut = whole.find('\n').unwrap() + 1;
        fs::write(dir.join(JOURNAL), &whole[..cut]).unwrap();
        assert!(read::<Value>(&dir).unwrap_err().cause.contains("after line 1 are missing"));
        // Writing the run again forgets nothing.
        store.update(&run).unwrap();
        assert_eq!(store.run(&run.id).unwrap().unwrap(), run);
    }
}
