//! Undoes edits by a three-way merge of the baseline, the edits, and the node as it is now.

use std::collections::BTreeSet;

use crate::apply::prerequisites::Definitions;
use crate::error::{Error, Kind, Result};
use crate::event;
use crate::plan::change::{Direction, Edit, Target};
use crate::plan::invariants::{EditProgress, progress};
use crate::plan::merge;
use crate::run::Context;
use crate::run::apply_edits::execute;
use crate::run::execution::UndoContext;
use crate::run::payload::Replay;
use crate::state::NodeState;
use crate::state::object::ObjectId;
use crate::state::prerequisite::{Prerequisite, PrerequisiteKind};
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
    execute_undo(context, journal, base, plan.edits, &plan_again)?;

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

/// Applies `edits`, which undo others, after what their rules name has been made. `base` is the node
/// state before the undone edits.
///
/// # Errors
/// [`Kind::NotRolledBack`] when an edit could not be applied.
pub(super) fn execute_undo(
    context: &Context<'_>,
    journal: &mut Journal,
    base: &NodeState,
    edits: Vec<Edit>,
    plan_again: &dyn Fn() -> Result<Vec<Edit>>,
) -> Result<()> {
    prepare(context, &edits, base);
    execute(context, journal, RunStage::Rollback, edits, plan_again)
        .map(drop)
        .map_err(not_rolled_back)
}

/// Makes what the restored rules name and somebody else removed meanwhile. What cannot be made is
/// only warned of, because the kernel refuses the rules that need it, and may take others.
fn prepare(context: &Context<'_>, edits: &[Edit], base: &NodeState) {
    let prepared = context.kernel().prepare(&prerequisites(edits), Definitions::of(base));
    for one in prepared.made {
        context
            .sink
            .note(format!("{one} was gone, and a rule needs it: made as the snapshot has it"));
    }
    for (one, e) in prepared.missing {
        context.sink.warning(format!("{one}, which a rule needs: {e}"));
    }
}

/// What the rules that `edits` add name, except the ipsets that `edits` add too.
fn prerequisites(edits: &[Edit]) -> BTreeSet<Prerequisite> {
    let (mut needed, mut added) = (BTreeSet::new(), BTreeSet::new());
    for edit in edits.iter().filter(|edit| edit.direction == Direction::Add) {
        match &edit.target {
            Target::Table(table) => needed.extend(table.prerequisites()),
            Target::Set(set) => {
                let (kind, name) = (PrerequisiteKind::Set, set.name.clone());
                added.insert(Prerequisite { kind, name });
            }
            _ => {}
        }
    }
    &needed - &added
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

/// The edits that were made. The journal does not say whether an open edit was made, or one that
/// failed, so the kernel is asked.
pub(super) fn edits_made(replay: Replay, base: &NodeState, now: &NodeState) -> Vec<Edit> {
    let mut edits = replay.done;
    let doubtful = replay.failed.into_iter().chain(replay.open.map(|(edit, _)| edit));
    edits.extend(doubtful.filter(|edit| progress(edit, base, now) != EditProgress::NotDone));
    edits
}

/// The error `e` with the kind [`Kind::NotRolledBack`], so that the exit code says that a person is
/// needed.
pub(super) fn not_rolled_back(e: Error) -> Error {
    Error { kind: Kind::NotRolledBack, ..e }
}
