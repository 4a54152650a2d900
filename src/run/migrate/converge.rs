//! Waiting until kube-proxy serves in its mode, with every service that was served before.

use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::node::measure::proxy_mode;
use crate::owners::matcher::Ownership;
use crate::plan::convergence::{self, Convergence, Seen};
use crate::plan::services::Services;
use crate::run::Context;
use crate::run::look::look_again;
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;

/// How often the node is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// Waits until the node serves `before` in `mode`; returns it as it is then.
///
/// # Errors
/// [`Kind::Command`], naming what is still missing after `timeout`.
pub(super) fn wait(
    context: &Context<'_>,
    mode: Mode,
    before: &Services,
    timeout: Duration,
) -> Result<NodeState> {
    let task = format!("waiting until kube-proxy serves in {mode} mode");
    context.sink.started(&task);
    let start = Instant::now();
    loop {
        let now = look_again(context.tools, context.sink)?;
        let answer = proxy_mode::ask(&now);
        let ownership = Ownership::of(context.catalogue, &now);
        let seen = Seen { state: &now, ownership: &ownership, proxy_mode: answer.as_deref() };
        match convergence::judge(mode, &seen, before) {
            Convergence::Converged => {
                context.sink.finished(&task, format!("{} service ports", before.len()));
                drop(ownership);
                return Ok(now);
            }
            Convergence::Waiting(missing) if start.elapsed() >= timeout => {
                let shown: Vec<&str> = missing.iter().take(3).map(String::as_str).collect();
                let more = missing.len() - shown.len();
                let more = if more == 0 { String::new() } else { format!("; {more} more") };
                context.sink.finished(&task, "not in time");
                let cause = format!("after {} s: {}{more}", timeout.as_secs(), shown.join("; "));
                return Err(Error::new(Kind::Command, format!("kube-proxy in {mode} mode"), cause)
                    .hint("its log says why"));
            }
            Convergence::Waiting(_) => std::thread::sleep(INTERVAL),
        }
    }
}
