//! What only a live node can be asked, and what no file of a snapshot says.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::state::tools::Tools;

/// Answers of a live node; what was not asked, or not answered, is none.
#[derive(Debug, Clone, Default)]
pub struct LiveFacts {
    /// What kube-proxy answered to `GET /proxyMode`.
    pub proxy_mode: Option<String>,
    /// The tools as the kube-proxy process sees them, in its own root. Versions are those of the
    /// package lists found there: nothing is run.
    pub kube_proxy_tools: Option<Tools>,
    /// kube-proxy's own root, `/proc/PID/root`, when it is not this one: it runs in a container.
    pub kube_proxy_root: Option<String>,
    /// Lines of kube-proxy's log that tell of a tool or module that it lacks, with the file.
    pub kube_proxy_complaints: Vec<String>,
    /// Bytes free in the store's file system.
    pub store_free: Option<u64>,
    /// True for root with the rights to change the network and to mount.
    pub privileged: bool,
    /// How long it took to get `/run/xtables.lock`; the whole wait if it was not to be had.
    pub lock_wait: Option<Duration>,
    /// Who held `/run/xtables.lock`, if it was not to be had.
    pub lock_holder: Option<String>,
    /// The addresses that the CNI plugin host-local has leased to pods, if it is in use.
    pub pod_addresses: Option<BTreeSet<IpAddr>>,
    /// Kernel modules that can be had without a change to the system.
    pub modules: Option<Modules>,
    /// systemd's units that start at boot: `netfilter-persistent.service`.
    pub enabled_units: Option<BTreeSet<String>>,
}

/// Where each kernel module is, in the order in which it is looked for.
#[derive(Debug, Clone, Default)]
pub struct Modules {
    /// In `/proc/modules`.
    pub loaded: BTreeSet<String>,
    /// In `modules.builtin`, or `=y` in the kernel's configuration.
    pub built_in: BTreeSet<String>,
    /// In `modules.dep`.
    pub loadable: BTreeSet<String>,
    /// Named in `/etc/modules-load.d` or `/etc/modules`, so there again after a reboot.
    pub at_boot: BTreeSet<String>,
    /// True where every place was readable: what is nowhere is then really missing.
    pub complete: bool,
}

/// Where a module is.
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
    /// Not found, but not every place could be read.
    Unknown,
}

impl Modules {
    /// Where the module `name` is (`-` and `_` are the same).
    pub fn availability(&self, name: &str) -> Availability {
        let name = name.replace('-', "_");
        match () {
            () if self.loaded.contains(&name) => Availability::Loaded,
            () if self.built_in.contains(&name) => Availability::BuiltIn,
            () if self.loadable.contains(&name) => Availability::Loadable,
            () if self.complete => Availability::Missing,
            () => Availability::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_counts_and_nowhere_needs_every_place() {
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
