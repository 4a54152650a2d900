//! The stage `switch` where the node may not change kube-proxy's mode itself: somebody is asked to, and asked
//! again when the run is undone. Everything else is as with a controller.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::interrupt;
use crate::kube_proxy::mode;
use crate::kube_proxy::running::RunningMode;
use crate::node::kube_proxy_controller::Predecessor;
use crate::owners::matcher::Ownership;
use crate::plan::change::{Change, Edit};
use crate::run::Context;
use crate::run::bridge::keeper::Keeper;
use crate::run::execution::{Execution, UndoContext};
use crate::run::payload::{StepRef, replay};
use crate::run::stage::converge::{Judge, wait_for_return};
use crate::run::wait::{Poll, poll};
use crate::runtime::ProcessId;
use crate::state::stage::StageName;
use crate::store::journal;
use crate::store::run::{Modes, Run};

/// How long an undo waits for whoever is asked. The watchdog undoes again after that.
const BACK: Duration = Duration::from_secs(600);

/// Asks, and waits until another kube-proxy runs. In which mode, `converge` proves.
pub(super) fn run(execution: &mut Execution<'_>, ask: &str, timeout: Duration) -> Result<()> {
    let context = execution.context;
    let Modes { from, to } = execution.migration()?.modes;
    let task = Task::Switch { mode: to.to_string() };
    context.sink.started(&task);
    if from == to {
        context.sink.finished(&task, Outcome::AlreadySwitched);
        return Ok(());
    }
    let lines = journal::read(&context.store.folder(&execution.run.id))?;
    let step = StepRef::new(StageName::Switch.name(), 1);
    let now = context.observe_objects()?;
    execution.later = Some(mode::of(from).services(&now));
    drop(now);
    let old = match requested(&replay(lines)?.begun) {
        Some((_, process)) => Predecessor::of(process),
        None => {
            let old = Predecessor::only()?;
            let change = Change::SwitchRequested { ask: ask.to_owned(), process: old.process };
            step.begin::<Edit>(&mut execution.journal, change)?;
            old
        }
    };
    context.sink.warning(ask.to_owned());
    let base = execution.take_base()?;
    let keeper = Keeper::new(context, &execution.run, &base, &execution.follower);
    let keep_waiting = || {
        keeper.keep();
        interrupt::check("waiting for the switch")
    };
    let replaced =
        poll(timeout, &keep_waiting, || Ok(old.successor()?.map_or(Poll::NotYet(()), Poll::Ready)));
    execution.keep_base(base);
    match replaced? {
        Poll::Ready(_) => {
            step.mark_done(&mut execution.journal)?;
            context.sink.finished(&task, Outcome::Replaced);
            Ok(())
        }
        Poll::NotYet(()) => {
            context.sink.finished(&task, Outcome::TimedOut);
            let cause = format!("no other runs {timeout:?} after it was asked: {ask}");
            Err(Error::new(Kind::Command, "kube-proxy", cause))
        }
    }
}

/// What was asked for in a run, and the kube-proxy that ran before.
fn requested(changes: &[Change]) -> Option<(&str, ProcessId)> {
    changes.iter().rev().find_map(|change| match change {
        Change::SwitchRequested { ask, process } => Some((ask.as_str(), *process)),
        _ => None,
    })
}

/// Asks for the old mode, and waits until kube-proxy serves in it. Nobody is asked while the old
/// kube-proxy runs.
///
/// # Errors
/// None, because failures are collected in `undo`.
pub(super) fn undo(undo: &mut UndoContext<'_>) -> Result<()> {
    let Some(Modes { from, .. }) = undo.run.modes() else { return Ok(()) };
    let Some((ask, process)) = requested(&undo.replay.begun) else { return Ok(()) };
    let context = undo.context;
    let task = Task::RestoreConfig { mode: from.to_string() };
    context.sink.started(&task);
    if !process.is_alive() {
        context.sink.warning(back(ask, &from.to_string()));
    }
    let before = mode::of(from).services(undo.base);
    let follower = &undo.follower;
    let returned =
        wait_for_return(context, undo.run, undo.base, &before, Judge::Reply, BACK, follower);
    undo.serves = returned.is_ok();
    match returned {
        Ok(()) => context.sink.finished(&task, Outcome::Replaced),
        Err(e) => {
            context.sink.finished(&task, Outcome::NotServing);
            undo.fail(&e);
        }
    }
    Ok(())
}

/// The text that asks for the way back.
fn back(ask: &str, mode: &str) -> String {
    format!("put kube-proxy back into {mode} mode, as it was before it was asked: {ask}")
}

/// Succeeds if kube-proxy is in its old mode after a reboot. Returns false if the run has not asked for
/// another.
///
/// # Errors
/// [`Kind::NotRolledBack`], with what to ask for, if it is not.
pub(super) fn verify_after_reboot(
    context: &Context<'_>,
    run: &Run,
    changes: &[Change],
) -> Result<bool> {
    let (Some((ask, _)), Some(Modes { from, .. })) = (requested(changes), run.modes()) else {
        return Ok(false);
    };
    let now = context.observe_owners()?;
    let running = RunningMode::of(&now, &Ownership::of(context.catalogue, &now));
    if running.mode == Some(from) {
        return Ok(true);
    }
    Err(Error::new(Kind::NotRolledBack, "kube-proxy's mode", running.evidence)
        .hint(back(ask, &from.to_string())))
}
