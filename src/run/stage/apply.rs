//! The stage `apply`: applies the remedies of checks.

use crate::error::{Error, Kind, Result};
use crate::node::observe::observe_all_tolerant;
use crate::plan::change::Edit;
use crate::run::execution::{Execution, UndoContext};
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::Stage;
use crate::run::undo_edits::undo_all_edits;
use crate::state::NodeState;
use crate::state::stage::RunStage;
use crate::store::run::RunKind;

/// Applies the remedies that were planned before the run began.
pub(in crate::run) struct ApplyRemedies<'a> {
    /// Plans the same remedies again, after a foreign change made the first plan obsolete.
    pub(in crate::run) plan_again: &'a dyn Fn(&NodeState) -> Result<Vec<Edit>>,
}

impl Stage for ApplyRemedies<'_> {
    fn name(&self) -> RunStage {
        RunStage::Fix
    }

    fn preview(&self, _: &Previewer<'_>) -> Previewed {
        Previewed::line("applies the remedies of checks")
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let context = execution.context;
        let planned = execution.planned.take().ok_or_else(|| {
            let object = format!("run {}", execution.run.id);
            Error::new(Kind::Unexpected, object, "has no remedies")
        })?;
        let plan_again = || (self.plan_again)(&observe_all_tolerant(context.tools, context.sink)?);
        execution.apply(self.name(), planned, &plan_again)
    }
}

/// Undoes the remedies, if the run is a fix.
///
/// # Errors
/// [`Kind::NotRolledBack`] when an edit cannot be undone.
pub(in crate::run) fn undo(undo: &mut UndoContext<'_>) -> Result<()> {
    match undo.run.kind {
        RunKind::Fix { .. } => undo_all_edits(undo),
        RunKind::Cleanup(_) | RunKind::Migrate(_) => Ok(()),
    }
}
