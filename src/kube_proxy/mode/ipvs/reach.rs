//! Who is masqueraded in ipvs mode, read from kube-proxy's ipsets and from the rule that matches the
//! ClusterIPs.

use std::collections::HashSet;
use std::net::SocketAddr;

use super::cluster_set;
use crate::kube_proxy::mode::rules::{self, MARK_MASQ};
use crate::kube_proxy::reach::Reach;
use crate::owners::servers::{address_port, ports};
use crate::state::ipvs::Protocol;
use crate::state::{Family, NodeState};

/// The service ports that are not reached as a ClusterIP is.
pub(super) struct Reaches {
    /// Addresses of the outside.
    everyone: HashSet<(Protocol, SocketAddr)>,
    /// Those of them whose policy is `Local`.
    local: HashSet<(Protocol, SocketAddr)>,
    /// NodePorts whose policy is `Local`.
    local_ports: HashSet<(Protocol, u16)>,
    /// The families in which everything that goes to a ClusterIP is masqueraded.
    masqueraded: Vec<Family>,
}

impl Reaches {
    pub(super) fn of(state: &NodeState) -> Reaches {
        let mut found = Reaches {
            everyone: HashSet::new(),
            local: HashSet::new(),
            local_ports: HashSet::new(),
            masqueraded: Family::ALL.into_iter().filter(|f| masquerades_all(state, *f)).collect(),
        };
        for set in &state.ipsets.sets {
            let Some(name) = set.name.strip_prefix("KUBE-") else { continue };
            let entries = || set.entries.iter().filter_map(|entry| entry.split(' ').next());
            let addresses = || entries().filter_map(address_port);
            match name.strip_prefix("6-").unwrap_or(name) {
                "EXTERNAL-IP" | "LOAD-BALANCER" => found.everyone.extend(addresses()),
                "EXTERNAL-IP-LOCAL" | "LOAD-BALANCER-LOCAL" => found.local.extend(addresses()),
                "NODE-PORT-LOCAL-TCP" => {
                    let ports = entries().flat_map(ports).map(|port| (Protocol::Tcp, port));
                    found.local_ports.extend(ports);
                }
                "NODE-PORT-LOCAL-UDP" => {
                    let ports = entries().flat_map(ports).map(|port| (Protocol::Udp, port));
                    found.local_ports.extend(ports);
                }
                // These have addresses too; the name of an IPv6 set is cut off.
                name if name.starts_with("NODE-PORT-LOCAL-SCTP") => {
                    found.local.extend(addresses());
                }
                name if name.starts_with("NODE-PORT-SCTP") => found.everyone.extend(addresses()),
                _ => {}
            }
        }
        found
    }

    /// From where a service port is reached. A virtual server gives everybody the same endpoints.
    pub(super) fn reach(&self, protocol: Protocol, at: SocketAddr, is_node_port: bool) -> Reach {
        let family = Family::of(at.ip());
        let is_local_port = || self.local_ports.contains(&(protocol, at.port()));
        if self.local.contains(&(protocol, at)) || is_node_port && is_local_port() {
            Reach::Local { everywhere: None }
        } else if is_node_port
            || self.everyone.contains(&(protocol, at))
            || self.masqueraded.contains(&family)
        {
            Reach::Everyone
        } else {
            Reach::Cluster
        }
    }
}

/// Whether everybody is masqueraded who connects to a ClusterIP (`masqueradeAll`).
fn masquerades_all(state: &NodeState, family: Family) -> bool {
    let chains = rules::services_chains(state, family);
    let mut rules = chains.flat_map(|(ruleset, chain)| {
        let marking = chain.rules.iter().filter(|r| r.target.as_deref() == Some(MARK_MASQ));
        marking.map(|rule| ruleset.words(rule))
    });
    rules.any(|words| {
        let terms = words.terms();
        let is_source = |option: &str| ["-s", "-i"].contains(&option);
        // `src,dst` is for the node's own connections alone.
        let own = terms.iter().find(|t| t.option == "--match-set");
        own.is_some_and(|t| t.values == [cluster_set(family), "dst,dst"])
            && !terms.iter().any(|t| is_source(t.option))
    })
}
