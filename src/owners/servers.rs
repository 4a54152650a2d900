//! Which virtual servers are kube-proxy's, judged by the addresses on kube-ipvs0 and by
//! kube-proxy's ipsets.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use crate::state::NodeState;
use crate::state::ipvs::{Protocol, VirtualServer, VirtualServerId};

/// What kube-proxy serves in ipvs mode, read from the addresses on kube-ipvs0 and from kube-proxy's
/// ipsets.
pub(crate) struct Servers {
    bound: HashSet<IpAddr>,
    addresses: HashSet<(Protocol, SocketAddr)>,
    node_ports: HashSet<(Protocol, u16)>,
    local: HashSet<IpAddr>,
}

/// The names of the ipsets that hold service addresses, with the prefix `KUBE-` or `KUBE-6-`
/// removed.
const ADDRESS_SETS: [&str; 5] =
    ["CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "LOAD-BALANCER-LOCAL"];

impl Servers {
    pub(crate) fn of(state: &NodeState) -> Servers {
        let mut found = Servers {
            bound: HashSet::new(),
            addresses: HashSet::new(),
            node_ports: HashSet::new(),
            local: HashSet::new(),
        };
        for link in &state.links {
            let addresses = link.addresses.iter().map(ipnet::IpNet::addr);
            if link.name == "kube-ipvs0" {
                found.bound.extend(addresses);
            } else {
                found.local.extend(addresses);
            }
        }
        for set in &state.ipsets.sets {
            let Some(name) = set.name.strip_prefix("KUBE-") else { continue };
            let name = name.strip_prefix("6-").unwrap_or(name);
            let entries = set.entries.iter().filter_map(|e| e.split(' ').next());
            if ADDRESS_SETS.contains(&name) {
                found.addresses.extend(entries.filter_map(address_port));
            } else if let Some(protocol) = name.strip_prefix("NODE-PORT-") {
                let protocol = protocol.strip_prefix("LOCAL-").unwrap_or(protocol);
                for entry in entries {
                    found.add_node_port(protocol, entry);
                }
            }
        }
        found
    }

    fn add_node_port(&mut self, protocol: &str, entry: &str) {
        let protocol = match protocol {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            // For any other protocol the ipset has type hash:ip,port, and its entries hold the
            // node's addresses.
            _ => {
                self.addresses.extend(address_port(entry));
                return;
            }
        };
        self.node_ports.extend(ports(entry).map(|port| (protocol, port)));
    }

    /// True if the address is on kube-ipvs0.
    pub(crate) fn is_bound(&self, address: IpAddr) -> bool {
        self.bound.contains(&address)
    }

    /// True if the address is the node's and the port is a NodePort.
    pub(crate) fn is_node_port(&self, protocol: Protocol, address: SocketAddr) -> bool {
        self.local.contains(&address.ip()) && self.node_ports.contains(&(protocol, address.port()))
    }

    /// True if kube-proxy made the virtual server.
    pub(crate) fn serves(&self, server: &VirtualServer) -> bool {
        let VirtualServerId::Address { protocol, address } = server.service else { return false };
        self.bound.contains(&address.ip())
            || self.addresses.contains(&(protocol, address))
            || self.is_node_port(protocol, address)
    }
}

/// Reads an entry of a `bitmap:port` ipset: `30080`, or `30080-30082`.
pub(crate) fn ports(entry: &str) -> impl Iterator<Item = u16> {
    let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
    let both = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
    both.into_iter().flat_map(|(first, last)| first..=last)
}

/// Reads an entry of a `hash:ip,port` ipset: `10.96.0.10,tcp:53`.
pub(crate) fn address_port(entry: &str) -> Option<(Protocol, SocketAddr)> {
    let (address, port) = entry.split_once(',')?;
    let (protocol, port) = port.split_once(':')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some((protocol, SocketAddr::new(address.parse().ok()?, port.parse().ok()?)))
}
