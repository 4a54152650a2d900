//! The stage `snapshot`: takes the snapshot that a rollback restores, with the code of
//! [`crate::run::snapshot`].

use crate::error::Result;
use crate::plan::playbook::NoOptions;
use crate::run::execution::Execution;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::{Stage, Undo};
use crate::state::stage::{RunStage, StageName};

/// The stage changes nothing, so nothing undoes it.
pub(super) const UNDO: Option<Undo> = None;

/// The stage `snapshot`, which has no options.
pub(super) fn stage(_: NoOptions) -> Box<dyn Stage> {
    Box::new(TakeSnapshot)
}

/// The taking of the snapshot, as a stage of a playbook.
pub(in crate::run) struct TakeSnapshot;

impl Stage for TakeSnapshot {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Snapshot)
    }

    fn preview(&self, _: &Previewer<'_>) -> Previewed {
        Previewed::line("takes a snapshot, and proves that it restores in a private namespace")
    }

    fn run(&self, _: &mut Execution<'_>) -> Result<()> {
        // Nothing to do: the snapshot was taken before the run had a journal.
        Ok(())
    }
}
