//! What Services show to clients outside of the cluster: NodePorts, health check NodePorts, external
//! addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::Facts;
use crate::kube_proxy::mode;
use crate::kube_proxy::services::{Location, ServiceKey};
use crate::state::ipvs::Protocol;
use crate::state::kube_proxy::IPVS_LINK;
use crate::state::{Family, NodeState};

/// A port that a node answers on, in one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodePort {
    pub(super) family: Family,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// What Services of a node show to the outside.
#[derive(Debug, Clone, Default)]
pub(super) struct Exposed {
    /// The NodePorts.
    pub(super) node_ports: BTreeSet<NodePort>,
    /// The health check NodePorts of load balancers, as far as rules name them.
    pub(super) health_checks: BTreeSet<NodePort>,
    /// The addresses of load balancers, and external IPs.
    pub(super) addresses: BTreeSet<(SocketAddr, Protocol)>,
}

impl Exposed {
    /// Reads the services of all modes that the kernel holds.
    pub(super) fn of(facts: &Facts<'_>) -> Exposed {
        let mut found = Exposed { health_checks: health_checks(facts.now), ..Exposed::default() };
        let inner = cluster_addresses(facts.now);
        for mode in &facts.running.serving {
            let wanted = |key: &ServiceKey, _: Option<&str>| {
                key.address().is_none_or(|address| !inner.contains(&address))
            };
            for key in mode::of(*mode).services_where(facts.now, &wanted).into_keys() {
                let ServiceKey { location, port, protocol } = key;
                match location {
                    Location::Node(family) => {
                        found.node_ports.insert(NodePort { family, protocol, port });
                    }
                    Location::Address(address) if !is_of_node(facts, address) => {
                        found.addresses.insert((SocketAddr::new(address, port), protocol));
                    }
                    Location::Address(_) => {}
                }
            }
        }
        found
    }

    /// All ports of a family, of NodePorts and health checks.
    pub(super) fn ports(&self, family: Family) -> BTreeSet<NodePort> {
        let all = self.node_ports.iter().chain(&self.health_checks);
        all.filter(|port| port.family == family).copied().collect()
    }
}

/// Whether an address is the node's own, and no service's: ipvs mode serves NodePorts on each.
fn is_of_node(facts: &Facts<'_>, address: IpAddr) -> bool {
    let links = facts.now.links.iter().filter(|link| link.name != IPVS_LINK);
    address.is_loopback() || links.flat_map(|link| &link.addresses).any(|own| own.addr() == address)
}

/// The ClusterIPs, as far as rules or sets tell them from other addresses: iptables mode by a comment,
/// ipvs and nftables mode by a set.
fn cluster_addresses(state: &NodeState) -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    for ruleset in state.rulesets.values() {
        for name in ["nat", "filter"] {
            let chain = ruleset.table(name).and_then(|table| table.chain("KUBE-SERVICES"));
            for words in chain.iter().flat_map(|c| &c.rules).map(|rule| ruleset.words(rule)) {
                let destination = words.value("-d").filter(|(negated, _)| !negated);
                let address =
                    destination.and_then(|(_, d)| d.split('/').next()?.parse::<IpAddr>().ok());
                // In filter, other addresses have the chain KUBE-EXTERNAL-SERVICES.
                let is_cluster_ip =
                    name == "filter" || words.comments().iter().any(|c| c.ends_with(" cluster IP"));
                found.extend(address.filter(|_| is_cluster_ip));
            }
        }
    }
    for set in state.ipsets.sets.iter().filter(|set| is_set_of(&set.name, "CLUSTER-IP")) {
        found
            .extend(set.entries.iter().filter_map(|e| e.split(',').next()?.parse::<IpAddr>().ok()));
    }
    for table in state.native_tables() {
        for set in
            table.of_kind("set").filter(|s| s.get("name").is_some_and(|n| n == "cluster-ips"))
        {
            let elements = set.get("elem").and_then(Value::as_array).into_iter().flatten();
            found.extend(elements.filter_map(|e| e.as_str()?.parse::<IpAddr>().ok()));
        }
    }
    found
}

/// Whether an ipset is kube-proxy's of that name, in either family.
fn is_set_of(set: &str, name: &str) -> bool {
    let rest = set.strip_prefix("KUBE-").map(|rest| rest.strip_prefix("6-").unwrap_or(rest));
    rest == Some(name)
}

/// The health check NodePorts: those that iptables mode accepts by rules, and ipvs mode by a set.
fn health_checks(state: &NodeState) -> BTreeSet<NodePort> {
    let mut found = BTreeSet::new();
    for (id, ruleset) in &state.rulesets {
        let chain = ruleset.table("filter").and_then(|table| table.chain("KUBE-NODEPORTS"));
        for rule in chain.iter().flat_map(|chain| &chain.rules) {
            let accepts = rule.target.as_deref() == Some("ACCEPT");
            let port = ruleset.words(rule).value("--dport").and_then(|(_, p)| p.parse().ok());
            found.extend(port.filter(|_| accepts).map(|port| health_check(id.family, port)));
        }
    }
    for set in state.ipsets.sets.iter().filter(|s| is_set_of(&s.name, "HEALTH-CHECK-NODE-PORT")) {
        let family = if set.name.starts_with("KUBE-6-") { Family::Ipv6 } else { Family::Ipv4 };
        let ports = set.entries.iter().filter_map(|e| e.split(' ').next()?.parse().ok());
        found.extend(ports.map(|port| health_check(family, port)));
    }
    found
}

/// Health checks are HTTP requests.
fn health_check(family: Family, port: u16) -> NodePort {
    NodePort { family, protocol: Protocol::Tcp, port }
}

/// The conditions of a rule of iptables that match these ports: a rule a protocol. Where a rule cannot
/// list them, it has the default range of NodePorts.
pub(super) fn port_conditions(ports: &BTreeSet<NodePort>) -> Vec<String> {
    /// How many ports a rule of the match multiport can list.
    const MOST: usize = 15;
    let mut conditions = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let of_protocol = ports.iter().filter(|port| port.protocol == protocol);
        let list: Vec<String> = of_protocol.map(|port| port.port.to_string()).collect();
        conditions.extend(match &list[..] {
            [] => None,
            [one] => Some(format!("-p {protocol} --dport {one}")),
            some if some.len() <= MOST => {
                Some(format!("-p {protocol} -m multiport --dports {}", some.join(",")))
            }
            _ => Some(format!("-p {protocol} --dport 30000:32767")),
        });
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node};

    fn exposed(name: &str) -> (Vec<String>, Vec<u16>, Vec<String>) {
        given(&node(name)).facts(|facts| {
            let found = Exposed::of(facts);
            let port = |p: &NodePort| format!("{} {}/{}", p.family, p.port, p.protocol);
            (
                found.node_ports.iter().map(port).collect(),
                found.health_checks.iter().map(|p| p.port).collect(),
                found.addresses.iter().map(|(a, p)| format!("{a}/{p}")).collect(),
            )
        })
    }

    #[test]
    fn each_mode_shows_what_is_exposed() {
        let outside = ["198.51.100.7:9000/tcp", "203.0.113.50:443/tcp"];
        for name in ["iptables-1.37", "nftables-1.37", "half-migrated-ipvs-1.20"] {
            let (ports, _, addresses) = exposed(name);
            assert!(ports.contains(&"ipv4 30080/tcp".to_owned()), "{name}: {ports:?}");
            assert_eq!(addresses, outside, "{name}");
        }
        assert_eq!(exposed("iptables-1.37").1, [30999]);
    }

    #[test]
    fn rules_list_ports_or_have_the_range() {
        let ports = |ports: &[u16]| -> BTreeSet<NodePort> {
            ports.iter().map(|port| health_check(Family::Ipv4, *port)).collect()
        };
        assert_eq!(port_conditions(&ports(&[30080])), ["-p tcp --dport 30080"]);
        let two = port_conditions(&ports(&[30999, 30080]));
        assert_eq!(two, ["-p tcp -m multiport --dports 30080,30999"]);
        let many: Vec<u16> = (30000..30016).collect();
        assert_eq!(port_conditions(&ports(&many)), ["-p tcp --dport 30000:32767"]);
        assert!(port_conditions(&BTreeSet::new()).is_empty());
    }
}
