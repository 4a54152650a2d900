//! Facts that only a living node can answer, because no file of a snapshot holds them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::state::Family;
use crate::state::conntrack::ConntrackEntry;
use crate::state::kube_proxy::ProxyMetrics;
use crate::state::tools::ToolList;

/// The facts that were probed on a living node. A fact that was not probed, or got no answer, is
/// none.
#[derive(Debug, Clone, Default)]
pub struct LiveFacts {
    /// The text that kube-proxy answered to `GET /proxyMode`.
    pub proxy_mode: Option<String>,
    /// The tools in the root directory of the kube-proxy process. Their versions come from the
    /// package lists in that directory, because no program from that directory is run.
    pub kube_proxy_tools: Option<ToolList>,
    /// The path `/proc/PID/root` of kube-proxy's root directory, when kube-proxy runs in a
    /// container.
    pub kube_proxy_root: Option<String>,
    /// Log lines in which kube-proxy reports a missing tool or kernel module, each with the name of
    /// its log file.
    pub kube_proxy_complaints: Vec<String>,
    /// The last line of kube-proxy's logs that says why kube-proxy ended, with the name of its log
    /// file.
    pub kube_proxy_end: Option<String>,
    /// The free bytes in the file system of the store.
    pub store_free: Option<u64>,
    /// Whether proxyshift runs as root and may change the network and mount.
    pub privileged: bool,
    /// The time that it took to get `/run/xtables.lock`; the whole wait if the lock was never free.
    pub lock_wait: Option<Duration>,
    /// The process that held `/run/xtables.lock`, if the lock was never free during the wait.
    pub lock_holder: Option<String>,
    /// The addresses that the CNI plugin host-local has leased to pods; none if host-local is not
    /// in use.
    pub pod_addresses: Option<BTreeSet<IpAddr>>,
    /// The kernel modules that are loaded or can be loaded without installing anything.
    pub modules: Option<Modules>,
    /// The systemd units that start at boot: `netfilter-persistent.service`.
    pub enabled_units: Option<BTreeSet<String>>,
    /// What kube-proxy's metrics say.
    pub kube_proxy_metrics: Option<ProxyMetrics>,
    /// The entries of conntrack that are neither translated nor in use.
    pub untranslated_flows: Option<Vec<ConntrackEntry>>,
    /// How this kernel takes the expressions that nftables mode writes.
    pub nft_expressions: Option<Vec<ExpressionProbe>>,
}

/// How the kernel took an expression of nftables mode's rules, in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpressionProbe {
    /// The expression, as nft spells it.
    pub expression: &'static str,
    /// The address family of the table that it was in.
    pub family: Family,
    /// How it was taken.
    pub answer: ExpressionAnswer,
}

/// The kernel's answer to an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpressionAnswer {
    /// The kernel has it.
    Accepted,
    /// The kernel refused it; with what nft said.
    Refused(String),
    /// It was not tried, because that would load a kernel module.
    Untried,
}

/// The kernel modules of a node, grouped by where they were found. The first three lists are
/// searched in their order.
#[derive(Debug, Clone, Default)]
pub struct Modules {
    /// The modules in `/proc/modules`.
    pub loaded: BTreeSet<String>,
    /// The modules in `modules.builtin`, and those with `=y` in the kernel's configuration.
    pub built_in: BTreeSet<String>,
    /// The modules in `modules.dep`.
    pub loadable: BTreeSet<String>,
    /// The modules in `/etc/modules-load.d` or `/etc/modules`, which are loaded again after a
    /// reboot.
    pub at_boot: BTreeSet<String>,
    /// Whether enough lists could be read to conclude that the node lacks a module that is in none
    /// of them.
    pub complete: bool,
}

/// Whether a kernel module can be used, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// The module is loaded.
    Loaded,
    /// The module is built into the kernel.
    BuiltIn,
    /// The module is on the disk, and not loaded yet.
    Loadable,
    /// The node does not have the module.
    Missing,
    /// The module was not found, but not every list of modules could be read.
    Unknown,
}

impl Modules {
    /// The availability of the module `name`, in which `-` and `_` mean the same.
    pub fn availability(&self, name: &str) -> Availability {
        let name = name.replace('-', "_");
        if self.loaded.contains(&name) {
            Availability::Loaded
        } else if self.built_in.contains(&name) {
            Availability::BuiltIn
        } else if self.loadable.contains(&name) {
            Availability::Loadable
        } else if self.complete {
            Availability::Missing
        } else {
            Availability::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_location_counts_and_missing_needs_all() {
        let set = |name: &str| BTreeSet::from([name.to_owned()]);
        let mut modules = Modules {
            loaded: set("ip_vs"),
            built_in: set("dummy"),
            loadable: BTreeSet::from(["ip_vs".to_owned(), "ip_vs_rr".to_owned()]),
            ..Modules::default()
        };
        assert_eq!(modules.availability("ip_vs"), Availability::Loaded);
        assert_eq!(modules.availability("dummy"), Availability::BuiltIn);
        assert_eq!(modules.availability("ip-vs-rr"), Availability::Loadable);
        assert_eq!(modules.availability("xt_set"), Availability::Unknown);
        modules.complete = true;
        assert_eq!(modules.availability("xt_set"), Availability::Missing);
    }
}
