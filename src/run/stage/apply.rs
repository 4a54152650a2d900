//! The stage `apply`: applies the remedies of checks.

use crate::error::{Error, Kind, Result};
use crate::node::capture::Extent;
use crate::node::observe::observe_tolerant;
use crate::plan::change::Edit;
use crate::run::execution::{Execution, UndoContext};
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::Stage;
use crate::run::undo_edits::undo_all_edits;
use crate::state::NodeState;
use crate::state::stage::RunStage;
use crate::store::run::RunKind;

/// The edits that end one finding of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// The id of the check, such as `docker.masquerade`.
    pub id: &'static str,
    /// The edits, in the order in which they are applied.
    pub edits: Vec<Edit>,
}

/// Applies the approved remedies.
pub(in crate::run) struct ApplyRemedies<'a> {
    /// Finds the remedies of a node state.
    pub(in crate::run) judge: &'a dyn Fn(&NodeState) -> Result<Vec<Remedy>>,
    /// The remedies that the operator approved.
    pub(in crate::run) approved: Vec<Remedy>,
}

impl ApplyRemedies<'_> {
    /// The edits that were approved and that the node in the state `now` still needs. Their rules
    /// may have other indexes by now.
    ///
    /// # Errors
    /// As `judge`.
    pub(in crate::run) fn edits(&self, now: &NodeState) -> Result<Vec<Edit>> {
        let known = |remedy: &Remedy, edit: &Edit| {
            self.approved
                .iter()
                .filter(|a| a.id == remedy.id)
                .flat_map(|a| &a.edits)
                .any(|e| e.lines() == edit.lines())
        };
        let mut edits = Vec::new();
        for remedy in &(self.judge)(now)? {
            edits.extend(remedy.edits.iter().filter(|e| known(remedy, e)).cloned());
        }
        Ok(edits)
    }
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
        let observe = || observe_tolerant(context.tools, Extent::Whole, context.sink);
        let plan_again = || self.edits(&observe()?);
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
