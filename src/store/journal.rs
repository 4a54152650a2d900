//! The journal of a run: JSON lines, to which a run only appends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::disk;
use crate::clock;
use crate::error::{Error, Kind, Result};

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
        Ok(Journal { path, file, end: 0, next: 1 })
    }

    /// Opens the journal of the run in `dir` to continue it, and returns the lines that it has.
    ///
    /// # Errors
    /// As [`read`].
    pub fn open<P: DeserializeOwned>(dir: &Path) -> Result<(Journal, Vec<JournalEntry<P>>)> {
        let path = dir.join(JOURNAL);
        let (entries, end) = parse_file(&path)?;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(|e| Error::io(&path, &e))?;
        let next = entries.len() as u64 + 1;
        Ok((Journal { path, file, end: end as u64, next }, entries))
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
        serde_json::to_writer(&mut line, entry).map_err(|e| io(e.into()))?;
        line.flush().map_err(io)?;
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
/// [`Kind::Store`] for missing lines, broken lines before the last one, or lines of a later
/// version.
pub fn read<P: DeserializeOwned>(dir: &Path) -> Result<Vec<JournalEntry<P>>> {
    Ok(parse_file(&dir.join(JOURNAL))?.0)
}

fn parse_file<P: DeserializeOwned>(path: &Path) -> Result<(Vec<JournalEntry<P>>, usize)> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, &e))?;
    parse(&bytes).map_err(|cause| {
        Error::new(Kind::Store, path.display().to_string(), cause).hint(
            "nothing is done automatically with this run: keep its folder, and restore by hand \
             with the snapshot's restore.sh if need be",
        )
    })
}

/// The lines of a journal, and the offset at which the next line begins.
fn parse<P: DeserializeOwned>(
    bytes: &[u8],
) -> std::result::Result<(Vec<JournalEntry<P>>, usize), String> {
    #[derive(Deserialize)]
    struct JournalHeader {
        v: u32,
    }
    let mut entries: Vec<JournalEntry<P>> = Vec::new();
    let mut end = 0;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let number = entries.len() as u64 + 1;
        let is_last = end + line.len() == bytes.len();
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
        match entry {
            // A line without its newline was not written completely, even if it parses.
            Ok(_) if is_last && !line.ends_with(b"\n") => break,
            Ok(entry) if entry.seq == number => entries.push(entry),
            Ok(entry) => return Err(format!("line {number} has the number {}", entry.seq)),
            Err(_) if is_last => break,
            Err(e) => return Err(format!("line {number} is broken: {e}")),
        }
        end += line.len();
    }
    Ok((entries, end))
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

    fn record(step: u32) -> Record<Value> {
        let payload = serde_json::json!({"step": step});
        Record { stage: "clean".into(), step, kind: Mark::Intent, payload }
    }

    fn journal_of(lines: u32) -> (tempfile::TempDir, Journal) {
        let tmp = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(tmp.path(), 64 * 1024).unwrap();
        for step in 0..lines {
            journal.append(record(step)).unwrap();
        }
        (tmp, journal)
    }

    fn text(dir: &Path) -> String {
        fs::read_to_string(dir.join(JOURNAL)).unwrap()
    }

    #[test]
    fn a_journal_reads_back_and_continues() {
        let (tmp, _) = journal_of(2);
        let (mut journal, entries) = Journal::open::<Value>(tmp.path()).unwrap();
        assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2]);
        assert!(entries[0].boottime_ns <= entries[1].boottime_ns);
        assert_eq!(entries[1].payload["step"], 1);
        let third = journal.append(record(7)).unwrap();
        assert_eq!((third.seq, third.step), (3, 7));
        assert_eq!(read::<Value>(tmp.path()).unwrap()[2], third);
        assert_eq!(Journal::create(tmp.path(), 1).unwrap_err().kind, Kind::Unexpected);
    }

    #[test]
    fn a_torn_last_line_does_not_count_wherever_it_is_torn() {
        let (tmp, _) = journal_of(2);
        let whole = text(tmp.path());
        let first = whole.find('\n').unwrap() + 1;
        for cut in first + 1..whole.len() {
            fs::write(tmp.path().join(JOURNAL), &whole[..cut]).unwrap();
            let (mut journal, entries) = Journal::open::<Value>(tmp.path()).unwrap();
            assert_eq!(entries.len(), 1, "cut at {cut}");
            journal.append(record(9)).unwrap();
            journal.append(record(10)).unwrap();
            let steps: Vec<u32> =
                read::<Value>(tmp.path()).unwrap().iter().map(|e| e.step).collect();
            assert_eq!(steps, [0, 9, 10], "cut at {cut}");
        }
    }

    #[test]
    fn a_broken_last_line_longer_than_the_next_is_covered() {
        let (tmp, _) = journal_of(1);
        let torn = format!("{}{{{}\n", text(tmp.path()), "x".repeat(5000));
        fs::write(tmp.path().join(JOURNAL), torn).unwrap();
        let (mut journal, entries) = Journal::open::<Value>(tmp.path()).unwrap();
        assert_eq!(entries.len(), 1);
        journal.append(record(1)).unwrap();
        assert_eq!(read::<Value>(tmp.path()).unwrap().len(), 2);
        assert!(!text(tmp.path()).contains("xx"));
    }

    #[test]
    fn a_gap_a_newer_line_or_garbage_in_the_middle_refuses() {
        let (tmp, _) = journal_of(3);
        let whole = text(tmp.path());
        let lines: Vec<&str> = whole.lines().collect();
        let cause = |lines: &[&str]| {
            fs::write(tmp.path().join(JOURNAL), lines.join("\n") + "\n").unwrap();
            let error = read::<Value>(tmp.path()).unwrap_err();
            assert_eq!(error.kind, Kind::Store);
            error.cause
        };
        assert!(cause(&[lines[0], lines[2]]).contains("line 2 has the number 3"));
        assert!(cause(&[lines[0], lines[0]]).contains("line 2 has the number 1"));
        assert!(cause(&[lines[0], "garbage", lines[1]]).contains("line 2 is broken"));
        let newer = lines[2].replace("\"v\":1", "\"v\":2").replace("intent", "unheard-of");
        assert!(cause(&[lines[0], lines[1], &newer]).contains("newer proxyshift"));
    }
}
