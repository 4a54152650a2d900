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
use crate::run::execution::{Execution, UndoContext};
use crate::run::preview::{Previewed, Previewer};
use crate::state::stage::{RunStage, StageName};

/// One stage of a run. Its `undo` stands beside it as a function, because an undo has no playbook:
/// see [`undo_of`].
pub(super) trait Stage {
    /// Its name.
    fn name(&self) -> RunStage;

    /// Its timeout, beyond the margin of every stage.
    fn timeout(&self) -> Duration {
        Duration::ZERO
    }

    /// Previews the stage on a node; nothing is changed.
    fn preview(&self, previewer: &Previewer<'_>) -> Previewed;

    /// Runs the stage; each change is journaled. The stages up to the rehearsal change nothing: the
    /// engine does them before the run has a journal.
    ///
    /// # Errors
    /// The first failure. The engine then undoes the run.
    fn run(&self, execution: &mut Execution<'_>) -> Result<()>;
}

/// The function that undoes a stage, of the journal and the baseline; none for a stage that changes
/// nothing, or nothing that can be undone.
pub(super) fn undo_of(stage: RunStage) -> Option<fn(&mut UndoContext<'_>) -> Result<()>> {
    let RunStage::Playbook(stage) = stage else {
        return (stage == RunStage::Fix).then_some(apply::undo as _);
    };
    match stage {
        StageName::Prepare => Some(prepare::undo),
        StageName::Switch => Some(switch::undo),
        StageName::Converge => Some(converge::undo),
        StageName::Clean => Some(clean::undo),
        StageName::Verify => Some(verify::undo),
        StageName::Preflight
        | StageName::Snapshot
        | StageName::Rehearse
        | StageName::Upgrade
        | StageName::Settle
        | StageName::Confirm => None,
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
            drain: Some(options.drain),
        }),
        playbook::Stage::Verify(options) => Box::new(options),
        playbook::Stage::Settle(options) => Box::new(options),
        playbook::Stage::Confirm(options) => Box::new(options),
    }
}
