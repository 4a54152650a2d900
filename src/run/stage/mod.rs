//! The stages of a run, one file each.

pub(super) mod apply;
pub(super) mod clean;
pub(super) mod confirm;
pub(super) mod converge;
mod drain;
pub(super) mod preflight;
pub(super) mod prepare;
pub(super) mod rehearse;
pub(super) mod settle;
pub(super) mod snapshot;
pub(super) mod switch;
pub(super) mod upgrade;
pub(super) mod verify;

use std::time::Duration;

use crate::error::Result;
use crate::plan::leftovers::CleanupScope;
use crate::plan::playbook;
use crate::run::execution::Execution;
use crate::run::preview::{Previewed, Previewer};
use crate::state::stage::RunStage;

/// One stage of a run. What undoes it stands beside it as `undo`: [`super::undo`] has their order, and
/// needs nothing but the journal.
pub(super) trait Stage {
    /// Its name.
    fn name(&self) -> RunStage;

    /// How long it may take, beyond a margin that every stage has.
    fn timeout(&self) -> Duration {
        Duration::ZERO
    }

    /// What it would do to a node; nothing is changed.
    fn preview(&self, previewer: &Previewer<'_>) -> Previewed;

    /// Does it; each change is journaled. The stages up to the rehearsal change nothing, and are done
    /// before the run has a journal.
    ///
    /// # Errors
    /// What failed. The engine undoes the run then.
    fn run(&self, _execution: &mut Execution<'_>) -> Result<()> {
        Ok(())
    }
}

/// The stage that a playbook names, with its options.
pub(super) fn of(stage: playbook::Stage) -> Box<dyn Stage> {
    match stage {
        playbook::Stage::Preflight(options) => Box::new(options),
        playbook::Stage::Snapshot {} => Box::new(snapshot::TakeSnapshot),
        playbook::Stage::Rehearse {} => Box::new(rehearse::RehearseCleanup),
        playbook::Stage::Prepare(options) => Box::new(options),
        playbook::Stage::Switch(options) => Box::new(options),
        playbook::Stage::Upgrade(options) => Box::new(options),
        playbook::Stage::Converge(options) => Box::new(options),
        playbook::Stage::Clean(options) => Box::new(clean::RemoveLeftovers {
            scope: CleanupScope::of_owner(&options.leftovers_of),
            drain: options.drain,
        }),
        playbook::Stage::Verify(options) => Box::new(options),
        playbook::Stage::Settle(options) => Box::new(options),
        playbook::Stage::Confirm(options) => Box::new(options),
    }
}
