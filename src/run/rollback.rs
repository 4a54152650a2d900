//! The verb `rollback`: chooses the run to undo, and checks whether it can be undone.

pub mod to;

use serde::de::IgnoredAny;

use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::plan::change::Edit;
use crate::plan::merge;
use crate::run::engine::keep_in_memory;
use crate::run::payload::replay;
use crate::run::record_end::record_end;
use crate::run::stored::load_baseline;
use crate::run::undo::{undo, undo_after_reboot};
use crate::run::undo_compare::journal_is_damaged;
use crate::run::undo_edits::edits_made;
use crate::run::{Context, boot_unit};
use crate::runtime::Netns;
use crate::store::journal::{self, JOURNAL, Journal};
use crate::store::run::{Run, RunState};

pub use crate::run::undo::UndoReport;

/// Undoes the pending run. If no run is pending, undoes the last run that is done.
///
/// # Errors
/// [`Kind::NotFound`] when there is nothing to undo; [`Kind::NotRolledBack`] naming what could not
/// be undone.
pub fn rollback(context: &Context<'_>) -> Result<UndoReport> {
    let _lock = context.lock("rollback")?;
    let run = match context.store.pending()? {
        Some(run) => run,
        None => last_done(context)?,
    };
    roll_back(context, run)
}

/// Undoes the pending run. If no run is pending, undoes the last run, unless that one was undone
/// before.
///
/// # Errors
/// As [`rollback`].
pub fn rollback_once(context: &Context<'_>) -> Result<Option<UndoReport>> {
    let _lock = context.lock("rollback")?;
    match revertible_run(context)? {
        Some(run) => roll_back(context, run).map(Some),
        None => Ok(None),
    }
}

/// The run that [`rollback_once`] would undo; none if it would undo nothing.
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

/// The edits that would undo `run`, which must not be a migration; nothing is changed.
///
/// # Errors
/// When the snapshot, the journal or the node cannot be read.
pub fn intended_edits(context: &Context<'_>, run: &Run) -> Result<Vec<Edit>> {
    if died_without_journal(context, run) {
        return Ok(Vec::new());
    }
    let base = load_baseline(context, run)?;
    let journal = replay(journal::read(&context.store.folder(&run.id))?)?;
    let now = context.observe_objects()?;
    Ok(merge::undo(&edits_made(journal, &base, &now), &base, &now).edits)
}

/// Undoes the run `id`, if it is still pending and due to be undone: somebody may have given it more
/// time, or resumed it, while the lock was waited for.
///
/// # Errors
/// As [`rollback`]; [`Kind::Lock`] while another process acts on the node.
pub fn rollback_run(context: &Context<'_>, id: &str) -> Result<Option<UndoReport>> {
    let _lock = context.lock("rollback")?;
    match context.store.pending()?.filter(|run| run.id == id && run.is_due()) {
        Some(run) => roll_back(context, run).map(Some),
        None => Ok(None),
    }
}

/// Undoes the run `id` once more, if it was undone in part, and nothing was done on this node since.
///
/// # Errors
/// As [`rollback_run`].
pub fn undo_again(context: &Context<'_>, id: &str) -> Result<Option<UndoReport>> {
    let _lock = context.lock("rollback")?;
    let last = of_this_node(context)?.pop();
    match last.filter(|run| run.id == id && run.state == RunState::UndonePartly) {
        Some(run) => roll_back(context, run).map(Some),
        None => Ok(None),
    }
}

fn roll_back(context: &Context<'_>, mut run: Run) -> Result<UndoReport> {
    context.sink.run(&run.id, run.verb());
    let _change = interrupt::begin_change();
    let cut_off = run.state == RunState::Running;
    if died_without_journal(context, &run) {
        record_end(context, &mut run, RunState::RolledBack);
        boot_unit::remove(context, &run);
        return Ok(UndoReport { run: run.id, ..UndoReport::default() });
    }
    // Its store may be readable and not writable.
    keep_in_memory(context, &run);
    // Each line is read here once, so that an undo that has begun does not stop at a damaged one.
    let opened = Journal::open::<IgnoredAny>(&context.store.folder(&run.id));
    if run.migration().is_some() && run.boot_id != crate::clock::boot_id() {
        return match opened {
            Ok(_) => undo_after_reboot(context, &mut run),
            Err(e) => Err(journal_is_damaged(context, &mut run, None, &e)),
        };
    }
    same_boot(context, &mut run)?;
    let base = load_baseline(context, &run)?;
    match opened {
        Ok((mut journal, _)) => undo(context, &mut run, &mut journal, &base, cut_off),
        Err(e) => Err(journal_is_damaged(context, &mut run, Some(&base), &e)),
    }
}

/// Whether a run died before it had a journal, so that it cannot have changed anything. A run that
/// knows of a journal which is not there has lost it.
pub(super) fn died_without_journal(context: &Context<'_>, run: &Run) -> bool {
    let has_journal = context.store.folder(&run.id).contains(JOURNAL);
    run.state == RunState::Running && run.journal.is_none() && !has_journal
}

/// Succeeds for a run of this boot. Closes a run of an earlier boot and fails, because the rules
/// that the run changed were lost in the reboot.
///
/// # Errors
/// [`Kind::NotFound`] when the run is of an earlier boot.
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
