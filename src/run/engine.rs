//! The engine of every run: a clean-up, a fix of checks, a migration.
//!
//! A request proposes a change, the caller approves it once, a validated snapshot is taken, the
//! request plans and rehearses on that snapshot, and then the run begins. Its stages follow one
//! after the other. If one fails, the run is undone. Otherwise the run waits to be confirmed, or is
//! done.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::node::systemd;
use crate::plan::change::{Change, Edit, Irreversible};
use crate::plan::playbook::{Hook, Hooks, StageSide};
use crate::run::announce::announce;
use crate::run::bridge::files::write_api;
use crate::run::execution::{Execution, Planned};
use crate::run::payload::StepRef;
use crate::run::record_end::record_end;
use crate::run::snapshot::take_snapshot;
use crate::run::stage::{Stage, switch};
use crate::run::stored::Baseline;
use crate::run::undo::undo;
use crate::run::{Context, boot_unit, hooks, watchdog};
use crate::state::NodeState;
use crate::state::kubernetes::NoteState;
use crate::state::stage::RunStage;
use crate::store::KEEP;
use crate::store::journal::Journal;
use crate::store::run::{Pending, Run, RunKind, RunState};

/// The name of the file in the run's folder that is a copy of the playbook.
pub(super) const PLAYBOOK: &str = "playbook.yaml";

/// The time that the watchdog allows every stage in addition to the stage's own timeout.
const MARGIN: Duration = Duration::from_secs(300);

/// What a run did, after its last stage succeeded.
#[derive(Debug, Clone, PartialEq)]
pub struct RunResult {
    /// The run as the store has it: done, or waiting to be confirmed.
    pub run: Run,
    /// How many objects the run changed.
    pub objects: usize,
    /// Foreign changes that were made meanwhile and are kept, one sentence each.
    pub foreign: Vec<String>,
}

impl RunResult {
    /// How much time is left to confirm the run; none if the run does not wait to be confirmed.
    pub fn left(&self) -> Option<Duration> {
        let waits = self.run.state == RunState::Unconfirmed;
        self.run.pending.as_ref().filter(|_| waits).map(Pending::left)
    }
}

/// What a verb asks of the engine: `cleanup`, `check --fix` or `migrate`.
pub(super) trait Request {
    /// What the caller is asked to approve.
    type Proposal;

    /// The part of the proposal that is kept in memory until the run is planned. A plan is as large
    /// as the node, so it should not be held while the snapshot is taken.
    type Approved;

    /// The verb of the command line, such as `cleanup`.
    fn verb(&self) -> &'static str;

    /// Whether the run gets a watchdog.
    fn is_watched(&self) -> bool;

    /// Why the snapshot is taken, as a text for the snapshot's manifest.
    fn reason(&self) -> String;

    /// Observes the node and proposes what to do. Returns none when there is nothing to do.
    ///
    /// # Errors
    /// Whatever stands in the way of the run.
    fn propose(&self, context: &Context<'_>) -> Result<Option<Self::Proposal>>;

    /// Reduces an approved proposal to what is still needed.
    fn approved(&self, proposal: Self::Proposal) -> Self::Approved;

    /// Plans on the snapshot, and rehearses the plan. Returns none when there is nothing left to
    /// do.
    ///
    /// # Errors
    /// A failed rehearsal, among others. The node is unchanged then.
    fn plan<'a>(
        &'a self,
        context: &Context<'_>,
        approved: Self::Approved,
        baseline: Baseline,
    ) -> Result<Option<Work<'a>>>;
}

/// A run that is about to begin.
pub(super) struct Work<'a> {
    /// The kind of the run, with its options.
    pub(super) kind: RunKind,
    /// The id of the snapshot that an undo of the run restores.
    pub(super) snapshot: String,
    /// The stages of the run, in order.
    pub(super) stages: Vec<Box<dyn Stage + 'a>>,
    /// The node state before the run; none in a run of edits alone, because `planned` has its own
    /// base.
    pub(super) base: Option<NodeState>,
    /// The edits of a run that consists of edits alone (a clean-up or a fix); none in a migration.
    pub(super) planned: Option<Planned>,
    /// How many bytes of the journal to reserve for the stages, besides those for `planned`.
    pub(super) room: u64,
    /// The operator's commands to run before and after stages.
    pub(super) hooks: Hooks,
    /// The text of the migration's playbook; none for other runs.
    pub(super) playbook: Option<String>,
}

/// Carries out a request. `approve` is called once, before anything is changed. Returns none when
/// there was nothing to do.
///
/// # Errors
/// [`Kind::RolledBack`] or [`Kind::NotRolledBack`] when the run failed after it had changed
/// something; after any other error the node is as before.
pub(super) fn run<R: Request>(
    context: &Context<'_>,
    request: &R,
    approve: &dyn Fn(&R::Proposal) -> Result<bool>,
) -> Result<Option<RunResult>> {
    let _lock = context.lock(request.verb())?;
    refuse_pending(context)?;
    let Some(proposal) = request.propose(context)? else { return Ok(None) };
    if !approve(&proposal)? {
        let cause = "declined; nothing was changed";
        return Err(Error::new(Kind::Interrupted, request.verb(), cause));
    }
    if request.is_watched() {
        watchdog::program::try_out(context)?;
    }
    let approved = request.approved(proposal);
    // Removes old snapshots, because requests that were refused before they became runs leave their
    // snapshots behind.
    prune(context)?;
    let baseline = take_snapshot(context, &request.reason())?;
    let Some(mut work) = request.plan(context, approved, baseline)? else { return Ok(None) };
    let _change = interrupt::begin_change();
    let (run, journal) = begin(context, &work)?;
    let mut execution = Execution::new(context, run, journal, work.base.take());
    execution.planned = work.planned.take();
    execute_stages(execution, &work.stages, &work.hooks).map(Some)
}

/// Fails while a run is pending, or one that cannot be read may be, because no other run may begin
/// then.
pub(super) fn refuse_pending(context: &Context<'_>) -> Result<()> {
    match context.store.pending()? {
        None => context.store.refuse_unread_run(),
        Some(run) => Err(Error::new(Kind::Pending, format!("run {}", run.id), "is not finished")
            .hint("`proxyshift resume` goes on with it, `proxyshift rollback` undoes it")),
    }
}

/// Begins the run: creates its folder, its copy of the playbook, how it reaches the API server, and its journal, reserves room for
/// the journal, and starts the watchdog. A run that has a journal has all that is needed to resume
/// the run.
fn begin(context: &Context<'_>, work: &Work<'_>) -> Result<(Run, Journal)> {
    let edits = work.planned.iter().flat_map(|planned| &planned.edits);
    let size = edits.map(journal_size).sum::<u64>() + work.room;
    context.store.room_for(size)?;
    let mut run = context.store.start(work.kind.clone(), &work.snapshot)?;
    context.sink.run(&run.id, run.verb());
    // Before there is a journal: from then on, whoever writes meanwhile is to be named soon.
    watchdog::log_begin(&run);
    keep_in_memory(context, &run);
    let folder = context.store.folder(&run.id);
    let playbook = work.playbook.as_ref();
    let begun = playbook
        .map_or(Ok(()), |text| folder.write(PLAYBOOK, text))
        .and_then(|()| work.base.as_ref().map_or(Ok(()), |base| write_api(context, &run, base)))
        .and_then(|()| Journal::create(&folder, size))
        .and_then(|journal| arm(context, &mut run).map(|()| journal));
    match begun {
        Ok(journal) => Ok((run, journal)),
        Err(e) => {
            record_end(context, &mut run, RunState::Failed);
            boot_unit::remove(context, &run);
            Err(e)
        }
    }
}

/// Copies the run to memory. Without the copy, a run whose store fails cannot be undone, which is
/// said and not refused: few nodes lack the room, and they need the run all the same.
pub(super) fn keep_in_memory(context: &Context<'_>, run: &Run) {
    if let Err(e) = context.store.keep_in_memory(run) {
        context.sink.note(format!(
            "no copy of the run is kept in memory ({e}); should the disk of the store fail, the \
             run cannot be undone"
        ));
    }
}

/// Makes sure that the watchdog of a run runs, if the run is to be undone unless it is confirmed. A
/// migration gets a boot unit as well, so that it is undone even after a reboot.
///
/// # Errors
/// As [`watchdog::arm`]; or an error when the boot unit cannot be written.
pub(super) fn arm(context: &Context<'_>, run: &mut Run) -> Result<()> {
    let migrates = run.migration().is_some();
    if !migrates && run.confirm_within().is_none() {
        return Ok(());
    }
    let pending = run.pending.get_or_insert_with(|| Pending::new(RunStage::Begun, MARGIN));
    pending.set_deadline(MARGIN);
    context.store.update(run)?;
    watchdog::arm(context, run)?;
    if !migrates {
        return Ok(());
    }
    if systemd::runs_the_node() {
        let program = watchdog::program::of_run(context, &run.id)?;
        return boot_unit::write(&program, context.store.dir());
    }
    context
        .sink
        .note("there is no systemd here: after a reboot, undo the run with `proxyshift rollback`");
    Ok(())
}

/// How many bytes to reserve in the journal for an edit, for its undo, and for the outcome of both.
fn journal_size(edit: &Edit) -> u64 {
    let mut text = Length(0);
    // Writing to a counter never fails.
    let _ = serde_json::to_writer(&mut text, edit);
    2 * text.0 + 4096
}

/// Counts the bytes that are written to it, without keeping them, because an edit may be as large
/// as the node.
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

/// Runs the stages. If one fails, undoes the run.
///
/// # Errors
/// As [`run`].
pub(super) fn execute_stages(
    mut execution: Execution<'_>,
    stages: &[Box<dyn Stage + '_>],
    hooks: &Hooks,
) -> Result<RunResult> {
    let ended = run_stages(&mut execution, stages, hooks).and_then(|()| end(&mut execution));
    if let Err(cause) = ended {
        return Err(undo_after(&mut execution, cause));
    }
    if execution.run.state == RunState::Done {
        tidy(&execution);
    }
    let Execution { run, objects, foreign, .. } = execution;
    Ok(RunResult { run, objects, foreign })
}

fn run_stages(
    execution: &mut Execution<'_>,
    stages: &[Box<dyn Stage + '_>],
    hooks: &Hooks,
) -> Result<()> {
    for stage in stages {
        let name = stage.name();
        interrupt::check(name.name())?;
        let of_stage = |when| name.of_playbook().map_or(&[][..], |name| hooks.at(when, name));
        let (before, after) = (of_stage(StageSide::Before), of_stage(StageSide::After));
        let hooks_timeout: Duration = before.iter().chain(after).map(|hook| hook.timeout).sum();
        enter(execution, name, stage.timeout() + hooks_timeout + MARGIN)?;
        run_hooks(execution, before)?;
        stage.run(execution)?;
        run_hooks(execution, after)?;
    }
    Ok(())
}

/// Notes that the run enters `stage`. The watchdog undoes the run unless the stage ends within
/// `time`.
fn enter(execution: &mut Execution<'_>, stage: RunStage, time: Duration) -> Result<()> {
    let Execution { context, run, .. } = execution;
    let Some(pending) = &mut run.pending else { return Ok(()) };
    pending.stage = stage;
    pending.set_deadline(time);
    context.store.update(run)?;
    watchdog::arm(context, run)
}

fn run_hooks(execution: &mut Execution<'_>, hooks: &[Hook]) -> Result<()> {
    for hook in hooks {
        let step = StepRef::new("hook", 1);
        let change = Irreversible::Hook { command: hook.run.to_string() };
        step.begin::<Edit>(&mut execution.journal, Change::Irreversible(change))?;
        hooks::run(hook, execution.context.sink)?;
        step.mark_done(&mut execution.journal)?;
    }
    Ok(())
}

/// Ends a run whose stages are done and verified: the run waits to be confirmed, or is done.
fn end(execution: &mut Execution<'_>) -> Result<()> {
    let Execution { context, run, .. } = execution;
    if let Some(time) = run.confirm_within() {
        if let Some(pending) = &mut run.pending {
            pending.stage = RunStage::CONFIRM;
            pending.set_deadline(time);
        }
        run.state = RunState::Unconfirmed;
        context.store.update(run)?;
        announce(context, run, NoteState::Unconfirmed);
        return Ok(());
    }
    context.store.finish(run, RunState::Done)
}

/// Removes what a run that is done no longer needs. A failure no longer undoes the run.
fn tidy(execution: &Execution<'_>) {
    let Execution { context, run, .. } = execution;
    switch::forget(context, run, true);
    boot_unit::remove(context, run);
    if let Err(e) = prune(context) {
        context.sink.warning(format!("old runs and snapshots are still there: {e}"));
    }
}

/// Undoes a run that failed because of `cause`. Returns an error that says why the run failed and
/// how the undo ended.
fn undo_after(execution: &mut Execution<'_>, cause: Error) -> Error {
    let context = execution.context;
    context.sink.warning(format!("{cause}; undoing"));
    let step = StepRef::new(RunStage::Begun.name(), 0);
    let _ = step.mark_failed(&mut execution.journal, &cause);
    // Freed first, because the planned edits and the base are each as large as the node.
    execution.planned = None;
    let undone = execution.take_base().and_then(|base| {
        let Execution { run, journal, .. } = execution;
        undo(context, run, journal, &base, false)
    });
    match undone {
        Ok(report) => {
            let nothing = report.restored + report.taken_out == 0;
            let edits_only = execution.run.migration().is_none();
            match cause.kind {
                Kind::Interrupted if nothing && edits_only => {
                    Error::new(cause.kind, cause.object, "interrupted; nothing was changed")
                }
                _ if nothing && edits_only => cause,
                _ => Error { kind: Kind::RolledBack, ..cause }
                    .hint("the node is as before; see the cause, and try again"),
            }
        }
        Err(e) => {
            Error::new(Kind::NotRolledBack, e.object, format!("{} (after: {cause})", e.cause))
                .hint(e.hint.unwrap_or_else(|| "`proxyshift rollback` tries again".into()))
        }
    }
}

/// Removes snapshots and runs except the latest [`KEEP`] and those still needed.
fn prune(context: &Context<'_>) -> Result<()> {
    context.store.prune_runs(KEEP)?;
    let needed = context.store.needed_snapshots()?;
    context.store.prune(KEEP, &needed).map(drop)
}
