//! The engine of every run: a clean-up, a fix of checks, a migration.
//!
//! A request proposes, the caller approves once, a validated snapshot is taken, the request plans and
//! rehearses on it, and the run begins. Its stages follow one after the other. A failure undoes the
//! run; else it waits to be confirmed, or is done.

use std::time::Duration;

use crate::apply::files::write_private;
use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::node::systemd;
use crate::plan::change::{Change, Edit, Irreversible};
use crate::plan::playbook::{Hook, Hooks, StageSide};
use crate::run::execution::{Execution, Planned};
use crate::run::payload::StepRef;
use crate::run::snapshot::take_snapshot;
use crate::run::stage::Stage;
use crate::run::stored::Baseline;
use crate::run::undo::undo;
use crate::run::{Context, boot_unit, hooks, watchdog};
use crate::state::NodeState;
use crate::state::stage::RunStage;
use crate::store::KEEP;
use crate::store::journal::Journal;
use crate::store::run::{BINARY, Pending, Run, RunKind, RunState};

/// The playbook's copy in the run's folder.
pub(super) const PLAYBOOK: &str = "playbook.yaml";

/// What the watchdog allows a stage beyond its own time.
const MARGIN: Duration = Duration::from_secs(300);

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunResult {
    /// The run.
    pub run: Run,
    /// How many objects were changed.
    pub objects: usize,
    /// Foreign changes meanwhile; kept.
    pub foreign: Vec<String>,
}

impl RunResult {
    /// How long the run still waits to be confirmed; none if it does not.
    pub fn left(&self) -> Option<Duration> {
        let waits = self.run.state == RunState::Unconfirmed;
        self.run.pending.as_ref().filter(|_| waits).map(Pending::left)
    }
}

/// What a verb asks of the engine.
pub(super) trait Request {
    /// What the caller approves.
    type Proposal;

    /// What is kept of it until the run is planned. A plan is as large as the node, and the snapshot
    /// is taken meanwhile.
    type Approved;

    /// The verb of the command line.
    fn verb(&self) -> &'static str;

    /// Why the snapshot is taken, for its manifest.
    fn reason(&self) -> String;

    /// Observes the node and proposes what to do; none when there is nothing to do.
    ///
    /// # Errors
    /// What stands in the way.
    fn propose(&self, context: &Context<'_>) -> Result<Option<Self::Proposal>>;

    /// Drops what is not needed any more once it is approved.
    fn approved(&self, proposal: Self::Proposal) -> Self::Approved;

    /// Plans on the snapshot, and rehearses the plan; none when there is nothing to do any more.
    ///
    /// # Errors
    /// A failed rehearsal, among others. Nothing is changed.
    fn plan<'a>(
        &'a self,
        context: &Context<'_>,
        approved: Self::Approved,
        baseline: Baseline,
    ) -> Result<Option<Work<'a>>>;
}

/// A run that is about to begin.
pub(super) struct Work<'a> {
    /// What it is to do.
    pub(super) kind: RunKind,
    /// The snapshot that undoing it restores.
    pub(super) snapshot: String,
    /// Its stages, in order.
    pub(super) stages: Vec<Box<dyn Stage + 'a>>,
    /// The node before the run; none in a clean-up, which keeps only what its edits leave.
    pub(super) base: Option<NodeState>,
    /// The edits of a run that consists of edits alone.
    pub(super) planned: Option<Planned>,
    /// How many bytes of journal its stages may need.
    pub(super) room: u64,
    /// Commands of the operator's, before and after stages.
    pub(super) hooks: Hooks,
    /// The text of its playbook, if it has one.
    pub(super) playbook: Option<String>,
}

/// Carries out a request. `approve` is called once, before anything is changed. None when there was
/// nothing to do.
///
/// # Errors
/// [`Kind::RolledBack`] or [`Kind::NotRolledBack`] when it failed after it had changed something;
/// otherwise the node is as before.
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
    let approved = request.approved(proposal);
    // Attempts that were refused before they became runs leave their snapshots behind.
    prune(context)?;
    let baseline = take_snapshot(context, &request.reason())?;
    let Some(mut work) = request.plan(context, approved, baseline)? else { return Ok(None) };
    let _change = interrupt::begin_change();
    let (run, journal) = begin(context, &work)?;
    let mut execution = Execution::new(context, run, journal, work.base.take());
    execution.planned = work.planned.take();
    execute_stages(execution, &work.stages, &work.hooks).map(Some)
}

/// Refuses to begin while a run is pending.
pub(super) fn refuse_pending(context: &Context<'_>) -> Result<()> {
    match context.store.pending()? {
        None => Ok(()),
        Some(run) => Err(Error::new(Kind::Pending, format!("run {}", run.id), "is not finished")
            .hint("`proxyshift resume` goes on with it, `proxyshift rollback` undoes it")),
    }
}

/// Begins the run: its folder, its playbook, its journal with room reserved, and its watchdog. A run
/// with a journal has all that is needed to resume it.
fn begin(context: &Context<'_>, work: &Work<'_>) -> Result<(Run, Journal)> {
    let edits = work.planned.iter().flat_map(|planned| &planned.edits);
    let size = edits.map(journal_size).sum::<u64>() + work.room;
    context.store.room_for(size)?;
    let mut run = context.store.start(work.kind.clone(), &work.snapshot)?;
    context.sink.run(&run.id, run.verb());
    let dir = context.store.run_dir(&run.id);
    let playbook = work.playbook.as_ref();
    let begun = playbook
        .map_or(Ok(()), |text| write_private(&dir.join(PLAYBOOK), text))
        .and_then(|()| Journal::create(&dir, size))
        .and_then(|journal| arm(context, &mut run).map(|()| journal));
    match begun {
        Ok(journal) => Ok((run, journal)),
        Err(e) => {
            context.store.finish(&mut run, RunState::Failed)?;
            remove_boot_unit(context, &run);
            Err(e)
        }
    }
}

/// Starts the watchdog of a run that is undone unless it is confirmed, or makes sure that it runs. A
/// migration outlives a reboot, so that it has a boot unit as well.
///
/// # Errors
/// As [`watchdog::arm`]; when the boot unit cannot be written.
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
        let program = context.store.run_dir(&run.id).join(BINARY);
        return boot_unit::write(&program, context.store.dir());
    }
    context
        .sink
        .note("there is no systemd here: after a reboot, undo the run with `proxyshift rollback`");
    Ok(())
}

/// Removes the boot unit of a migration. Another namespace's migration may be pending: a run without
/// a boot unit removes none.
pub(super) fn remove_boot_unit(context: &Context<'_>, run: &Run) {
    if run.migration().is_none() {
        return;
    }
    if let Err(e) = boot_unit::remove() {
        context.sink.warning(format!("the boot unit is still there: {e}"));
    }
}

/// Room in the journal for an edit, its undoing, and what became of both.
fn journal_size(edit: &Edit) -> u64 {
    let mut text = Length(0);
    // Counting never fails.
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

/// Runs the stages; undoes the run on a failure.
///
/// # Errors
/// As [`run`].
pub(super) fn execute_stages(
    mut execution: Execution<'_>,
    stages: &[Box<dyn Stage + '_>],
    hooks: &Hooks,
) -> Result<RunResult> {
    if let Err(cause) = run_stages(&mut execution, stages, hooks) {
        return Err(undo_after(&mut execution, cause));
    }
    finish(&mut execution)?;
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

/// The run comes to a stage; the watchdog gives it so much time.
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

/// The stages are done. The run waits to be confirmed, or is done. It is verified: what fails from
/// here on does not undo it.
fn finish(execution: &mut Execution<'_>) -> Result<()> {
    let Execution { context, run, .. } = execution;
    if let Some(time) = run.confirm_within() {
        if let Some(pending) = &mut run.pending {
            pending.stage = RunStage::CONFIRM;
            pending.set_deadline(time);
        }
        run.state = RunState::Unconfirmed;
        return context.store.update(run);
    }
    context.store.finish(run, RunState::Done)?;
    remove_boot_unit(context, run);
    if let Err(e) = prune(context) {
        context.sink.warning(format!("old runs and snapshots are still there: {e}"));
    }
    Ok(())
}

/// Undoes a run that failed of `cause`. The error says both why it failed and how the undoing ended.
fn undo_after(execution: &mut Execution<'_>, cause: Error) -> Error {
    let context = execution.context;
    context.sink.warning(format!("{cause}; undoing"));
    let step = StepRef::new(RunStage::Begun.name(), 0);
    let _ = step.mark_failed(&mut execution.journal, &cause);
    // Both are as large as the node.
    execution.planned = None;
    let undone = execution.take_base().and_then(|base| {
        let Execution { run, journal, .. } = execution;
        undo(context, run, journal, &base)
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

/// Removes the snapshots and runs that are too old to be of use.
fn prune(context: &Context<'_>) -> Result<()> {
    context.store.prune_runs(KEEP)?;
    let needed = context.store.needed_snapshots()?;
    context.store.prune(KEEP, &needed).map(drop)
}
