//! The stages of a run, one file each.

pub(super) mod apply;
pub(super) mod bridge;
pub(super) mod clean;
pub(super) mod confirm;
pub(super) mod converge;
mod drain;
pub(super) mod preflight;
pub(super) mod prepare;
pub(super) mod rehearse;
pub(super) mod remove_bridge;
mod replaced_pod;
mod requested_switch;
pub(super) mod settle;
pub(super) mod snapshot;
pub(super) mod switch;
pub(super) mod upgrade;
pub(super) mod verify;

use std::time::Duration;

use crate::error::Result;
use crate::plan::playbook::StageOptions;
use crate::run::execution::{Execution, UndoContext};
use crate::run::preview::{Previewed, Previewer};
use crate::state::stage::{RunStage, StageName, for_each_stage};

/// One stage of a run. The function that undoes the stage is not a method, because an undo has no
/// playbook and so no options: see [`undo_of`].
pub(super) trait Stage {
    /// Its name.
    fn name(&self) -> RunStage;

    /// How long the stage may take, not counting the margin that the watchdog allows every stage.
    fn timeout(&self) -> Duration {
        Duration::ZERO
    }

    /// Previews the stage on a node; nothing is changed.
    fn preview(&self, previewer: &Previewer<'_>) -> Previewed;

    /// Runs the stage and journals each change. The stages up to the rehearsal do nothing here: the
    /// engine does their work before the run has a journal.
    ///
    /// # Errors
    /// The first failure. The engine then undoes the run.
    fn run(&self, execution: &mut Execution<'_>) -> Result<()>;
}

/// A function that undoes what a stage did, from the journal and the baseline.
pub(super) type Undo = fn(&mut UndoContext<'_>) -> Result<()>;

/// Generates [`of`] and [`undo_of_playbook`] from the list of stages. Each stage's module has a
/// function `stage`, which takes the stage's options, and a constant `UNDO`, which is none for a
/// stage that changes nothing, or nothing that can be undone.
macro_rules! dispatch {
    ($($(#[$meaning:meta])* $Name:ident, $word:literal, $module:ident, $Options:ident, $changes:literal;)*) => {
        /// The stage with these options.
        pub(super) fn of(options: StageOptions) -> Box<dyn Stage> {
            match options {
                $(StageOptions::$Name(options) => $module::stage(options),)*
            }
        }

        fn undo_of_playbook(stage: StageName) -> Option<Undo> {
            match stage {
                $(StageName::$Name => $module::UNDO,)*
            }
        }
    };
}
for_each_stage!(dispatch);

/// The function that undoes a stage; none for a stage that cannot be undone.
pub(super) fn undo_of(stage: RunStage) -> Option<Undo> {
    match stage {
        RunStage::Playbook(stage) => undo_of_playbook(stage),
        RunStage::Fix => Some(apply::undo),
        RunStage::Begun | RunStage::Rollback => None,
    }
}
