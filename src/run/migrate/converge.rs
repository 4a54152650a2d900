//! Waiting until kube-proxy serves in its mode, with every service that was served before.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::node::answers;
use crate::plan::convergence::{Convergence, Expected, convergence};
use crate::plan::services::Services;
use crate::run::Context;
use crate::run::look::look_again;
use crate::run::migrate::until::{Seen, until};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;

/// Waits until the node serves `before` in `mode`, or what the old side served `later` than that;
/// returns it as it is then. Between two looks `go_on` is asked whether to wait any longer.
///
/// # Errors
/// [`Kind::Command`], naming what is still missing after `timeout`; what `go_on` says.
pub(super) fn wait(
    context: &Context<'_>,
    mode: Mode,
    before: &Services,
    later: Option<&Services>,
    timeout: Duration,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<NodeState> {
    let task = format!("waiting until kube-proxy serves in {mode} mode");
    context.sink.started(&task);
    let seen = until(timeout, go_on, || {
        let now = look_again(context.tools, context.sink)?;
        let said = answers::mode(&now);
        let expected = Expected { mode, before, later };
        Ok(match convergence(context.catalogue, &now, said.as_deref(), expected) {
            Convergence::Converged(changed) => Seen::There((now, changed)),
            Convergence::Waiting(missing) => Seen::Missing(missing),
        })
    })?;
    match seen {
        Seen::There((now, changed)) => {
            context.sink.finished(&task, format!("{} service ports", before.len()));
            changed.iter().for_each(|change| context.sink.note(change.to_string()));
            Ok(now)
        }
        Seen::Missing(missing) => {
            let shown: Vec<&str> = missing.iter().take(3).map(String::as_str).collect();
            let more = missing.len() - shown.len();
            let more = if more == 0 { String::new() } else { format!("; {more} more") };
            context.sink.finished(&task, "not in time");
            let cause = format!("after {} s: {}{more}", timeout.as_secs(), shown.join("; "));
            Err(Error::new(Kind::Command, format!("kube-proxy in {mode} mode"), cause)
                .hint("its log says why"))
        }
    }
}
