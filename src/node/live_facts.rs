//! Asks the live node for facts that no file of a snapshot holds. Changes nothing, and loads no
//! module.

mod conntrack;
mod expressions;
pub mod kube_proxy;
mod lock;
pub mod modules;
mod pods;
mod store;
mod units;

use std::path::Path;

use super::kube_proxy_api;
use super::tools::Tools;
use super::trust::{NET_ADMIN, PinnedProcess};
use crate::state::NodeState;
use crate::state::live_facts::LiveFacts;

/// Finds every live fact. `store` is the directory of proxyshift's store, which may not exist.
pub fn probe(state: &NodeState, store: Option<&Path>) -> LiveFacts {
    let (lock_wait, lock_holder) = lock::wait();
    let kube_proxy = kube_proxy::observe_root(state);
    let log = kube_proxy::read_logs();
    let modules = modules::read();
    LiveFacts {
        pod_addresses: pods::addresses(),
        proxy_mode: kube_proxy_api::mode(state),
        privileged: privileged(),
        kube_proxy_tools: kube_proxy.tools,
        kube_proxy_root: kube_proxy.root,
        kube_proxy_complaints: log.complaints,
        kube_proxy_end: log.end,
        store_free: store.and_then(store::free),
        lock_wait,
        lock_holder,
        untranslated_flows: conntrack::untranslated(&modules),
        nft_expressions: expressions::probe(&Tools::find(), &modules),
        modules: Some(modules),
        enabled_units: units::enabled(Path::new("/")),
        kube_proxy_metrics: kube_proxy_api::metrics(state),
    }
}

/// True for root with CAP_NET_ADMIN and CAP_SYS_ADMIN, which changing the network and mounting
/// need. Root in a container often lacks them.
fn privileged() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    let wanted = NET_ADMIN | SYS_ADMIN;
    let ours = PinnedProcess::open(std::process::id()).and_then(|us| us.capabilities());
    rustix::process::geteuid().is_root() && ours.is_some_and(|ours| ours & wanted == wanted)
}
