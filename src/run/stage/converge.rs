//! The stage `converge`: waits until kube-proxy serves in its new mode, with every service that was
//! served before.

use std::time::{Duration, Instant};

use crate::apply::kube_proxy::operate;
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::interrupt;
use crate::kube_proxy::convergence::{Convergence, Expected, Witness, convergence};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::{ServiceKey, ServicePort, Services};
use crate::node::kube_proxy_api;
use crate::owners::component::KUBE_PROXY;
use crate::plan::change::{Edit, edits};
use crate::plan::leftovers::CleanupScope;
use crate::plan::playbook::Converge;
use crate::plan::{Action, Plan};
use crate::run::Context;
use crate::run::apply_edits::execute;
use crate::run::bridge::keeper::{Follower, Keeper};
use crate::run::execution::{Execution, UndoContext};
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::drain::{self, Leaving};
use crate::run::stage::{Stage, Undo};
use crate::run::undo_edits::not_rolled_back;
use crate::run::wait::{Poll, poll};
use crate::state::NodeState;
use crate::state::kube_proxy::Controller;
use crate::state::stage::{RunStage, StageName};
use crate::store::run::{Modes, Run};

/// The function that undoes the stage.
pub(super) const UNDO: Option<Undo> = Some(undo);

/// The stage `converge` with the options of the playbook.
pub(super) fn stage(options: Converge) -> Box<dyn Stage> {
    Box::new(options)
}

impl Stage for Converge {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Converge)
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn preview(&self, previewer: &Previewer<'_>) -> Previewed {
        let served = previewer.served.iter().filter(|(_, s)| !s.backends.is_empty());
        let with: Vec<String> = served.map(|(key, service)| served_by(key, service)).collect();
        let line = format!(
            "waits up to {} s until kube-proxy serves these {} service ports in {} mode, each with \
             every backend",
            self.timeout.as_secs(),
            with.len(),
            previewer.to()
        );
        let untold = [previewer.from, previewer.to()].into_iter().flat_map(|mode| {
            let what = mode::of(mode).untold().iter();
            what.map(move |what| format!("not compared: {what}, which {mode} mode does not tell"))
        });
        Previewed { with, ..Previewed::lines([line].into_iter().chain(untold)) }
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let Modes { from, to } = execution.migration()?.modes;
        let base = execution.take_base()?;
        let before = mode::of(from).services(&base);
        let later = execution.later.as_ref();
        let context = execution.context;
        let keeper = Keeper::new(context, &execution.run, &base, &execution.follower);
        let keep_waiting = || {
            keeper.keep();
            interrupt::check("waiting for kube-proxy")
        };
        let look = || {
            keeper.keep();
            let state = context.observe_owners()?;
            keeper.drop_unserved(&state, to);
            let witness = Witness::Reply(kube_proxy_api::mode(&state));
            Ok(Look { still: keeper.still_served(later.unwrap_or(&before)), state, witness })
        };
        let expected = Expected { mode: to, before: &before, later };
        wait(context, expected, self.timeout, &keep_waiting, &look)?;
        execution.keep_base(base);
        Ok(())
    }
}

/// A service and its endpoints as a line: `10.96.0.10:53/udp (kube-system/kube-dns:dns) →
/// 192.168.66.5:53, 192.168.66.6:53`.
fn served_by(key: &ServiceKey, service: &ServicePort) -> String {
    let name = service.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let backends: Vec<String> = service.backends.iter().map(ToString::to_string).collect();
    format!("{key}{name} → {}", backends.join(", "))
}

/// What tells, besides the kernel, that kube-proxy is back in its old mode.
#[derive(Clone, Copy)]
pub(in crate::run) enum Judge<'a> {
    /// The controller has its old configuration, so its kube-proxy that runs is back.
    Controller(&'a Controller),
    /// Somebody else configures it, so it must say so.
    Reply,
}

/// Waits until kube-proxy serves again in the mode before `run`, all that is in `before`, and keeps the
/// bridge meanwhile. `base` is the node state of which `before` was read. Reads only what the kernel holds, and
/// what `judge` says.
///
/// # Errors
/// As [`wait`].
pub(in crate::run) fn wait_for_return(
    context: &Context<'_>,
    run: &Run,
    base: &NodeState,
    before: &Services,
    judge: Judge<'_>,
    timeout: Duration,
    follower: &Follower,
) -> Result<()> {
    let Some(Modes { from: mode, .. }) = run.modes() else { return Ok(()) };
    let keeper = Keeper::new(context, run, base, follower);
    let keep_waiting = || {
        keeper.keep();
        Ok(())
    };
    let look = || {
        keeper.keep();
        let (state, witness) = match judge {
            Judge::Controller(controller) => {
                let runs = !operate(controller).processes()?.is_empty();
                (context.observe_with_owners_of(base)?, Witness::Controller { runs })
            }
            Judge::Reply => {
                let state = context.observe_owners()?;
                let reply = kube_proxy_api::mode(&state);
                (state, Witness::Reply(reply))
            }
        };
        Ok(Look { still: keeper.still_served(before), state, witness })
    };
    let expected = Expected { mode, before, later: None };
    wait(context, expected, timeout, &keep_waiting, &look)
}

/// What one look at the node shows.
struct Look {
    state: NodeState,
    witness: Witness,
    /// What of the services the API still has; none without its word.
    still: Option<Services>,
}

/// How long kube-proxy may take to come to a family without services, once it serves all services.
const LATE: Duration = Duration::from_secs(60);

/// How many of what has changed meanwhile are noted, one by one.
const NOTED: usize = 10;

/// Waits until kube-proxy serves as `expected`, and for a while until it has come to each family.
/// `look` observes the node; `keep_waiting` is called in between and may end the wait.
///
/// # Errors
/// [`Kind::Command`], naming what is still missing after `timeout`, or why the last look failed; or
/// the error of `keep_waiting`.
fn wait(
    context: &Context<'_>,
    expected: Expected<'_>,
    timeout: Duration,
    keep_waiting: &dyn Fn() -> Result<()>,
    look: &dyn Fn() -> Result<Look>,
) -> Result<()> {
    let Expected { mode, before, .. } = expected;
    let began = Instant::now();
    let task = Task::Converge { mode: mode.to_string() };
    context.sink.started(&task);
    let mut served: Option<Instant> = None;
    let result = poll(timeout, keep_waiting, || {
        // One look that fails, as beside a kube-proxy that makes all its tables anew, says nothing of
        // the next one, and must not end an undo.
        let Look { state, witness, still } = match look() {
            Ok(look) => look,
            Err(e) => return Ok(Poll::NotYet(vec![format!("the node cannot be read: {e}")])),
        };
        let expected = Expected { later: still.as_ref().or(expected.later), ..expected };
        Ok(match convergence(context.catalogue, &state, &witness, expected) {
            Convergence::Converged(changed) => Poll::Ready(changed),
            Convergence::Late(late, changed) => {
                let since = *served.get_or_insert_with(Instant::now);
                let is_over = since.elapsed() >= LATE || began.elapsed() >= timeout;
                if is_over { Poll::Ready(changed) } else { Poll::NotYet(late) }
            }
            Convergence::Waiting(missing) => Poll::NotYet(missing),
        })
    })?;
    match result {
        Poll::Ready(changed) => {
            context.sink.finished(&task, Outcome::Converged { ports: before.len() });
            let shown = changed.iter().take(NOTED);
            shown.for_each(|change| context.sink.note(change.to_string()));
            if let Some(more) = changed.len().checked_sub(NOTED).filter(|more| *more > 0) {
                context.sink.note(format!("and {more} more of these"));
            }
            Ok(())
        }
        Poll::NotYet(missing) => {
            let shown: Vec<&str> = missing.iter().take(3).map(String::as_str).collect();
            let more = missing.len() - shown.len();
            let more = if more == 0 { String::new() } else { format!("; {more} more") };
            context.sink.finished(&task, Outcome::TimedOut);
            let cause = format!("after {} s: {}{more}", timeout.as_secs(), shown.join("; "));
            Err(Error::new(Kind::Command, format!("kube-proxy in {mode} mode"), cause)
                .hint("its log says why"))
        }
    }
}

/// Removes the objects of the new mode that the node did not have before, because they are
/// leftovers once the old mode is back. Nothing is removed unless the old mode serves.
///
/// # Errors
/// [`Kind::NotRolledBack`] when an object cannot be removed.
pub(in crate::run) fn undo(undo: &mut UndoContext<'_>) -> Result<()> {
    if undo.run.migration().is_none() || !undo.serves {
        return Ok(());
    }
    let (context, base) = (undo.context, undo.base);
    let added = |now: &NodeState| -> Result<Vec<Edit>> {
        let mut plan: Plan = CleanupScope::of_owner(KUBE_PROXY).plan(context.catalogue, now)?;
        plan.objects.retain(|o| o.action == Action::Remove && !o.id.present_in(base));
        Ok(edits(&plan, now))
    };
    let edits = added(&context.observe_with_owners_of(base)?)?;
    undo.removed += edits.iter().map(Edit::objects).sum::<usize>();
    // Waits zero seconds, because an undo must not wait; but the open connections are named.
    drain::wait(context, &Leaving::of_edits(&edits), Duration::ZERO, &|| Ok(()))?;
    let plan_again = || added(&context.observe_with_owners_of(base)?);
    execute(context, undo.journal, RunStage::Rollback, edits, &plan_again)
        .map_err(not_rolled_back)?;
    Ok(())
}
