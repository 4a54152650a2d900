//! Facts that only a live node has, and no file of a snapshot.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::state::tools::ToolList;

/// Facts of a live node. A fact that was not probed, or had no answer, is none.
#[derive(Debug, Clone, Default)]
pub struct LiveFacts {
    /// kube-proxy's answer to `GET /proxyMode`.
    pub proxy_mode: Option<String>,
    /// The tools in the root of the kube-proxy process. Versions come from the package lists there:
    /// no program is run.
    pub kube_proxy_tools: Option<ToolList>,
    /// kube-proxy's own root, `/proc/PID/root`, when it runs in a container.
    pub kube_proxy_root: Option<String>,
    /// Lines of kube-proxy's log that report a missing tool or module, with the file.
    pub kube_proxy_complaints: Vec<String>,
    /// Bytes free in the store's file system.
    pub store_free: Option<u64>,
    /// True for root with the rights to change the network and to mount.
    pub privileged: bool,
    /// The time to get `/run/xtables.lock`; the whole wait if the lock was not free.
    pub lock_wait: Option<Duration>,
    /// The holder of `/run/xtables.lock`, if the lock was not free.
    pub lock_holder: Option<String>,
    /// The addresses that the CNI plugin host-local has leased to pods, if it is in use.
    pub pod_addresses: Option<BTreeSet<IpAddr>>,
    /// Kernel modules that are available without a change to the system.
    pub modules: Option<Modules>,
    /// systemd's units that start at boot: `netfilter-persistent.service`.
    pub enabled_units: Option<BTreeSet<String>>,
}

/// Where each kernel module is, in the order of search.
#[derive(Debug, Clone, Default)]
pub struct Modules {
    /// In `/proc/modules`.
    pub loaded: BTreeSet<String>,
    /// In `modules.builtin`, or `=y` in the kernel's configuration.
    pub built_in: BTreeSet<String>,
    /// In `modules.dep`.
    pub loadable: BTreeSet<String>,
    /// Named in `/etc/modules-load.d` or `/etc/modules`, so loaded again after a reboot.
    pub at_boot: BTreeSet<String>,
    /// True if all of these could be read: a module in none of them is then missing.
    pub complete: bool,
}

/// The availability of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Loaded.
    Loaded,
    /// Part of the kernel.
    BuiltIn,
    /// On the disk.
    Loadable,
    /// Nowhere.
    Missing,
    /// Not found, but not every list could be read.
    Unknown,
}

impl Modules {
    /// The availability of the module `name` (`-` and `_` are the same).
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
