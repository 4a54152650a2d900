//! The stage `snapshot`: what a rollback restores. [`crate::run::snapshot`] takes it.

use crate::error::Result;
use crate::plan::playbook::NoOptions;
use crate::run::execution::Execution;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::{Stage, Undo};
use crate::state::stage::{RunStage, StageName};

/// What undoes the stage.
pub(super) const UNDO: Option<Undo> = None;

/// The stage with these options.
pub(super) fn stage(_: NoOptions) -> Box<dyn Stage> {
    Box::new(TakeSnapshot)
}

/// Takes the snapshot.
pub(in crate::run) struct TakeSnapshot;

impl Stage for TakeSnapshot {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Snapshot)
    }

    fn preview(&self, _: &Previewer<'_>) -> Previewed {
        Previewed::line("takes a snapshot, and proves that it restores in a private namespace")
    }

    fn run(&self, _: &mut Execution<'_>) -> Result<()> {
        // Done before the run has a journal.
        Ok(())
    }
}
