//! The checks of all areas, in one list.

use super::{
    Check, backends, cni, conntrack, dns, docker, invalid, ipvs, kernel, kube_proxy, nftables,
    tools, writers,
};

/// The checks of each area. The areas are in the order in which the documentation has them.
const AREAS: &[&[&Check]] = &[
    backends::CHECKS,
    cni::CHECKS,
    conntrack::CHECKS,
    dns::CHECKS,
    docker::CHECKS,
    invalid::CHECKS,
    ipvs::CHECKS,
    kernel::CHECKS,
    kube_proxy::CHECKS,
    nftables::CHECKS,
    tools::CHECKS,
    writers::CHECKS,
];

/// Every check, area by area.
pub fn all() -> impl Iterator<Item = &'static Check> {
    AREAS.iter().copied().flatten().copied()
}

/// The check that has this id.
pub fn find(id: &str) -> Option<&'static Check> {
    all().find(|check| check.id == id)
}

/// The checks that need no rules of the kernel: what they judge is in files, processes, programs,
/// modules and sysctls.
const WITHOUT_RULES: &[&str] = &[
    "backends.garbled",
    "cni.bridge-nf-call",
    "cni.configurations",
    "conntrack.be-liberal",
    "conntrack.drop",
    "conntrack.early-drop",
    "conntrack.insert-failed",
    "conntrack.table-full",
    "kernel.dummy",
    "kernel.ip-vs",
    "kernel.modules-at-boot",
    "kernel.nftables",
    "kernel.schedulers",
    "kernel.xt-ipvs",
    "kernel.xt-set",
    "kube-proxy.deprecated-flags",
    "kube-proxy.feature-gates",
    "kube-proxy.flags",
    "kube-proxy.instances",
    "kube-proxy.lookalikes",
    "kube-proxy.managed",
    "kube-proxy.mode-empty",
    "kube-proxy.prepared-stale",
    "kube-proxy.version",
    "tools.conntrack",
    "tools.disk-room",
    "tools.ipset",
    "tools.iptables",
    "tools.iptables-old",
    "tools.nft",
    "tools.privileges",
    "writers.boot-files",
    "writers.ferm",
    "writers.firewalld",
    "writers.lock",
    "writers.netfilter-persistent",
    "writers.nftables",
    "writers.puppet",
    "writers.shorewall",
    "writers.ufw",
];

/// The checks that look at services, or at the rules and sets of kube-proxy's own tables.
const OF_SERVICES: &[&str] = &[
    "conntrack.untranslated",
    "dns.endpoints",
    "dns.nodelocaldns",
    "dns.resolver",
    "ipvs.host-firewall",
    "ipvs.localhost-nodeports",
    "ipvs.service-address",
    "kernel.nftables-parts",
    "kube-proxy.api-server",
    "kube-proxy.both-in-force",
    "kube-proxy.leftover-reject",
    "nftables.input-closed",
    "nftables.forward-closed",
    "nftables.forward-closed-now",
    "nftables.node-port-addresses",
    "nftables.tables",
];

/// Whether the check `id` can be judged where nobody knows which services kube-proxy's tables serve.
pub(super) fn judges_without_services(id: &str) -> bool {
    !OF_SERVICES.contains(&id)
}

/// Whether the check `id` can be judged where the rules cannot be read.
pub(super) fn judges_without_rules(id: &str) -> bool {
    WITHOUT_RULES.contains(&id)
}

#[cfg(test)]
mod tests {
    use std::mem::discriminant;

    use super::*;
    use crate::checks::Facts;
    use crate::checks::testing::{Node, given};
    use crate::state::kube_proxy::Mode;

    #[test]
    fn what_looks_at_services_is_a_check() {
        for id in OF_SERVICES {
            assert!(find(id).is_some(), "{id} is no check");
        }
    }

    #[test]
    fn what_needs_no_rules_has_the_same_verdict_without() {
        for name in ["docker-iptables-1.30", "half-migrated-ipvs-1.20", "nftables-1.37"] {
            let whole = Node::captured(name).state();
            let mut bare = whole.clone();
            bare.rulesets.clear();
            bare.nft = Default::default();
            for to in [None, Some(Mode::Ipvs), Some(Mode::Nftables)] {
                for id in WITHOUT_RULES.iter().filter(|id| **id != "backends.garbled") {
                    let check = find(id).unwrap_or_else(|| panic!("{id} is no check"));
                    let verdict = |facts: &mut Facts<'_>| {
                        (check.applies)(facts).then(|| (check.evaluate)(facts))
                    };
                    let [with, without] =
                        [&whole, &bare].map(|state| given(state).to(to).facts(verdict));
                    // Some apply only where the rules show that a program is needed, and rules may be
                    // what shows that a part of the kernel is there.
                    if let (Some(with), Some(without)) = (with, without) {
                        let same = discriminant(&with) == discriminant(&without);
                        assert!(same, "{name}: {id} to {to:?}: {with:?}, {without:?}");
                    }
                }
            }
        }
    }
}
