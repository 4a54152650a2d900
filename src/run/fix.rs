//! The remedies of checks: a validated snapshot, a rehearsal, each remedy's edits, proof.

use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::node::observe::observe;
use crate::node::observe::observe_all_tolerant;
use crate::plan::change::Edit;
use crate::run::Context;
use crate::run::change::{apply_or_undo, begin, prune, refuse_pending};
use crate::run::rehearsal::{Tried, rehearse};
use crate::run::snapshot::take_snapshot;
use crate::state::NodeState;
use crate::state::stage::RunStage;
use crate::store::run::RunKind;

/// What ends one finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// The check's id.
    pub id: &'static str,
    /// The edits, in order.
    pub edits: Vec<Edit>,
}

/// What was mended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The run, if anything was done.
    pub run: Option<String>,
    /// The snapshot to go back to.
    pub snapshot: Option<String>,
    /// The checks whose remedies were applied.
    pub applied: Vec<&'static str>,
    /// What others changed meanwhile; kept.
    pub others: Vec<String>,
}

/// Applies the remedies that `judge` finds and `approve` takes; `approve` is asked for each one
/// before anything is changed.
///
/// # Errors
/// [`Kind::RolledBack`] or [`Kind::NotRolledBack`] when it failed after it had changed something;
/// otherwise the node is as before.
pub fn fix(
    context: &Context<'_>,
    judge: &dyn Fn(&NodeState) -> Result<Vec<Remedy>>,
    approve: &dyn Fn(&Remedy) -> Result<bool>,
) -> Result<Report> {
    let _lock = context.lock(RunKind::FIX)?;
    refuse_pending(context)?;
    let mut approved = Vec::new();
    for remedy in judge(&observe(context.tools, context.sink)?)? {
        if approve(&remedy)? {
            approved.push(remedy);
        }
    }
    if approved.is_empty() {
        return Ok(Report::default());
    }
    // Attempts that were refused before they became runs leave their snapshots behind.
    prune(context)?;
    let taken = take_snapshot(context, "before check --fix")?;
    let edits = still_wanted(&approved, judge(&taken.state)?);
    if edits.is_empty() {
        context.sink.note("someone else mended it meanwhile");
        return Ok(Report::default());
    }
    rehearse(context, &taken, Tried::Edits(&edits))?;
    let applied: Vec<&'static str> = approved.iter().map(|r| r.id).collect();
    let checks = applied.iter().map(|id| (*id).to_owned()).collect();
    let _change = interrupt::change();
    let (mut run, mut journal) = begin(context, RunKind::Fix { checks }, &taken, &edits, 0)?;
    let plan_again =
        || Ok(still_wanted(&approved, judge(&observe_all_tolerant(context.tools, context.sink)?)?));
    let changed = apply_or_undo(
        context,
        &mut run,
        &mut journal,
        RunStage::Fix,
        &taken.state,
        edits,
        &plan_again,
    )?;
    let (id, snapshot) = (Some(run.id), Some(run.snapshot));
    Ok(Report { run: id, snapshot, applied, others: changed.others })
}

/// The edits of `found` that were approved; positions may have moved since.
fn still_wanted(approved: &[Remedy], found: Vec<Remedy>) -> Vec<Edit> {
    let known = |remedy: &Remedy, edit: &Edit| {
        approved
            .iter()
            .filter(|a| a.id == remedy.id)
            .flat_map(|a| &a.edits)
            .any(|e| e.lines() == edit.lines())
    };
    let mut edits = Vec::new();
    for remedy in &found {
        edits.extend(remedy.edits.iter().filter(|e| known(remedy, e)).cloned());
    }
    edits
}

/// A run of remedies that was cut off is only undone: what is left to mend, the next check says.
pub(super) fn not_resumed(id: &str) -> Error {
    Error::new(Kind::Pending, format!("run {id}"), "was applying remedies of checks")
        .hint("`proxyshift rollback` undoes it; then run `proxyshift check --fix` again")
}
