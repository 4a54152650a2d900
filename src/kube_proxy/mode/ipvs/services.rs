//! Services, read from the virtual servers of ipvs mode.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::reach::Reaches;
use crate::kube_proxy::mode::ServiceFilter;
use crate::kube_proxy::services::{Location, ServiceKey, Services, protocol};
use crate::owners::servers::Servers;
use crate::state::NodeState;
use crate::state::ipvs::{Protocol, VirtualServerId as Virtual};

/// The node's services that `wanted` accepts.
pub(super) fn read(state: &NodeState, wanted: &ServiceFilter<'_>) -> Services {
    let mut found = Services::new();
    if state.ipvs.servers.is_empty() {
        return found;
    }
    let (served, reaches) = (Servers::of(state), Reaches::of(state));
    for server in state.ipvs.servers.iter().filter(|s| served.serves(s)) {
        let Virtual::Address { protocol, address } = server.service else { continue };
        let mut key = ServiceKey::at(address, protocol);
        if !served.is_bound(address.ip()) && served.is_node_port(protocol, address) {
            key.location = Location::Node(server.service.family());
        }
        if !wanted(&key, None) {
            continue;
        }
        let service = found.entry(key).or_default();
        if let Location::Node(_) = key.location {
            service.node_addresses.insert(address.ip());
        }
        service.reach = reaches.reach(protocol, address, key.address().is_none());
        service.affinity = server.persistent;
        let ready = server.reals.iter().filter(|r| r.weight > 0);
        service.backends.extend(ready.map(|r| r.address));
    }
    for (key, range) in ranges(state) {
        if let Some(service) = found.get_mut(&key) {
            service.source_ranges.insert(range);
        }
    }
    found
}

/// The source ranges of load balancer addresses, each with the service port that it restricts.
fn ranges(state: &NodeState) -> impl Iterator<Item = (ServiceKey, IpNet)> {
    let sets = state.ipsets.sets.iter().filter(|s| {
        let name = s.name.strip_prefix("KUBE-").map(|n| n.strip_prefix("6-").unwrap_or(n));
        name.is_some_and(|n| n.starts_with("LOAD-BALANCER-SOURCE-"))
    });
    sets.flat_map(|s| &s.entries).filter_map(|entry| range(entry))
}

/// Reads an ipset entry of address, port and source range: `203.0.113.50,tcp:443,203.0.113.0/24`.
fn range(entry: &str) -> Option<(ServiceKey, IpNet)> {
    let mut parts = entry.split(' ').next()?.splitn(3, ',');
    let address: IpAddr = parts.next()?.parse().ok()?;
    let (name, port) = parts.next()?.split_once(':')?;
    let source = parts.next()?;
    let source = source.parse().or_else(|_| source.parse::<IpAddr>().map(IpNet::from)).ok()?;
    let protocol: Protocol = protocol(name)?;
    Some((ServiceKey::at(SocketAddr::new(address, port.parse().ok()?), protocol), source))
}
