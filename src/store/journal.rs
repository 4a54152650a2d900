//! The journal of a run: JSON lines, to which a run only appends.

mod file;
mod read;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::file::JournalFile;
use self::read::{Newest, Parsed, newest};
use super::chain::JournalChain;
use super::disk;
use super::run_folder::RunFolder;
use crate::clock;
use crate::error::{Error, Result};
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

/// The journal of a run, open for appending: a file on the disk and, while the run is pending, its
/// copy in memory. Each line is written to the disk first.
#[derive(Debug)]
pub struct Journal {
    /// None once it could not be written.
    disk: Option<JournalFile>,
    /// None without a copy, or once that could not be written.
    memory: Option<JournalFile>,
    /// Why the disk was given up.
    failure: Option<Error>,
    /// Whether a line may be lost rather than stop its writer.
    undoes: bool,
    /// The number of the next line, from 1.
    next: u64,
    /// The checksum of the last line.
    chain: JournalChain,
}

impl Journal {
    /// Creates the journal of the run in `folder`, and reserves `reserve` bytes of space on the
    /// disk, so that a full disk stops neither the run nor its rollback. Nothing is reserved in
    /// memory, which is scarcer.
    ///
    /// # Errors
    /// [`Kind::Store`](crate::error::Kind::Store) if the disk lacks the space, or if the file system
    /// cannot reserve any.
    pub fn create(folder: &RunFolder, reserve: u64) -> Result<Journal> {
        let disk = JournalFile::create(&folder.disk().join(JOURNAL), reserve)?;
        disk::sync_dir(folder.disk())?;
        let memory = folder.memory().map(|dir| JournalFile::create(&dir.join(JOURNAL), 0));
        Ok(Journal {
            disk: Some(disk),
            memory: memory.and_then(Result::ok),
            failure: None,
            undoes: false,
            next: 1,
            chain: JournalChain::of_run(folder.disk()),
        })
    }

    /// Opens the journal of the run in `folder` to continue it, and returns the lines that it has.
    /// A disk that cannot be written fails only the next line.
    ///
    /// # Errors
    /// As [`read`].
    pub fn open<P: DeserializeOwned>(
        folder: &RunFolder,
    ) -> Result<(Journal, Vec<JournalEntry<P>>)> {
        let Newest { parsed: Parsed { entries, chain, .. }, lines } = newest(folder)?;
        let continued = |dir: &std::path::Path| JournalFile::continued(&dir.join(JOURNAL), &lines);
        let (disk, failure) = match continued(folder.disk()) {
            Ok(disk) => (Some(disk), None),
            Err(e) => (None, Some(e)),
        };
        let memory = folder.memory().and_then(|dir| continued(dir).ok());
        let next = entries.len() as u64 + 1;
        Ok((Journal { disk, memory, failure, undoes: false, next, chain }, entries))
    }

    /// From here on the run is undone: a line that cannot be written no longer stops its writer,
    /// because an undo finds out from the kernel what is left to do.
    pub fn undoes(&mut self) {
        self.undoes = true;
    }

    /// Why lines are missing on the disk; none if none are.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// Appends one line, and syncs it.
    ///
    /// # Errors
    /// [`Kind::Store`](crate::error::Kind::Store) on a full disk, once the reserved space is used up.
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
        let mut written = None;
        match self.disk.as_mut().map(|file| file.append(entry, &self.chain)) {
            Some(Ok(chain)) => written = Some(chain),
            Some(Err(e)) if !self.undoes => return Err(e),
            // A file that lacks a line gets no more.
            Some(Err(e)) => (self.disk, self.failure) = (None, Some(e)),
            None if self.undoes => {}
            None => return self.failure.clone().map_or(Ok(()), Err),
        }
        match self.memory.as_mut().map(|file| file.append(entry, &self.chain)) {
            Some(Ok(chain)) => written = Some(chain),
            Some(Err(_)) => self.memory = None,
            None => {}
        }
        self.next += 1;
        self.chain = written.unwrap_or_else(|| self.chain.clone());
        Ok(())
    }
}

/// Reads the journal of the run in `folder`. A last line that is torn counts as never written.
///
/// # Errors
/// [`Kind::Store`](crate::error::Kind::Store) for lines that are damaged, missing, in another order,
/// or of a later version.
pub fn read<P: DeserializeOwned>(folder: &RunFolder) -> Result<Vec<JournalEntry<P>>> {
    Ok(newest(folder)?.parsed.entries)
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
    let when = if when == CrashTime::Before { "before" } else { "after" };
    let mark = format!("{:?}", entry.kind).to_lowercase();
    crash_if_requested(&format!("{when}:{}", entry.seq));
    crash_if_requested(&format!("{when}:{}:{mark}", entry.stage));
}

/// Kills this process if a test has asked for that at this point. Does nothing in a release build.
pub fn crash_if_requested(point: &str) {
    if cfg!(debug_assertions) && std::env::var("PROXYSHIFT_CRASH").is_ok_and(|at| at == point) {
        let me = rustix::process::getpid();
        let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::error::Kind;
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
        let mut journal = Journal::create(&folder(&dir), 64 * 1024).unwrap();
        for step in 0..lines {
            journal.append(record(step)).unwrap();
        }
        (tmp, dir, run)
    }

    fn folder(dir: &Path) -> RunFolder {
        RunFolder::new(dir.to_owned(), None)
    }

    fn text(dir: &Path) -> String {
        fs::read_to_string(dir.join(JOURNAL)).unwrap()
    }

    #[test]
    fn a_journal_reads_back_and_continues() {
        let (_tmp, dir, _) = journal_of(2);
        let (mut journal, entries) = Journal::open::<Value>(&folder(&dir)).unwrap();
        assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2]);
        assert!(entries[0].boottime_ns <= entries[1].boottime_ns);
        assert_eq!(entries[1].payload["step"], 1);
        let third = journal.append(record(7)).unwrap();
        assert_eq!((third.seq, third.step), (3, 7));
        assert_eq!(read::<Value>(&folder(&dir)).unwrap()[2], third);
        assert_eq!(Journal::create(&folder(&dir), 1).unwrap_err().kind, Kind::Unexpected);
    }

    #[test]
    fn a_torn_last_line_does_not_count_wherever_it_is_torn() {
        let (_tmp, dir, _) = journal_of(2);
        let whole = text(&dir);
        let first = whole.find('\n').unwrap() + 1;
        for cut in first + 1..whole.len() {
            fs::write(dir.join(JOURNAL), &whole[..cut]).unwrap();
            let (mut journal, entries) = Journal::open::<Value>(&folder(&dir)).unwrap();
            assert_eq!(entries.len(), 1, "cut at {cut}");
            journal.append(record(9)).unwrap();
            journal.append(record(10)).unwrap();
            let steps: Vec<u32> =
                read::<Value>(&folder(&dir)).unwrap().iter().map(|e| e.step).collect();
            assert_eq!(steps, [0, 9, 10], "cut at {cut}");
        }
    }

    #[test]
    fn a_broken_last_line_is_torn_only_after_a_reboot_and_then_covered() {
        let (tmp, dir, run) = journal_of(1);
        let torn = format!("{}{{{}\n", text(&dir), "x".repeat(5000));
        fs::write(dir.join(JOURNAL), torn).unwrap();
        assert!(read::<Value>(&folder(&dir)).unwrap_err().cause.contains("line 2 is broken"));
        let store = Store::open(Some(&tmp.path().join("store"))).unwrap();
        store.update(&mut Run { boot_id: "earlier".into(), ..run }).unwrap();
        let (mut journal, entries) = Journal::open::<Value>(&folder(&dir)).unwrap();
        assert_eq!(entries.len(), 1);
        journal.append(record(1)).unwrap();
        assert_eq!(read::<Value>(&folder(&dir)).unwrap().len(), 2);
        assert!(!text(&dir).contains("xx"));
    }

    #[test]
    fn a_gap_a_newer_line_or_garbage_in_the_middle_refuses() {
        let (_tmp, dir, _) = journal_of(3);
        let whole = text(&dir);
        let lines: Vec<&str> = whole.lines().collect();
        let cause = |lines: &[&str]| {
            fs::write(dir.join(JOURNAL), lines.join("\n") + "\n").unwrap();
            let error = read::<Value>(&folder(&dir)).unwrap_err();
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
        let (tmp, dir, mut run) = journal_of(3);
        let store = Store::open(Some(&tmp.path().join("store"))).unwrap();
        store.update(&mut run).unwrap();
        let mut run = store.run(&run.id).unwrap().unwrap();
        let whole = text(&dir);
        assert_eq!(run.journal.as_ref().map(|end| end.bytes), Some(whole.len() as u64));
        read::<Value>(&folder(&dir)).unwrap();
        let cut = whole.find('\n').unwrap() + 1;
        fs::write(dir.join(JOURNAL), &whole[..cut]).unwrap();
        assert!(
            read::<Value>(&folder(&dir)).unwrap_err().cause.contains("after line 1 are missing")
        );
        // Writing the run again forgets nothing.
        store.update(&mut run).unwrap();
        assert_eq!(store.run(&run.id).unwrap().unwrap(), run);
    }
}
