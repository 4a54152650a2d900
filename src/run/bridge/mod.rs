//! The bridge of a run while somebody waits for kube-proxy: it is put back where it is gone, and follows
//! the API server.

pub(super) mod files;
pub(super) mod follow;
pub(super) mod keeper;

use crate::kube_proxy::bridge::Bridge;
use crate::node::affinity;
use crate::run::Context;
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;

/// The bridges of what `mode` serves `now`, with the clients that stay with an endpoint by session
/// affinity. Where nobody can tell these, that is said, and all clients count as new ones.
pub(super) fn bridges_of(context: &Context<'_>, now: &NodeState, mode: Mode) -> Vec<Bridge> {
    let lists = affinity::read(context.tools, now).unwrap_or_else(|e| {
        context.sink.warning(format!("who stays with which endpoint is not known: {e}"));
        Default::default()
    });
    Bridge::with_clients(now, mode, &lists)
}
