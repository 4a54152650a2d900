//! The bridge of a node: what the rules of its present mode tell of the services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Backends, Bridge, Frontend};
use crate::kube_proxy::mode::{self, ProxyMode};
use crate::kube_proxy::running::configured;
use crate::kube_proxy::services::{Location, ServiceKey, ServicePort};
use crate::state::affinity::AffinityLists;
use crate::state::kube_proxy::{IPVS_LINK, Mode};
use crate::state::{Family, NodeState};

impl Bridge {
    /// The bridges that serve what a mode serves on this node: one for each family in which the mode
    /// serves anything.
    pub fn of(state: &NodeState, mode: Mode) -> Vec<Bridge> {
        Bridge::with_clients(state, mode, &AffinityLists::default())
    }

    /// As [`Bridge::of`], with the clients that stay with an endpoint: `lists` has what the kernel keeps
    /// of them outside of `state`.
    pub fn with_clients(state: &NodeState, mode: Mode, lists: &AffinityLists) -> Vec<Bridge> {
        let mode = mode::of(mode);
        let mut sticky = mode.sticky_clients(state, lists);
        let config = configured(state).unwrap_or_default();
        let mark = mode.masquerading(&config).mark();
        let addresses = node_addresses(state, mode);
        let mut frontends: BTreeMap<Family, BTreeMap<Frontend, Backends>> = BTreeMap::new();
        let mut silent = Family::ALL.to_vec();
        silent.retain(|family| !mode.answers_node_ports(state, *family));
        let is_answered =
            |key: &ServiceKey| key.address().is_some() || !silent.contains(&key.family());
        for (key, service) in mode.services(state).into_iter().filter(|(key, _)| is_answered(key)) {
            let of_family = frontends.entry(key.family()).or_default();
            let clients = sticky.remove(&key).unwrap_or_default();
            let backends = Backends { clients, ..Backends::of(&service) };
            for address in answers_at(&key, &service, &addresses) {
                let ServiceKey { port, protocol, .. } = key;
                of_family.insert(Frontend { address, protocol, port }, backends.clone());
            }
        }
        let served = frontends.into_iter().filter(|(_, frontends)| !frontends.is_empty());
        let bridges = served.map(|(family, frontends)| {
            let pods = mode.pods(state, family);
            Bridge { family, mark, pods, frontends }
        });
        bridges.collect()
    }
}

/// How many clients stay with an endpoint of any service that the bridges serve.
pub fn sticky_clients(bridges: &[Bridge]) -> usize {
    let all = bridges.iter().flat_map(|bridge| bridge.frontends.values());
    all.flat_map(|backends| backends.clients.keys()).collect::<BTreeSet<_>>().len()
}

impl Backends {
    /// What new connections to a service port get.
    fn of(service: &ServicePort) -> Backends {
        Backends {
            endpoints: service.backends.clone(),
            reach: service.reach.clone(),
            has_affinity: service.affinity.is_some(),
            clients: BTreeMap::new(),
            source_ranges: service.source_ranges.iter().copied().collect(),
            without: service.without,
        }
    }
}

/// The addresses at which a service port answers; `of_node` are those of NodePorts that answer on
/// the whole node. On ::1 no mode serves them, and on the IPv4 loopback only what `of_node` has.
fn answers_at(key: &ServiceKey, service: &ServicePort, of_node: &[IpAddr]) -> Vec<IpAddr> {
    let Location::Node(family) = key.location else { return key.address().into_iter().collect() };
    let listed = service.node_addresses.iter().copied();
    let addresses = if service.node_addresses.is_empty() {
        of_node.to_vec()
    } else {
        listed.filter(|a| !a.is_loopback() || of_node.contains(a)).collect()
    };
    addresses.into_iter().filter(|a| a.is_ipv6() == (family == Family::Ipv6)).collect()
}

/// The addresses of the node on which NodePorts answer. Without those of IPv6 links: each link has
/// one, a pod's too, and NodePorts are not asked for there.
fn node_addresses(state: &NodeState, mode: &dyn ProxyMode) -> Vec<IpAddr> {
    let routed = || {
        let sysctls = state.sysctls()?;
        Some(sysctls.get("net.ipv4.conf.all.route_localnet")? == "1")
    };
    let has_localhost = mode.serves_localhost(state) && routed().unwrap_or(false);
    let links = state.links.iter().filter(|link| link.name != IPVS_LINK);
    let addresses = links.flat_map(|link| &link.addresses).map(ipnet::IpNet::addr);
    let served = addresses.filter(|address| match address {
        IpAddr::V4(own) => !own.is_loopback() || has_localhost,
        IpAddr::V6(own) => !own.is_loopback() && !own.is_unicast_link_local(),
    });
    served.collect()
}
