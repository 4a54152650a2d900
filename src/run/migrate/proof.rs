//! What must hold after a migration, and after the way back.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::kube_proxy::mode;
use crate::kube_proxy::parity::{What, parity};
use crate::kube_proxy::services::Services;
use crate::node::observe::observe_tolerant;
use crate::owners::catalogue::Catalogue;
use crate::plan::foreign_rules::missing_foreign;
use crate::run::Context;
use crate::run::probes;
use crate::run::wait::{Poll, poll};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::store::run::{Modes, Probe};

/// How long a kube-proxy that was just started may still lack services: it writes for the first time
/// when it has the list of all, not when it has dealt with each.
const LATE: Duration = Duration::from_secs(30);

/// Proves that what is not kube-proxy's is as in `base`, that every service is served in `mode`, and
/// that the probes answer.
///
/// # Errors
/// [`Kind::Kernel`], naming what is lost.
pub(super) fn verify(
    context: &Context<'_>,
    catalogue: &Catalogue,
    base: &NodeState,
    mode: Mode,
    modes: Modes,
    probes: &[Probe],
) -> Result<()> {
    let sink = context.sink;
    let task = Task::VerifyKernel;
    sink.started(&task);
    let now = observe_tolerant(context.tools, sink)?;
    let (gone, healing): (Vec<_>, Vec<_>) =
        missing_foreign(catalogue, base, &now).into_iter().partition(|l| l.is_permanent());
    for lost in &healing {
        sink.note(format!("not there now, its owner puts it back within {}: {lost}", lost.heals));
    }
    if let Some(first) = gone.first() {
        sink.finished(&task, Outcome::ForeignMissing { rules: gone.len() });
        let cause = "was there before, and is not in its place now";
        return Err(Error::new(Kind::Kernel, first.to_string(), cause));
    }
    sink.finished(&task, Outcome::ForeignUnchanged);
    wait_for_parity(context, &mode::of(modes.from).services(base), now, mode)?;
    let task = Task::ProbeAgain;
    sink.started(&task);
    let (passed, failed) = probes::ask(probes.to_vec());
    let all = passed.len() + failed.len();
    sink.finished(&task, Outcome::Probed { answered: passed.len(), all });
    match failed.first() {
        None => Ok(()),
        Some((probe, e)) => Err(Error::new(
            Kind::Kernel,
            probe.to_string(),
            format!("answered before, and now: {e}"),
        )),
    }
}

/// Waits until each service is served in `mode` as it was `before`; the node is as `now` first.
fn wait_for_parity(
    context: &Context<'_>,
    before: &Services,
    now: NodeState,
    mode: Mode,
) -> Result<()> {
    let mut at_hand = Some(now);
    let seen = poll(LATE, &|| Ok(()), || {
        let now =
            at_hand.take().map_or_else(|| observe_tolerant(context.tools, context.sink), Ok)?;
        // That every backend was there is known since the new mode took over; some come and go.
        let missing = parity(before, &mode::of(mode).services(&now));
        let (backends, whole): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|m| matches!(m.what, What::Backend(_)));
        Ok(match whole.into_iter().next() {
            None => Poll::Ready(backends),
            Some(first) => Poll::NotYet(first),
        })
    })?;
    match seen {
        Poll::Ready(backends) => {
            backends.iter().for_each(|backend| context.sink.note(backend.to_string()));
            Ok(())
        }
        Poll::NotYet(first) => {
            let cause = "a service is not served as before";
            Err(Error::new(Kind::Kernel, first.to_string(), cause))
        }
    }
}
