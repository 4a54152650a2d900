//! What every run does alike once its edits are known: begin, carry out, prove, or undo.

use crate::error::{Error, Kind, Result};
use crate::event;
use crate::node::observe::observe_tolerant;
use crate::plan::change::{Direction, Edit};
use crate::plan::invariants::{Outcome, outcome, unexpected_changes};
use crate::run::Context;
use crate::run::apply_edits::execute;
use crate::run::payload::replay;
use crate::run::rollback;
use crate::run::snapshot::Baseline;
use crate::run::snapshot::load_baseline;
use crate::run::writers::Writers;
use crate::state::NodeState;
use crate::state::stage::RunStage;
use crate::store::KEEP;
use crate::store::journal::{self, Journal};
use crate::store::run::{Run, RunKind, RunState};

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changed {
    /// Objects of the edits that were made.
    pub(super) objects: usize,
    /// What others changed meanwhile; kept.
    pub(super) others: Vec<String>,
}

/// Refuses to begin while a run waits to be finished.
pub(super) fn refuse_pending(context: &Context<'_>) -> Result<()> {
    match context.store.pending()? {
        None => Ok(()),
        Some(run) => Err(Error::new(Kind::Pending, format!("run {}", run.id), "is not finished")
            .hint("`proxyshift resume` goes on with it, `proxyshift rollback` undoes it")),
    }
}

/// Begins a run that goes back to `taken`, with room in its journal for `edits` and for
/// `more` bytes.
pub(super) fn begin(
    context: &Context<'_>,
    kind: RunKind,
    taken: &Baseline,
    edits: &[Edit],
    more: u64,
) -> Result<(Run, Journal)> {
    let size = edits.iter().map(journal_size).sum::<u64>() + more;
    context.store.room_for(size)?;
    let mut run = context.store.start(kind, &taken.snapshot.id)?;
    context.sink.run(&run.id, run.verb());
    match Journal::create(&context.store.run_dir(&run.id), size) {
        Ok(journal) => Ok((run, journal)),
        Err(e) => {
            context.store.finish(&mut run, RunState::Failed)?;
            Err(e)
        }
    }
}

/// Room for an edit, its undoing, and what is said of both.
fn journal_size(edit: &Edit) -> u64 {
    let mut text = Length(0);
    // Counting fails at nothing.
    let _ = serde_json::to_writer(&mut text, edit);
    2 * text.0 + 4096
}

/// Counts what is written to it: an edit may be as large as the node.
struct Length(u64);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Makes the edits and proves them; on a failure undoes them. `base` is what the node was, or what
/// the edits leave of it (see [`remaining_state`](crate::plan::invariants::remaining_state)).
pub(super) fn apply_or_undo(
    context: &Context<'_>,
    run: &mut Run,
    journal: &mut Journal,
    stage: RunStage,
    base: &NodeState,
    edits: Vec<Edit>,
    plan_again: &dyn Fn() -> Result<Vec<Edit>>,
) -> Result<Changed> {
    match apply_and_verify(context, run, journal, stage, base, edits, plan_again) {
        Ok(changed) => {
            // A run that is to be confirmed is pending until then.
            if run.pending.is_none() {
                context.store.finish(run, RunState::Done)?;
                prune(context)?;
            }
            Ok(changed)
        }
        Err(cause) => Err(undo_after(context, run, journal, cause)),
    }
}

/// Makes the edits and proves them.
pub(super) fn apply_and_verify(
    context: &Context<'_>,
    run: &Run,
    journal: &mut Journal,
    stage: RunStage,
    base: &NodeState,
    edits: Vec<Edit>,
    plan_again: &dyn Fn() -> Result<Vec<Edit>>,
) -> Result<Changed> {
    let mut writers = Writers::of(base, &edits);
    execute(context, journal, stage, edits, plan_again)
        // In the journal, with those of before a crash; one copy at a time.
        .map(drop)
        .and_then(|()| done_edits(context, run))
        .and_then(|done| verify(context, &done, base, &mut writers))
}

/// Undoes what was done; the error says both why and how that ended.
fn undo_after(context: &Context<'_>, run: &mut Run, journal: &mut Journal, cause: Error) -> Error {
    context.sink.warning(format!("{cause}; undoing"));
    let undone =
        load_baseline(context, run).and_then(|base| rollback::undo(context, run, journal, &base));
    match undone {
        Ok(report) if report.restored + report.taken_out == 0 => match cause.kind {
            Kind::Interrupted => {
                Error::new(cause.kind, cause.object, "interrupted; nothing was changed")
            }
            _ => cause,
        },
        undone => rollback_error(cause, undone),
    }
}

/// The error of a run that failed of `cause` and was undone, or was to be.
pub(super) fn rollback_error<T>(cause: Error, undone: Result<T>) -> Error {
    match undone {
        Ok(_) => Error { kind: Kind::RolledBack, ..cause }
            .hint("the node is as before; see the cause, and try again"),
        Err(e) => {
            Error::new(Kind::NotRolledBack, e.object, format!("{} (after: {cause})", e.cause))
                .hint(e.hint.unwrap_or_else(|| "`proxyshift rollback` tries again".into()))
        }
    }
}

/// Proves that nothing but the objects of `edits` has changed, and that these have. What others
/// changed since the snapshot is told, not undone.
fn verify(
    context: &Context<'_>,
    edits: &[Edit],
    base: &NodeState,
    writers: &mut Writers,
) -> Result<Changed> {
    let task = event::Task::VerifyKernel;
    context.sink.started(&task);
    let now = observe_tolerant(context.tools, context.sink)?;
    for edit in edits {
        if outcome(edit, base, &now) != Outcome::Done {
            let cause = match edit.direction {
                Direction::Remove => "is there again after the edit",
                Direction::Add => "is gone again after the edit",
            };
            return Err(Error::new(Kind::Kernel, edit.to_string(), cause));
        }
    }
    // Each transaction was compared with what it should have made when it was made: what differs
    // now beyond that is the work of others, and stays.
    let mut others = Vec::new();
    for id in base.rulesets.keys().chain(now.rulesets.keys()) {
        let (before, after) = (base.rulesets.get(id), now.rulesets.get(id));
        others
            .extend(unexpected_changes(*id, before, after, edits).iter().map(ToString::to_string));
    }
    others.sort();
    others.dedup();
    let all: usize = now.rulesets.values().map(|r| r.rule_count()).sum();
    let kept = all.saturating_sub(edits.iter().map(Edit::rules_added).sum());
    context.sink.finished(&task, event::Outcome::Unchanged { rules: kept });
    for change in &others {
        context.sink.note(format!("changed by someone else meanwhile, kept: {change}"));
    }
    if !others.is_empty() {
        writers.others(edits).into_iter().for_each(|text| context.sink.note(text));
    }
    Ok(Changed { objects: edits.iter().map(Edit::objects).sum(), others })
}

fn done_edits(context: &Context<'_>, run: &Run) -> Result<Vec<Edit>> {
    Ok(replay(journal::read(&context.store.run_dir(&run.id))?)?.done)
}

/// Removes the snapshots and runs that are too old to be of use.
pub(super) fn prune(context: &Context<'_>) -> Result<()> {
    context.store.prune_runs(KEEP)?;
    let needed = context.store.needed_snapshots()?;
    context.store.prune(KEEP, &needed).map(|_| ())
}
