//! Undoes a run: each stage undoes its own part, in a fixed order; then the result is verified.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::run::announce::announce;
use crate::run::bridge::keeper::Follower;
use crate::run::execution::UndoContext;
use crate::run::payload::replay;
use crate::run::record_end::record_end;
use crate::run::stage::{prepare, switch, undo_of};
use crate::run::undo_compare::compare;
use crate::run::{Context, boot_unit, watchdog};
use crate::state::NodeState;
use crate::state::kubernetes::NoteState;
use crate::state::object::ObjectId;
use crate::state::stage::{RunStage, StageName};
use crate::store::journal::{self, Journal};
use crate::store::run::{Run, RunState};

/// What a rollback did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct UndoReport {
    /// The id of the run that was undone.
    pub run: String,
    /// How many objects, files and sysctls were restored.
    pub restored: usize,
    /// How many objects that the run had added were removed.
    pub taken_out: usize,
    /// Objects that somebody else had already restored.
    pub already_back: Vec<ObjectId>,
    /// Foreign changes since the run's snapshot, which are kept, one sentence each.
    pub others: Vec<String>,
}

/// How long an undo may take before the watchdog starts it again.
const TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The stages that undo something, in the order in which they undo it. The bridge is put back before
/// kube-proxy changes its mode once more, and goes when the old mode serves again. Before that,
/// nothing of the new mode is removed.
const ORDER: [RunStage; 9] = [
    RunStage::Playbook(StageName::RemoveBridge),
    RunStage::Playbook(StageName::Switch),
    RunStage::Playbook(StageName::Upgrade),
    RunStage::Playbook(StageName::Prepare),
    RunStage::Playbook(StageName::Converge),
    RunStage::Playbook(StageName::Bridge),
    RunStage::Playbook(StageName::Clean),
    RunStage::Fix,
    RunStage::Playbook(StageName::Verify),
];

/// Undoes what `run` did, and verifies the result. `base` is the node state before the run. `cut_off`
/// is as for [`compare`].
///
/// # Errors
/// [`Kind::NotRolledBack`] naming what is not as before.
pub(super) fn undo(
    context: &Context<'_>,
    run: &mut Run,
    journal: &mut Journal,
    base: &NodeState,
    cut_off: bool,
) -> Result<UndoReport> {
    run.claim();
    run.state = RunState::Running;
    if let Some(pending) = &mut run.pending {
        pending.stage = RunStage::Rollback;
        pending.set_deadline(TIMEOUT);
    }
    journal.undoes();
    context.store.update_somewhere(run);
    if let Err(e) = watchdog::arm(context, run) {
        context.sink.warning(format!("no watchdog runs: {e}"));
    }
    let replay = replay(journal::read(&context.store.folder(&run.id))?)?;
    let mut undo = UndoContext {
        context,
        run,
        journal,
        base,
        replay,
        serves: true,
        follower: Follower::default(),
        restored: 0,
        removed: 0,
        already_restored: Vec::new(),
        failures: Vec::new(),
    };
    for undo_stage in ORDER.into_iter().filter_map(undo_of) {
        if let Err(e) = undo_stage(&mut undo) {
            undo.fail(&e);
        }
    }
    if let Some(e) = undo.journal.failure() {
        context.sink.warning(format!("the journal lacks lines of this undo: {e}"));
    }
    let UndoContext { restored, removed, already_restored, mut failures, .. } = undo;
    let mut others = Vec::new();
    if failures.is_empty() {
        match compare(context, run, base, cut_off) {
            Ok(compared) => {
                failures = compared.failures;
                others = compared.others;
            }
            Err(e) => failures.push(format!("not compared with the snapshot: {e}")),
        }
    }
    let run_id = run.id.clone();
    finish(context, run, failures)?;
    Ok(UndoReport {
        run: run_id,
        restored,
        taken_out: removed,
        already_back: already_restored,
        others,
    })
}

/// Undoes the migration `run` of an earlier boot: restores kube-proxy's configuration and the files
/// that `prepare` wrote for the next boot. Rules are neither restored nor compared, because the
/// rules that the run wrote and the rules from before the run were both lost in the reboot.
///
/// # Errors
/// As [`undo`].
pub(super) fn undo_after_reboot(context: &Context<'_>, run: &mut Run) -> Result<UndoReport> {
    let changes = replay(journal::read(&context.store.folder(&run.id))?)?.begun;
    let mut failures = Vec::new();
    let mut restored = prepare::restore_persisted(&changes, &mut failures);
    match switch::restore_after_reboot(context, run, &changes) {
        Ok(done) => restored += usize::from(done),
        Err(e) => failures.push(e.to_string()),
    }
    let run_id = run.id.clone();
    finish(context, run, failures)?;
    Ok(UndoReport { run: run_id, restored, ..UndoReport::default() })
}

/// Stores how the undo ended, and reports it. `failures` is empty if the undo is complete.
fn finish(context: &Context<'_>, run: &mut Run, failures: Vec<String>) -> Result<()> {
    let task = Task::VerifyRollback;
    let migrates = run.migration().is_some();
    let state = if failures.is_empty() { RunState::RolledBack } else { RunState::UndonePartly };
    if failures.is_empty() {
        switch::forget(context, run, false);
    } else {
        announce(context, run, NoteState::UndonePartly);
    }
    record_end(context, run, state);
    if migrates {
        context.sink.started(&task);
        boot_unit::remove(context, run);
        let outcome = match failures.len() {
            0 => Outcome::Undone,
            failures => Outcome::NotUndone { failures },
        };
        context.sink.finished(&task, outcome);
    }
    if failures.is_empty() {
        return Ok(());
    }
    let hint = if migrates {
        "mend these by hand; the snapshot has the rules, and its restore.sh"
    } else {
        "put these back by hand; the snapshot has them, and its restore.sh"
    };
    Err(Error::new(Kind::NotRolledBack, format!("run {}", run.id), failures.join("; ")).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_that_can_be_undone_is() {
        let all = StageName::ALL.map(RunStage::Playbook);
        for stage in all.into_iter().chain([RunStage::Begun, RunStage::Fix, RunStage::Rollback]) {
            assert_eq!(undo_of(stage).is_some(), ORDER.contains(&stage), "{stage}");
        }
    }
}
