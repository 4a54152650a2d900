//! ipvs mode: each service is a virtual server on an address of kube-ipvs0, and rules match ipsets.
//!
//! The virtual servers exist, and `/proxyMode` reports ipvs, seconds before kube-proxy switches its
//! rules over in a single restore.

mod reach;
mod services;

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Crossing, ModeSysctl, Precedence, ProxyMode, ROUTE_LOCALNET, ServiceFilter, rules};
use crate::kube_proxy::reach::PodSource;
use crate::kube_proxy::services::{ServiceKey, Services, StickyClients, Untold};
use crate::owners::component::KUBE_PROXY;
use crate::owners::matcher::Ownership;
use crate::state::affinity::AffinityLists;
use crate::state::ipvs::VirtualServerId;
use crate::state::kube_proxy::{ConfigEdit, KubeProxyConfig, Mode};
use crate::state::tools::Version;
use crate::state::{Backend, Family, NodeState};

/// The first kube-proxy that makes a virtual server to test whether ipvs works, and that requires
/// only the module of the configured scheduler (kubernetes PR 114669).
const PROBES: Version = Version { major: 1, minor: 27, patch: 0 };

/// The ipvs mode of kube-proxy.
pub(super) struct IpvsMode;

impl ProxyMode for IpvsMode {
    fn mode(&self) -> Mode {
        Mode::Ipvs
    }

    fn services_where(&self, state: &NodeState, wanted: &ServiceFilter<'_>) -> Services {
        services::read(state, wanted)
    }

    fn sticky_clients(&self, state: &NodeState, lists: &AffinityLists) -> StickyClients {
        services::sticky_clients(state, lists)
    }

    fn pods(&self, state: &NodeState, family: Family) -> PodSource {
        match rules::pods(state, family) {
            PodSource::Unknown => PodSource::AllButNode,
            source => source,
        }
    }

    fn untold(&self) -> &'static [Untold] {
        &[Untold::Names, Untold::EndpointsElsewhere]
    }

    fn evidence(&self, state: &NodeState, ownership: &Ownership<'_>) -> Option<String> {
        let is_cluster_set = |s: &str| Family::ALL.into_iter().any(|f| cluster_set(f) == s);
        rules::serving_rules(state, ownership).find_map(|(id, ruleset, rule)| {
            let sets = ruleset.words(rule).sets();
            let found = sets.iter().any(|set| is_cluster_set(set));
            found.then(|| format!("nat KUBE-SERVICES ({id}) matches the set {}", sets[0]))
        })
    }

    fn missing_objects(&self, state: &NodeState, family: Family) -> Option<String> {
        let set = cluster_set(family);
        if state.ipsets.get(set).is_none_or(|s| s.entries.is_empty()) {
            return Some(format!("{family}: the set {set} is empty"));
        }
        let found = rules::services_chains(state, family).any(|(ruleset, chain)| {
            let matches = |rule| ruleset.words(rule).sets().iter().any(|s| s == set);
            chain.rules.iter().any(matches)
        });
        (!found).then(|| format!("{family}: nat KUBE-SERVICES does not match the set {set} yet"))
    }

    fn has_started(&self, state: &NodeState, family: Family) -> bool {
        state.ipsets.get(cluster_set(family)).is_some()
    }

    /// Addresses of virtual servers that are on no link, so that packets do not reach them.
    fn missing_addresses(
        &self,
        state: &NodeState,
        before: &Services,
        now: &Services,
    ) -> Vec<String> {
        if state.links.is_empty() {
            return vec!["the links are not known".into()];
        }
        let links = state.links.iter().flat_map(|l| &l.addresses);
        let bound: HashSet<IpAddr> = links.map(IpNet::addr).collect();
        let served = now.keys().filter(|key| before.contains_key(key));
        let missing: BTreeSet<IpAddr> =
            served.filter_map(ServiceKey::address).filter(|a| !bound.contains(a)).collect();
        missing.iter().map(|a| format!("{a} is not on kube-ipvs0 yet")).collect()
    }

    /// Its virtual servers appear one by one.
    fn writes_family_at_once(&self) -> bool {
        false
    }

    fn uses_ipsets(&self) -> bool {
        true
    }

    fn has_virtual_servers(&self) -> bool {
        true
    }

    fn binds_addresses(&self) -> bool {
        true
    }

    fn drains(&self) -> bool {
        true
    }

    fn host_tools(&self) -> &'static [&'static str] {
        &["ipset", "ipvsadm"]
    }

    /// Old versions set `route_localnet` in this mode too (1.20 does). Later ones set
    /// `conn_reuse_mode` only on kernels before 5.9; the last two are set with `strictARP` alone.
    fn sysctls(&self) -> &'static [ModeSysctl] {
        &[
            ROUTE_LOCALNET,
            ModeSysctl {
                name: "net.ipv4.vs.conntrack",
                value: "1",
                default: "0",
                effect: "ipvs keeps conntrack entries of its connections",
            },
            ModeSysctl {
                name: "net.ipv4.vs.conn_reuse_mode",
                value: "0",
                default: "1",
                effect: "a client that uses a port again stays with its real server, also with one \
                         that is going away",
            },
            ModeSysctl {
                name: "net.ipv4.vs.expire_nodest_conn",
                value: "1",
                default: "0",
                effect: "connections to a real server that is gone end at once",
            },
            ModeSysctl {
                name: "net.ipv4.vs.expire_quiescent_template",
                value: "1",
                default: "0",
                effect: "affinity to a real server of weight 0 ends at once",
            },
            ModeSysctl {
                name: "net.ipv4.conf.all.arp_ignore",
                value: "1",
                default: "0",
                effect: "the node answers ARP only for addresses of the link that is asked",
            },
            ModeSysctl {
                name: "net.ipv4.conf.all.arp_announce",
                value: "2",
                default: "0",
                effect: "the node sends ARP requests with addresses of the link alone",
            },
        ]
    }

    fn precedence(&self, _: &NodeState, _: Family) -> Option<Precedence> {
        Some(Precedence::Ipvs)
    }

    /// Measured at 20 services alone, on an emulated CPU, where it took as long as the moves of
    /// iptables mode did there. That of iptables mode on legacy tables is taken: ipvs mode has few
    /// rules, and its virtual servers go in one call. Coming back, each is made by a call of its own.
    fn crossing(&self, _: Backend) -> Option<Crossing> {
        Some(Crossing {
            leaving: [(0.5, 1.5), (1.2, 5.0), (6.0, 24.0)],
            returning: [(0.4, 1.5), (0.9, 5.0), (2.5, 30.0)],
            first_sync: [(0.1, 0.6), (0.3, 3.0), (1.3, 25.0)],
        })
    }

    /// The modules of the schedulers: of the configured one, such as `ip_vs_lc`, and of those that
    /// versions before 1.27 ask for whatever is configured.
    fn modules(
        &self,
        config: Option<&KubeProxyConfig>,
        version: Option<Version>,
    ) -> BTreeSet<String> {
        let configured = config.and_then(|config| config.ipvs.scheduler.as_deref());
        let mut schedulers = vec![configured.unwrap_or("rr")];
        if version.is_none_or(|version| version < PROBES) {
            schedulers.extend(["rr", "wrr", "sh"]);
        }
        schedulers.into_iter().map(|scheduler| format!("ip_vs_{scheduler}")).collect()
    }

    /// Moves kube-proxy to ipvs mode, and excludes the addresses of foreign virtual servers, each
    /// written as a network of one address. Without the exclusion kube-proxy would take these
    /// virtual servers for its own and remove them.
    fn config_edit(&self, state: &NodeState, ownership: &Ownership<'_>) -> ConfigEdit {
        let foreign = state.ipvs.servers.iter().filter(|server| {
            ownership.virtual_server(&server.service).is_none_or(|owner| owner.name != KUBE_PROXY)
        });
        let networks = foreign.filter_map(|server| match server.service {
            VirtualServerId::Address { address, .. } => Some(IpNet::from(address.ip())),
            VirtualServerId::Fwmark { .. } => None,
        });
        let exclude = networks.collect::<BTreeSet<IpNet>>().into_iter().collect();
        ConfigEdit { mode: self.mode(), exclude }
    }

    fn last_version_of_chain(&self) -> Option<(&'static str, u32)> {
        Some(("KUBE-FIREWALL", 24))
    }
}

/// The ipset of a family's ClusterIPs.
fn cluster_set(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "KUBE-CLUSTER-IP",
        Family::Ipv6 => "KUBE-6-CLUSTER-IP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_that_is_configured_is_loaded() {
        let modules = |text, version| {
            let config = KubeProxyConfig::parse("config.conf", text).unwrap();
            Vec::from_iter(IpvsMode.modules(Some(&config), Version::find(version)))
        };
        assert_eq!(modules("ipvs: {scheduler: lc}\n", "1.27.0"), ["ip_vs_lc"]);
        assert_eq!(modules("ipvs: {scheduler: ''}\n", "1.30.5"), ["ip_vs_rr"]);
        let all = ["ip_vs_lc", "ip_vs_rr", "ip_vs_sh", "ip_vs_wrr"];
        for version in ["1.26.9", ""] {
            assert_eq!(modules("ipvs: {scheduler: lc}\n", version), all, "{version}");
        }
    }
}
