//! Services, read from the virtual servers of ipvs mode.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::reach::Reaches;
use crate::kube_proxy::mode::ServiceFilter;
use crate::kube_proxy::services::{Location, ServiceKey, Services, StickyClients, protocol};
use crate::owners::servers::Servers;
use crate::state::affinity::AffinityLists;
use crate::state::ipvs::{PersistenceTemplate, Protocol, VirtualServerId as Virtual};
use crate::state::{Family, NodeState};

/// The node's services that `wanted` accepts.
pub(super) fn read(state: &NodeState, wanted: &ServiceFilter<'_>) -> Services {
    let mut found = Services::new();
    if state.ipvs.servers.is_empty() {
        return found;
    }
    let (served, reaches) = (Servers::of(state), Reaches::of(state));
    for server in state.ipvs.servers.iter().filter(|s| served.serves(s)) {
        let Virtual::Address { protocol, address } = server.service else { continue };
        let key = key(&served, protocol, address);
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

/// The service port that a virtual server serves.
fn key(served: &Servers, protocol: Protocol, address: SocketAddr) -> ServiceKey {
    let mut key = ServiceKey::at(address, protocol);
    if !served.is_bound(address.ip()) && served.is_node_port(protocol, address) {
        key.location = Location::Node(Family::of(address.ip()));
    }
    key
}

/// Which endpoint each client of a service stays with, as the templates of its virtual servers say.
pub(super) fn sticky_clients(state: &NodeState, lists: &AffinityLists) -> StickyClients {
    let (mut found, served) = (StickyClients::new(), Servers::of(state));
    for PersistenceTemplate { client, protocol, server, real } in lists.templates.iter().copied() {
        let clients = found.entry(key(&served, protocol, server)).or_default();
        clients.entry(client).or_insert(real);
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
