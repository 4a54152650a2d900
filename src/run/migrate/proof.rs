//! What must hold after a migration, and after the way back.

use crate::error::{Error, Kind, Result};
use crate::owners::catalogue::Catalogue;
use crate::plan::foreign::lost;
use crate::plan::parity::{What, parity};
use crate::plan::services::services;
use crate::run::Context;
use crate::run::look::look_again;
use crate::run::probes::{self, Probe};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::store::runs::Shift;

/// Proves that what is not kube-proxy's is as in `base`, that every service is served in `mode`, and
/// that the probes answer.
///
/// # Errors
/// [`Kind::Kernel`], naming what is lost.
pub(super) fn prove(
    context: &Context<'_>,
    catalogue: &Catalogue,
    base: &NodeState,
    mode: Mode,
    shift: Shift,
    probes: &[Probe],
) -> Result<()> {
    let sink = context.sink;
    let task = "verifying against the kernel";
    sink.started(task);
    let now = look_again(context.tools, sink)?;
    let (gone, healing): (Vec<_>, Vec<_>) =
        lost(catalogue, base, &now).into_iter().partition(|l| l.for_good());
    for lost in &healing {
        sink.note(format!("not there now, its owner puts it back within {}: {lost}", lost.heals));
    }
    if let Some(first) = gone.first() {
        sink.finished(task, format!("{} rules of others are lost", gone.len()));
        let cause = "was there before, and is not in its place now";
        return Err(Error::new(Kind::Kernel, first.to_string(), cause));
    }
    sink.finished(task, "what is not kube-proxy's is all there, in the same order");
    // That every backend was there is known since the new mode took over; some come and go.
    let missing = parity(&services(base, shift.from), &services(&now, mode));
    let (backends, whole): (Vec<_>, Vec<_>) =
        missing.into_iter().partition(|m| matches!(m.what, What::Backend(_)));
    for backend in &backends {
        sink.note(backend.to_string());
    }
    if let Some(first) = whole.first() {
        let cause = "a service is not served as before";
        return Err(Error::new(Kind::Kernel, first.to_string(), cause));
    }
    let task = "asking the node's services again";
    sink.started(task);
    let (passed, failed) = probes::ask(probes.to_vec());
    sink.finished(task, format!("{} of {} answer", passed.len(), passed.len() + failed.len()));
    match failed.first() {
        None => Ok(()),
        Some((probe, e)) => Err(Error::new(
            Kind::Kernel,
            probe.to_string(),
            format!("answered before, and now: {e}"),
        )),
    }
}
