//! Undoes edits by a three-way merge of the baseline, the edits, and the node as it is now.

use crate::error::{Error, Kind, Result};
use crate::event;
use crate::plan::change::{Direction, Edit};
use crate::plan::invariants::{EditProgress, progress};
use crate::plan::merge;
use crate::run::Context;
use crate::run::apply_edits::execute;
use crate::run::execution::UndoContext;
use crate::run::payload::{Replay, StepRef};
use crate::state::NodeState;
use crate::state::object::ObjectId;
use crate::state::stage::RunStage;
use crate::store::journal::Journal;

/// The result of undoing edits.
pub(super) struct Undone {
    /// How many objects were restored.
    pub(super) restored: usize,
    /// How many objects that the edits had added were removed.
    pub(super) removed: usize,
    /// Objects that somebody else had already restored.
    pub(super) already_restored: Vec<ObjectId>,
    /// What is still not as before, one sentence each.
    pub(super) failures: Vec<String>,
}

/// Undoes the edits in `replay`, and verifies the result. `base` is the node state before the
/// edits.
///
/// # Errors
/// [`Kind::NotRolledBack`] when an edit could not be undone.
pub(super) fn undo_edits(
    context: &Context<'_>,
    journal: &mut Journal,
    replay: Replay,
    base: &NodeState,
) -> Result<Undone> {
    if let Some((edit, _)) = &replay.open {
        context.kernel().wait_for_earlier(edit).map_err(not_rolled_back)?;
    }
    let now = context.observe_objects()?;
    let made = edits_made(replay, base, &now);
    let plan = merge::undo(&made, base, &now);
    drop(now);
    let plan_again = || Ok(merge::undo(&made, base, &context.observe_objects()?).edits);
    let count = |direction: Direction| {
        plan.edits.iter().filter(|e| e.direction == direction).map(Edit::objects).sum()
    };
    let (restored, removed) = (count(Direction::Add), count(Direction::Remove));
    execute(context, journal, RunStage::Rollback, plan.edits, &plan_again)
        .map_err(not_rolled_back)?;

    let task = event::Task::VerifyRollback;
    context.sink.started(&task);
    let now = context.observe_objects()?;
    let left = merge::undo(&made, base, &now);
    let mut failures = left.conflicts;
    failures.extend(left.edits.iter().map(|e| format!("not done: {}", e.describe_undo())));
    let moved = left.misplaced.iter().filter(|m| !plan.misplaced.contains(m));
    failures.extend(moved.map(|m| format!("{m}: is back, but not in its place")));
    if failures.is_empty() {
        let standing = made.iter().filter(|e| progress(e, base, &now) != EditProgress::NotDone);
        failures.extend(standing.map(|e| format!("not undone: {e}")));
    }
    let result = if !failures.is_empty() {
        event::Outcome::NotRestored { objects: failures.len() }
    } else if restored == 0 && removed > 0 {
        event::Outcome::AdditionsRemoved
    } else {
        event::Outcome::Restored
    };
    context.sink.finished(&task, result);
    Ok(Undone { restored, removed, already_restored: plan.already_restored, failures })
}

/// Undoes all edits of a run that consists of edits alone: a clean-up or a fix.
///
/// # Errors
/// As [`undo_edits`].
pub(super) fn undo_all_edits(undo: &mut UndoContext<'_>) -> Result<()> {
    let replay = undo.replay.take_edits();
    let undone = undo_edits(undo.context, undo.journal, replay, undo.base)?;
    undo.restored += undone.restored;
    undo.removed += undone.removed;
    undo.already_restored.extend(undone.already_restored);
    undo.failures.extend(undone.failures);
    Ok(())
}

/// The edits that were made. The journal does not say whether the last, open edit was made, so the
/// kernel is asked.
pub(super) fn edits_made(replay: Replay, base: &NodeState, now: &NodeState) -> Vec<Edit> {
    let mut edits = replay.done;
    let made = |(edit, _): &(Edit, StepRef)| progress(edit, base, now) != EditProgress::NotDone;
    edits.extend(replay.open.filter(made).map(|(edit, _)| edit));
    edits
}

/// The error `e` with the kind [`Kind::NotRolledBack`], so that the exit code says that a person is
/// needed.
pub(super) fn not_rolled_back(e: Error) -> Error {
    Error { kind: Kind::NotRolledBack, ..e }
}
