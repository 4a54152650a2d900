//! The stage `confirm`: the run waits for the operator, and is undone if nobody confirms it in
//! time.

use crate::error::Result;
use crate::plan::playbook::Confirm;
use crate::run::execution::Execution;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::{Stage, Undo};
use crate::state::stage::RunStage;

/// The stage changes nothing, so nothing undoes it.
pub(super) const UNDO: Option<Undo> = None;

/// The stage `confirm` with the options of the playbook.
pub(super) fn stage(options: Confirm) -> Box<dyn Stage> {
    Box::new(options)
}

impl Stage for Confirm {
    fn name(&self) -> RunStage {
        RunStage::CONFIRM
    }

    fn preview(&self, _: &Previewer<'_>) -> Previewed {
        Previewed::line(format!(
            "waits {} s for `proxyshift confirm`, and undoes the run without it",
            self.within.as_secs()
        ))
    }

    fn run(&self, _: &mut Execution<'_>) -> Result<()> {
        // Nothing to do: the engine sets the deadline after the hooks of this stage.
        Ok(())
    }
}
