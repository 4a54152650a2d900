//! The stage `apply`: applies the remedies of checks.

use std::collections::BTreeMap;

use crate::error::{Error, Kind, Result};
use crate::node::capture::Extent;
use crate::node::observe::observe_tolerant;
use crate::plan::change::{Change, Edit};
use crate::run::execution::{Execution, UndoContext};
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::Stage;
use crate::run::stage::prepare::set_sysctls;
use crate::run::undo_edits::undo_all_edits;
use crate::state::NodeState;
use crate::state::stage::RunStage;
use crate::store::run::RunKind;

/// The changes that end one finding of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// The id of the check, such as `docker.masquerade`.
    pub id: &'static str,
    /// Changes of objects and of sysctls, in the order in which they are made.
    pub changes: Vec<Change>,
}

/// Applies the approved remedies.
pub(in crate::run) struct ApplyRemedies<'a> {
    /// Finds the remedies of a node state.
    pub(in crate::run) judge: &'a dyn Fn(&NodeState) -> Result<Vec<Remedy>>,
    /// The remedies that the operator approved.
    pub(in crate::run) approved: Vec<Remedy>,
    /// The sysctls that they set, each with its new value.
    pub(in crate::run) sysctls: BTreeMap<String, String>,
}

impl ApplyRemedies<'_> {
    /// The changes that were approved and that the node in the state `now` still needs. Their rules
    /// may have other indexes by now.
    ///
    /// # Errors
    /// As `judge`.
    pub(in crate::run) fn needed(&self, now: &NodeState) -> Result<Needed> {
        let known = |remedy: &Remedy, change: &Change| {
            self.approved
                .iter()
                .filter(|a| a.id == remedy.id)
                .flat_map(|a| &a.changes)
                .any(|c| c.lines() == change.lines())
        };
        let mut needed = Needed::default();
        for remedy in (self.judge)(now)? {
            for change in remedy.changes.iter().filter(|c| known(&remedy, c)) {
                match change {
                    Change::Objects(edit) => needed.edits.push(edit.clone()),
                    Change::Sysctl { name, to, .. } => {
                        needed.sysctls.insert(name.clone(), to.clone());
                    }
                    other => {
                        let cause = "a check cannot have this remedy";
                        return Err(Error::new(Kind::Unexpected, other.to_string(), cause));
                    }
                }
            }
        }
        Ok(needed)
    }
}

/// What the approved remedies change.
#[derive(Debug, Default)]
pub(in crate::run) struct Needed {
    /// The edits, in the order in which they are applied.
    pub(in crate::run) edits: Vec<Edit>,
    /// The sysctls, each with its new value.
    pub(in crate::run) sysctls: BTreeMap<String, String>,
}

impl Needed {
    /// True if nothing is left to change.
    pub(in crate::run) fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.sysctls.is_empty()
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
        let edits = u32::try_from(planned.edits.len()).unwrap_or(u32::MAX);
        let observe = || observe_tolerant(context.tools, Extent::Whole, context.sink);
        let plan_again = || self.needed(&observe()?).map(|needed| needed.edits);
        execution.apply(self.name(), planned, &plan_again)?;
        set_sysctls(execution, self.name(), edits, &self.sysctls)?;
        Ok(())
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
