//! Waiting until kube-proxy serves in its mode, with every service that was served before.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::kube_proxy::convergence::{Convergence, Expected, convergence};
use crate::kube_proxy::services::Services;
use crate::node::kube_proxy_api;
use crate::node::observe::observe_tolerant;
use crate::run::Context;
use crate::run::wait::{Poll, poll};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;

/// Waits until the node serves `before` in `mode`, or what the old side served `later` than that;
/// returns it as it is then. Between two looks `keep_waiting` is asked whether to wait any longer.
///
/// # Errors
/// [`Kind::Command`], naming what is still missing after `timeout`; what `keep_waiting` says.
pub(super) fn wait(
    context: &Context<'_>,
    mode: Mode,
    before: &Services,
    later: Option<&Services>,
    timeout: Duration,
    keep_waiting: &dyn Fn() -> Result<()>,
) -> Result<NodeState> {
    let task = Task::Converge { mode: mode.to_string() };
    context.sink.started(&task);
    let seen = poll(timeout, keep_waiting, || {
        let now = observe_tolerant(context.tools, context.sink)?;
        let said = kube_proxy_api::mode(&now);
        let expected = Expected { mode, before, later };
        Ok(match convergence(context.catalogue, &now, said.as_deref(), expected) {
            Convergence::Converged(changed) => Poll::Ready((now, changed)),
            Convergence::Waiting(missing) => Poll::NotYet(missing),
        })
    })?;
    match seen {
        Poll::Ready((now, changed)) => {
            context.sink.finished(&task, Outcome::Converged { ports: before.len() });
            changed.iter().for_each(|change| context.sink.note(change.to_string()));
            Ok(now)
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
