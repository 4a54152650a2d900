//! Resumes a run that was interrupted.

use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::plan::change::Edit;
use crate::plan::invariants::{EditProgress, progress};
use crate::plan::playbook::{Hooks, Playbook, StageSide};
use crate::run::engine::{PLAYBOOK, RunResult, arm, execute_stages, keep_in_memory};
use crate::run::execution::Execution;
use crate::run::payload::{Replay, StepRef, replay};
use crate::run::rollback::{died_without_journal, same_boot};
use crate::run::stage::Stage;
use crate::run::{Context, cleanup, fix, migrate};
use crate::state::argv::Rerun;
use crate::state::stage::RunStage;
use crate::store::journal::Journal;
use crate::store::run::{Migration, Run, RunKind, RunState};

/// Resumes the pending run at the stage in which it was interrupted.
///
/// # Errors
/// [`Kind::NotFound`] when no run is pending, or the pending run had changed nothing;
/// [`Kind::Pending`] when the run can only be rolled back, or waits to be confirmed.
pub fn resume(context: &Context<'_>) -> Result<RunResult> {
    let _lock = context.lock("resume")?;
    let _change = interrupt::begin_change();
    let Some(mut run) = context.store.pending()? else {
        return Err(Error::new(Kind::NotFound, "resume", "no run is pending")
            .hint("`proxyshift status` lists the runs"));
    };
    if run.state == RunState::Unconfirmed {
        let cause = "has done its work and waits to be confirmed";
        return Err(Error::new(Kind::Pending, format!("run {}", run.id), cause)
            .hint("`proxyshift confirm` keeps it, `proxyshift rollback` undoes it"));
    }
    if run.migration().is_none() {
        same_boot(context, &mut run)?;
    }
    if died_without_journal(context, &run) {
        context.store.finish(&mut run, RunState::Failed)?;
        let cause = "the run had not changed anything; it is closed";
        let again = run.modes().map_or_else(String::new, |modes| format!(" --to {}", modes.to));
        return Err(Error::new(Kind::NotFound, "resume", cause)
            .hint(format!("start again with `proxyshift {}{again}`", run.verb())));
    }
    let (stages, hooks) = stages(context, &run)?;
    keep_in_memory(context, &run);
    let (journal, lines) = Journal::open(&context.store.folder(&run.id))?;
    let mut replay = replay(lines)?;
    let stage = run.pending.as_ref().map_or(RunStage::Begun, |pending| pending.stage);
    if replay.rolling_back || stage == RunStage::Rollback {
        return Err(only_rollback(&run, "it had begun to roll back"));
    }
    let Some(first) = first_stage(&stages, stage) else {
        let cause = format!("its stage {stage} is none of its playbook");
        return Err(only_rollback(&run, &cause));
    };
    run.claim();
    context.store.update(&mut run)?;
    context.sink.run(&run.id, run.verb());
    arm(context, &mut run)?;
    let mut execution = Execution::new(context, run, journal, None);
    if let Some((edit, step)) = replay.open.take() {
        close_open_edit(&mut execution, &edit, &step)?;
    }
    if let Some(hook) = must_not_rerun(&replay, &hooks, stage) {
        let cause = format!("`{hook}` may have run already, and must not run twice");
        return Err(only_rollback(&execution.run, &cause));
    }
    let stages = &stages[first..];
    if stages.iter().all(|stage| stage.name() != RunStage::CLEAN) {
        // The earlier edits are counted here unless the stage `clean` runs, because that stage
        // counts them itself.
        execution.objects = replay.done.iter().map(Edit::objects).sum();
    }
    execute_stages(execution, stages, &hooks)
}

/// The index of the stage in which the run was interrupted. `Begun` stands for a run that had not
/// entered a stage, or does not keep its stage.
fn first_stage(stages: &[Box<dyn Stage>], stage: RunStage) -> Option<usize> {
    if stage == RunStage::Begun {
        return Some(0);
    }
    stages.iter().position(|s| s.name() == stage)
}

/// The stages of a run, and the hooks of its playbook.
fn stages(context: &Context<'_>, run: &Run) -> Result<(Vec<Box<dyn Stage>>, Hooks)> {
    match &run.kind {
        RunKind::Fix { .. } => Err(fix::not_resumed(&run.id)),
        RunKind::Cleanup(options) => Ok((cleanup::stages(options), Hooks::default())),
        RunKind::Migrate(_) if run.boot_id != crate::clock::boot_id() => {
            Err(only_rollback(run, "the node was rebooted since"))
        }
        RunKind::Migrate(migration) => {
            let playbook = read_playbook(context, run, migration)?;
            Ok((migrate::stages(&playbook), playbook.hooks))
        }
    }
}

fn read_playbook(context: &Context<'_>, run: &Run, migration: &Migration) -> Result<Playbook> {
    let folder = context.store.folder(&run.id);
    let name = folder.disk().join(PLAYBOOK).display().to_string();
    Playbook::parse(&name, &folder.read(PLAYBOOK)?, migration.modes.from)
}

fn only_rollback(run: &Run, cause: &str) -> Error {
    Error::new(Kind::Pending, format!("run {}", run.id), cause)
        .hint("`proxyshift rollback` brings the node back")
}

/// Journals that `edit`, which was open when the run was interrupted, is done, if the kernel shows
/// that it was made.
fn close_open_edit(execution: &mut Execution<'_>, edit: &Edit, step: &StepRef) -> Result<()> {
    execution.context.kernel().wait_for_earlier(edit)?;
    let Some(base) = execution.clean_base()? else { return Ok(()) };
    match progress(edit, &base, &execution.context.observe_objects()?) {
        EditProgress::Done => step.mark_done(&mut execution.journal),
        EditProgress::NotDone => Ok(()),
        EditProgress::Unclear => {
            let cause = "the kernel shows neither the state before nor after its last edit";
            Err(only_rollback(&execution.run, cause))
        }
    }
}

/// A hook of the interrupted stage that may have run already, and of which the playbook says that
/// it must not run twice.
fn must_not_rerun(replay: &Replay, hooks: &Hooks, stage: RunStage) -> Option<String> {
    let name = stage.of_playbook()?;
    [StageSide::Before, StageSide::After]
        .into_iter()
        .flat_map(|when| hooks.at(when, name))
        .filter(|hook| hook.again == Rerun::Ask)
        .map(|hook| hook.run.to_string())
        .find(|command| replay.has_begun_hook(command))
}
