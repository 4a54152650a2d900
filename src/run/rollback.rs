//! The way back: a plan like any other, made from the snapshot, the journal and what the node
//! holds now.

pub mod to;

use serde::de::IgnoredAny;

use crate::error::{Error, Kind, Result};
use crate::event;
use crate::interrupt;
use crate::node::observe::observe_tolerant;
use crate::plan::change::{Direction, Edit};
use crate::plan::invariants::{Outcome, outcome};
use crate::plan::merge;
use crate::run::Context;
use crate::run::apply_edits::execute;
use crate::run::migrate;
use crate::run::payload::{Replay, StepRef, replay};
use crate::run::snapshot::load_baseline;
use crate::runtime::Netns;
use crate::state::NodeState;
use crate::state::object::ObjectId;
use crate::state::stage::RunStage;
use crate::store::journal::{self, JOURNAL, Journal};
use crate::store::run::{Run, RunState};

/// What a rollback did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The run that was undone.
    pub run: String,
    /// Objects put back.
    pub restored: usize,
    /// Objects that the run had added, and that are taken out again.
    pub taken_out: usize,
    /// Objects that were there again without us.
    pub already_back: Vec<ObjectId>,
}

/// Undoes the run in hand, or else the last one that was done.
///
/// # Errors
/// [`Kind::NotFound`] when there is nothing to undo; [`Kind::NotRolledBack`] naming what could not
/// be put back.
pub fn rollback(context: &Context<'_>) -> Result<Report> {
    let _lock = context.lock("rollback")?;
    let run = match context.store.pending()? {
        Some(run) => run,
        None => last_done(context)?,
    };
    back(context, run)
}

/// Undoes the run in hand, or else the last one if that is not undone yet. Doing it again undoes
/// nothing more.
///
/// # Errors
/// As [`rollback`].
pub fn rollback_once(context: &Context<'_>) -> Result<Option<Report>> {
    let _lock = context.lock("rollback")?;
    match revertible_run(context)? {
        Some(run) => back(context, run).map(Some),
        None => Ok(None),
    }
}

/// The run that [`rollback_once`] would undo.
///
/// # Errors
/// When the store cannot be read.
pub fn revertible_run(context: &Context<'_>) -> Result<Option<Run>> {
    if let Some(run) = context.store.pending()? {
        return Ok(Some(run));
    }
    let mut runs = of_this_node(context)?;
    runs.retain(|run| run.state != RunState::Failed);
    Ok(runs.pop().filter(is_revertible))
}

/// The edits that would undo `run` now, which is no migration; nothing is changed.
///
/// # Errors
/// When the snapshot, the journal or the node cannot be read.
pub fn way_back(context: &Context<'_>, run: &Run) -> Result<Vec<Edit>> {
    let dir = context.store.run_dir(&run.id);
    if !dir.join(JOURNAL).exists() {
        return Ok(Vec::new());
    }
    let base = load_baseline(context, run)?;
    let journal = replay(journal::read(&dir)?)?;
    let now = observe_tolerant(context.tools, context.sink)?;
    Ok(merge::undo(&to_undo(journal, &base, &now), &base, &now).edits)
}

/// Undoes the run `id` if it is still pending.
///
/// # Errors
/// As [`rollback`]; [`Kind::Lock`] while somebody acts on the node.
pub fn rollback_run(context: &Context<'_>, id: &str) -> Result<Option<Report>> {
    let _lock = context.lock("rollback")?;
    match context.store.pending()?.filter(|run| run.id == id) {
        Some(run) => back(context, run).map(Some),
        None => Ok(None),
    }
}

fn back(context: &Context<'_>, mut run: Run) -> Result<Report> {
    context.sink.run(&run.id, run.verb());
    let _change = interrupt::change();
    let is_migration = run.migration().is_some();
    if is_migration && run.boot_id != crate::clock::boot_id() {
        return migrate::after_reboot(context, &mut run);
    }
    same_boot(context, &mut run)?;
    let base = load_baseline(context, &run)?;
    let dir = context.store.run_dir(&run.id);
    if !dir.join(JOURNAL).exists() {
        context.store.finish(&mut run, RunState::RolledBack)?;
        return Ok(Report { run: run.id, ..Report::default() });
    }
    let (mut journal, _) = Journal::open::<IgnoredAny>(&dir)?;
    let undo = if is_migration { migrate::undo } else { undo };
    undo(context, &mut run, &mut journal, &base)
}

/// A run of an earlier boot is closed: its rules went with that boot.
///
/// # Errors
/// [`Kind::NotFound`], saying so.
pub(super) fn same_boot(context: &Context<'_>, run: &mut Run) -> Result<()> {
    if run.boot_id == crate::clock::boot_id() {
        return Ok(());
    }
    context.store.finish(run, RunState::Rebooted)?;
    let cause = "the node was rebooted since, so its rules were made anew; the run is closed";
    Err(Error::new(Kind::NotFound, format!("run {}", run.id), cause)
        .hint("`proxyshift plan` shows what is left to do"))
}

fn of_this_node(context: &Context<'_>) -> Result<Vec<Run>> {
    let (here, boot_id) = (Netns::current()?, crate::clock::boot_id());
    let mut runs = context.store.runs()?;
    runs.retain(|r| r.netns.inode == here.inode && r.boot_id == boot_id);
    Ok(runs)
}

fn is_revertible(run: &Run) -> bool {
    matches!(run.state, RunState::Done | RunState::UndonePartly)
}

fn last_done(context: &Context<'_>) -> Result<Run> {
    of_this_node(context)?.into_iter().rfind(is_revertible).ok_or_else(|| {
        Error::new(Kind::NotFound, "rollback", "no run of this node can be undone")
            .hint("`proxyshift status` shows the runs")
    })
}

/// Undoes what `run` did, and proves it.
pub(super) fn undo(
    context: &Context<'_>,
    run: &mut Run,
    journal: &mut Journal,
    base: &NodeState,
) -> Result<Report> {
    run.claim();
    run.state = RunState::Running;
    context.store.update(run)?;
    let replay = replay(journal::read(&context.store.run_dir(&run.id))?)?;
    let now = observe_tolerant(context.tools, context.sink)?;
    let ours = to_undo(replay, base, &now);
    let way_back = merge::undo(&ours, base, &now);
    let plan_again = || {
        let now = observe_tolerant(context.tools, context.sink)?;
        Ok(merge::undo(&ours, base, &now).edits)
    };
    let going = |direction: Direction| {
        way_back.edits.iter().filter(|e| e.direction == direction).map(Edit::objects).sum()
    };
    let (restored, taken_out) = (going(Direction::Add), going(Direction::Remove));
    execute(context, journal, RunStage::Rollback, way_back.edits, &plan_again).map_err(not_back)?;

    let task = event::Task::VerifyRollback;
    context.sink.started(&task);
    let now = observe_tolerant(context.tools, context.sink)?;
    let left = merge::undo(&ours, base, &now);
    let mut missing = left.conflicts;
    missing.extend(left.edits.iter().map(|e| format!("not done: {}", e.describe_undo())));
    let moved = left.misplaced.iter().filter(|m| !way_back.misplaced.contains(m));
    missing.extend(moved.map(|m| format!("{m}: is back, but not in its place")));
    missing.extend(
        ours.iter()
            .filter(|e| missing.is_empty() && outcome(e, base, &now) != Outcome::NotDone)
            .map(|e| format!("not undone: {e}"))
            .collect::<Vec<_>>(),
    );
    if !missing.is_empty() {
        context.store.finish(run, RunState::UndonePartly)?;
        context.sink.finished(&task, event::Outcome::NotRestored { objects: missing.len() });
        return Err(Error::new(Kind::NotRolledBack, format!("run {}", run.id), missing.join("; "))
            .hint("put these back by hand; the snapshot has them, and its restore.sh"));
    }
    context.store.finish(run, RunState::RolledBack)?;
    let result = match restored {
        0 if taken_out > 0 => event::Outcome::AdditionsRemoved,
        _ => event::Outcome::Restored,
    };
    context.sink.finished(&task, result);
    let already_back = way_back.already_back;
    Ok(Report { run: run.id.clone(), restored, taken_out, already_back })
}

/// The edits that the kernel shows to have been made, the last one perhaps not journaled.
fn to_undo(replay: Replay, base: &NodeState, now: &NodeState) -> Vec<Edit> {
    let mut edits = replay.done;
    let made = |(edit, _): &(Edit, StepRef)| outcome(edit, base, now) != Outcome::NotDone;
    edits.extend(replay.open.filter(made).map(|(edit, _)| edit));
    edits
}

fn not_back(e: Error) -> Error {
    Error { kind: Kind::NotRolledBack, ..e }
}
