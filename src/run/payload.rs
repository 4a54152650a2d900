//! The content of journal lines, and how a journal is read back.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::plan::change::{Change, Edit, Irreversible};
use crate::state::stage::RunStage;
use crate::store::journal::{Journal, JournalEntry, Mark, Record};

/// The content of a journal line besides its mark. A line that says what is intended holds the
/// change; a line about a failure holds the error. The content is parsed straight into this type,
/// because parsing a large edit as general JSON takes several times the memory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Payload<E = Edit> {
    /// The change that is about to begin, or an irreversible change that is done.
    Change(Change<E>),
    /// Why a change failed.
    Error(Error),
    /// The operator extended the deadline to confirm the run.
    Extended {
        /// The extension, in seconds.
        seconds: u64,
    },
}

/// One line of a run's journal.
pub type JournalLine = JournalEntry<Option<Payload>>;

/// The stage of a step, and the step's number in that stage. The journal line that says what is
/// intended and the line with the outcome have the same reference, so that the two lines can be
/// matched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRef {
    stage: String,
    number: u32,
}

impl StepRef {
    /// The step with the given number in the stage called `stage`.
    pub fn new(stage: &str, number: u32) -> StepRef {
        StepRef { stage: stage.to_owned(), number }
    }

    fn of(line: &JournalLine) -> StepRef {
        StepRef::new(&line.stage, line.step)
    }

    /// Journals that `change` is about to be made.
    pub fn begin<E: Serialize>(&self, journal: &mut Journal, change: Change<E>) -> Result<()> {
        self.append(journal, Mark::Intent, Some(Payload::Change(change)))
    }

    /// Journals that the change of this step was made. The line does not repeat the change.
    pub fn mark_done(&self, journal: &mut Journal) -> Result<()> {
        self.append::<Edit>(journal, Mark::Done, None)
    }

    /// Journals that the change of this step, which undoes an earlier change, was made.
    pub fn mark_undone(&self, journal: &mut Journal) -> Result<()> {
        self.append::<Edit>(journal, Mark::Undone, None)
    }

    /// Journals why the change of this step failed.
    pub fn mark_failed(&self, journal: &mut Journal, error: &Error) -> Result<()> {
        self.append::<Edit>(journal, Mark::Failed, Some(Payload::Error(error.clone())))
    }

    /// Journals a change after it was made, because its extent is known only then.
    pub fn note(&self, journal: &mut Journal, change: Irreversible) -> Result<()> {
        let payload = Payload::<Edit>::Change(Change::Irreversible(change));
        self.append(journal, Mark::Done, Some(payload))
    }

    /// Appends a line about this step to the journal.
    pub fn append<E: Serialize>(
        &self,
        journal: &mut Journal,
        kind: Mark,
        payload: Option<Payload<E>>,
    ) -> Result<()> {
        let stage = self.stage.clone();
        journal.append(Record { stage, step: self.number, kind, payload }).map(drop)
    }
}

/// The changes of a run, as its journal lists them.
#[derive(Debug, Default)]
pub struct Replay {
    /// Edits that were made, in order.
    pub done: Vec<Edit>,
    /// An edit that was begun and not finished: whether it was made is not known.
    pub open: Option<(Edit, StepRef)>,
    /// Edits that failed otherwise than by a lost race. Such an edit may have been made, as when the
    /// table could not be read again; nothing writes it any more.
    pub failed: Vec<Edit>,
    /// All changes that were begun and are not edits, in order.
    pub begun: Vec<Change>,
    /// True once the run began to be undone.
    pub rolling_back: bool,
}

impl Replay {
    /// Moves the edits out; the other changes stay.
    pub fn take_edits(&mut self) -> Replay {
        Replay {
            done: std::mem::take(&mut self.done),
            open: self.open.take(),
            failed: std::mem::take(&mut self.failed),
            begun: Vec::new(),
            rolling_back: self.rolling_back,
        }
    }

    /// Whether a hook with this command was begun.
    pub fn has_begun_hook(&self, command: &str) -> bool {
        let hook = |change: &Change| match change {
            Change::Irreversible(Irreversible::Hook { command: begun }) => begun == command,
            _ => false,
        };
        self.begun.iter().any(hook)
    }
}

/// Reads the changes of a run from the lines of its journal.
///
/// # Errors
/// [`Kind::Store`] when a line says that a change is intended and does not name the change.
pub fn replay(lines: Vec<JournalLine>) -> Result<Replay> {
    let mut replay = Replay::default();
    for line in lines {
        if line.stage == RunStage::Rollback.name() {
            // A rollback leaves an open edit open, because the edit may be in the kernel. The next
            // rollback finds out whether it is.
            replay.rolling_back = true;
            continue;
        }
        let step = StepRef::of(&line);
        let is_open = replay.open.as_ref().is_some_and(|(_, open)| *open == step);
        match (line.kind, line.payload) {
            (Mark::Intent, Some(Payload::Change(Change::Objects(edit)))) => {
                replay.open = Some((edit, step));
            }
            (Mark::Intent, Some(Payload::Change(change))) => replay.begun.push(change),
            (Mark::Intent, _) => {
                let entry = format!("journal entry {}", line.seq);
                return Err(Error::new(Kind::Store, entry, "holds no change"));
            }
            (Mark::Done, _) if is_open => replay.done.extend(replay.open.take().map(|(e, _)| e)),
            (Mark::Failed, Some(Payload::Error(e))) if is_open && e.kind != Kind::LostRace => {
                replay.failed.extend(replay.open.take().map(|(edit, _)| edit));
            }
            (Mark::Failed | Mark::Undone, _) if is_open => replay.open = None,
            _ => {}
        }
    }
    Ok(replay)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::plan::change::{Direction, LinkSpec, Target};
    use crate::store::journal::read;
    use crate::store::run_folder::RunFolder;

    fn folder(tmp: &tempfile::TempDir) -> RunFolder {
        RunFolder::new(tmp.path().to_owned(), None)
    }

    fn edit(name: &str) -> Edit {
        let link =
            LinkSpec { name: name.into(), kind: "dummy".into(), addresses: Vec::new(), up: true };
        Edit { direction: Direction::Remove, target: Target::Link(link) }
    }

    #[test]
    fn a_journal_says_what_was_done_what_is_open_and_what_else_was_begun() {
        let tmp = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(&folder(&tmp), 64 * 1024).unwrap();
        let replayed = || replay(read(&folder(&tmp)).unwrap()).unwrap();
        let hook = || Irreversible::Hook { command: "drain it".into() };
        StepRef::new("hook", 1).begin::<Edit>(&mut journal, Change::Irreversible(hook())).unwrap();
        let [first, second] = [1, 2].map(|number| StepRef::new(RunStage::CLEAN.name(), number));
        first.begin(&mut journal, Change::Objects(&edit("a"))).unwrap();
        first.mark_done(&mut journal).unwrap();
        second.begin(&mut journal, Change::Objects(&edit("b"))).unwrap();
        // A line of the stage `settle` must not close the open step of this stage.
        let cleared = Irreversible::Conntrack { cleared: 3 };
        StepRef::new("settle", 1).note(&mut journal, cleared).unwrap();
        let found = replayed();
        assert_eq!((found.done, found.rolling_back), (vec![edit("a")], false));
        assert_eq!(found.open, Some((edit("b"), second.clone())));
        assert_eq!(found.begun, [Change::Irreversible(hook())]);

        StepRef::new(RunStage::Rollback.name(), 1)
            .begin(&mut journal, Change::Objects(&edit("c")))
            .unwrap();
        assert!(replayed().rolling_back && replayed().open.is_some());
        let unread = Error::new(Kind::Command, "iptables-nft-save", "signal: 9");
        second.mark_failed(&mut journal, &unread).unwrap();
        assert_eq!((replayed().open, replayed().failed), (None, vec![edit("b")]));
        let third = StepRef::new(RunStage::CLEAN.name(), 3);
        third.begin(&mut journal, Change::Objects(&edit("d"))).unwrap();
        let lost = Error::new(Kind::LostRace, "b", "is gone");
        third.mark_failed(&mut journal, &lost).unwrap();
        assert_eq!((replayed().done, replayed().open), (vec![edit("a")], None));
        assert_eq!(replayed().failed, [edit("b")]);
        assert!(replayed().has_begun_hook("drain it") && !replayed().has_begun_hook("drain"));
    }

    #[test]
    fn an_intent_of_nothing_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(&folder(&tmp), 64 * 1024).unwrap();
        StepRef::new(RunStage::CLEAN.name(), 1)
            .append::<Edit>(&mut journal, Mark::Intent, None)
            .unwrap();
        let error = replay(read(&folder(&tmp)).unwrap()).unwrap_err();
        assert_eq!((error.kind, error.object.as_str()), (Kind::Store, "journal entry 1"));
    }
}
