//! Which conntrack entries lead past their service.
//!
//! The kernel asks the rules that translate for the first packet of a flow alone. So a flow that
//! began while nobody translated goes on missing its service long after the rules are right: with
//! TCP for 120 s, also when the client uses its port again; with UDP as long as the client sends. A
//! UDP flow also goes on to an endpoint that is gone.
//!
//! A connection by ipvs hangs after ipvs has flushed its virtual servers: over its old entry, which
//! ipvs wrote and nobody translates; or, where net.ipv4.vs.expire_nodest_conn is 1 and the kernel
//! deletes that, over a new one that was picked up in the midst while nobody translated. Without it
//! the next packet gets a reset of its endpoint, or goes on (tried on 6.1).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::kube_proxy::services::{Location, ServiceKey, ServicePort, Services};
use crate::state::Family;
use crate::state::conntrack::ConntrackEntry;
use crate::state::ipvs::{Protocol, VirtualServerId, VirtualServers};
use crate::state::links::Link;

/// Why an entry does not lead to its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staleness {
    /// The flow began while nobody translated it.
    Untranslated,
    /// It leads to what is no endpoint of the service.
    EndpointGone,
    /// ipvs translated it, and has no virtual server for its destination any more.
    ServerGone,
}

/// The services of a node, by what a conntrack entry has of them.
#[derive(Debug)]
pub struct ServiceDestinations<'a> {
    services: &'a Services,
    /// The endpoints of all service ports with a name. With a policy `Local` a service port lists
    /// those on this node alone, and pods get the others too.
    by_name: HashMap<&'a str, BTreeSet<SocketAddr>>,
    /// The addresses of the node, on which NodePorts answer.
    of_node: BTreeSet<IpAddr>,
    /// Where ipvs has virtual servers.
    by_ipvs: HashSet<VirtualServerId>,
}

impl<'a> ServiceDestinations<'a> {
    /// The destinations of `services` on a node with these links and virtual servers.
    pub fn new(
        services: &'a Services,
        links: &[Link],
        ipvs: &VirtualServers,
    ) -> ServiceDestinations<'a> {
        let mut by_name: HashMap<&str, BTreeSet<SocketAddr>> = HashMap::new();
        for service in services.values() {
            if let Some(name) = &service.name {
                by_name.entry(name).or_default().extend(&service.backends);
            }
        }
        let addresses = links.iter().flat_map(|link| &link.addresses).map(IpNet::addr);
        // No mode serves NodePorts on ::1.
        let of_node = addresses.filter(|address| *address != Ipv6Addr::LOCALHOST).collect();
        let by_ipvs = ipvs.servers.iter().map(|server| server.service).collect();
        ServiceDestinations { services, by_name, of_node, by_ipvs }
    }

    /// Why `entry` misses the service that its client sends to; `None` if it does not, if its
    /// destination is no service, or if deleting it could cut a connection: one of TCP or SCTP that
    /// is in use, or any that a program of the node answers on the port of a NodePort. A connection
    /// that ipvs translated hangs once its virtual server is gone: its peers are to get a reset.
    ///
    /// In ipvs mode too an entry that leads to a service is translated: ipvs writes the endpoint into
    /// it, or, if net.ipv4.vs.conntrack is 0, has no entry (tried on 6.1). Of others
    /// [`ServiceDestinations::is_served`] is to be asked also.
    pub fn staleness(&self, entry: &ConntrackEntry) -> Option<Staleness> {
        let (key, service) = self.service(entry.protocol, entry.destination)?;
        let (endpoints, is_translated) = (self.endpoints(service), entry.is_translated());
        if is_translated && !entry.is_by_nat && !self.has_virtual_server(entry) {
            return Some(Staleness::ServerGone);
        }
        // Without endpoints there is nothing to miss.
        if endpoints.contains(&entry.leads_to) || (endpoints.is_empty() && !is_translated) {
            return None;
        }
        let of_service = is_translated || key.address().is_some();
        if entry.in_use && !(entry.protocol == Protocol::Udp && of_service) {
            return None;
        }
        Some(if is_translated { Staleness::EndpointGone } else { Staleness::Untranslated })
    }

    /// Whether ipvs serves the client of `stale` all the same, as `other` shows: an entry in use from
    /// there to an endpoint. ipvs takes a packet whatever conntrack has of it, but cannot write into
    /// an entry that is there already, so such a connection has two; without the first it is reset
    /// (tried on 6.1). With UDP it is not served: its replies come from a wrong port.
    pub fn is_served(&self, stale: &ConntrackEntry, other: &ConntrackEntry) -> bool {
        let same_client = (other.protocol, other.client) == (stale.protocol, stale.client);
        if !same_client || !other.in_use || stale.protocol == Protocol::Udp {
            return false;
        }
        let service = self.service(stale.protocol, stale.destination);
        service.is_some_and(|(_, service)| self.endpoints(service).contains(&other.destination))
    }

    fn has_virtual_server(&self, entry: &ConntrackEntry) -> bool {
        let ConntrackEntry { protocol, destination: address, .. } = *entry;
        self.by_ipvs.contains(&VirtualServerId::Address { protocol, address })
    }

    /// The service port that takes new flows to `destination`.
    fn service(
        &self,
        protocol: Protocol,
        destination: SocketAddr,
    ) -> Option<(ServiceKey, &'a ServicePort)> {
        let key = ServiceKey::at(destination, protocol);
        if let Some(service) = self.services.get(&key) {
            return Some((key, service));
        }
        let address = destination.ip();
        let key = ServiceKey { location: Location::Node(Family::of(address)), ..key };
        let service = self.services.get(&key)?;
        let listed = Some(&service.node_addresses).filter(|listed| !listed.is_empty());
        listed.unwrap_or(&self.of_node).contains(&address).then_some((key, service))
    }

    /// The endpoints that a flow to a service port may lead to.
    fn endpoints<'s>(&'s self, service: &'s ServicePort) -> &'s BTreeSet<SocketAddr> {
        let named = service.name.as_deref().and_then(|name| self.by_name.get(name));
        named.unwrap_or(&service.backends)
    }
}

#[cfg(test)]
mod tests {
    use Protocol::{Sctp, Tcp, Udp};
    use Staleness::{EndpointGone, ServerGone, Untranslated};

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// The service ports of one service: its endpoints are `all`, those of policy `Local` are `local`.
    fn services(protocol: Protocol, all: &[&str], local: &[&str]) -> Services {
        let port = |endpoints: &[&str]| ServicePort {
            name: Some("shop/web:http".into()),
            backends: endpoints.iter().map(|text| at(text)).collect(),
            ..ServicePort::default()
        };
        let node = |family| ServiceKey { location: Location::Node(family), port: 30080, protocol };
        Services::from([
            (ServiceKey::at(at("10.96.0.10:80"), protocol), port(all)),
            (ServiceKey::at(at("[fd00:96::a]:80"), protocol), port(all)),
            (ServiceKey::at(at("198.51.100.4:80"), protocol), port(local)),
            (node(Family::Ipv4), port(local)),
            (node(Family::Ipv6), port(local)),
        ])
    }

    fn links() -> Vec<Link> {
        let addresses = ["192.168.0.1/24", "10.244.0.1/24", "fd00::1/64", "::1/128"];
        let addresses = addresses.map(|text| text.parse().unwrap()).into();
        vec![Link { addresses, ..Link::default() }]
    }

    const BEGINS: bool = false;
    const IN_USE: bool = true;

    fn entry(
        protocol: Protocol,
        [destination, leads_to]: [&str; 2],
        in_use: bool,
    ) -> ConntrackEntry {
        ConntrackEntry {
            protocol,
            client: at("10.0.0.1:4000"),
            destination: at(destination),
            leads_to: at(leads_to),
            arrives_as: at("10.0.0.1:4000"),
            is_by_nat: destination != leads_to,
            in_use,
            id: 1,
            zone: 0,
        }
    }

    /// The staleness of a flow to a destination that leads elsewhere, by these services.
    fn of(
        services: &Services,
        protocol: Protocol,
        way: [&str; 2],
        in_use: bool,
    ) -> Option<Staleness> {
        let destinations = ServiceDestinations::new(services, &links(), &VirtualServers::default());
        destinations.staleness(&entry(protocol, way, in_use))
    }

    const ENDPOINTS: [&str; 3] = ["10.244.0.5:8080", "10.244.7.5:8080", "[fd00:244::5]:8080"];
    const LOCAL: [&str; 1] = ["10.244.0.5:8080"];

    #[test]
    fn what_begins_and_leads_to_no_endpoint_is_stale() {
        for protocol in [Tcp, Udp, Sctp] {
            let services = services(protocol, &ENDPOINTS, &LOCAL);
            for (way, stale) in [
                (["10.96.0.10:80", "10.96.0.10:80"], Some(Untranslated)),
                (["10.96.0.10:80", "10.244.0.9:8080"], Some(EndpointGone)),
                (["10.96.0.10:80", "10.244.0.5:80"], Some(EndpointGone)),
                (["10.96.0.10:80", "10.244.0.5:8080"], None),
                (["[fd00:96::a]:80", "[fd00:96::a]:80"], Some(Untranslated)),
                (["[fd00:96::a]:80", "[fd00:244::5]:8080"], None),
                (["10.96.0.10:81", "10.96.0.10:81"], None),
                // Pods get all endpoints where the policy is Local.
                (["198.51.100.4:80", "10.244.7.5:8080"], None),
                (["198.51.100.4:80", "198.51.100.4:80"], Some(Untranslated)),
                // NodePorts, on the node's addresses alone.
                (["192.168.0.1:30080", "192.168.0.1:30080"], Some(Untranslated)),
                (["[fd00::1]:30080", "[fd00::1]:30080"], Some(Untranslated)),
                (["192.168.0.1:30080", "10.244.7.5:8080"], None),
                (["192.168.0.2:30080", "192.168.0.2:30080"], None),
                (["[::1]:30080", "[::1]:30080"], None),
            ] {
                assert_eq!(of(&services, protocol, way, BEGINS), stale, "{protocol} {way:?}");
            }
            let other = if protocol == Tcp { Udp } else { Tcp };
            let way = ["10.96.0.10:80", "10.96.0.10:80"];
            assert_eq!(of(&services, other, way, BEGINS), None, "{other}");
        }
    }

    #[test]
    fn a_connection_is_not_cut() {
        for protocol in [Tcp, Sctp] {
            let services = services(protocol, &ENDPOINTS, &LOCAL);
            for way in [
                ["10.96.0.10:80", "10.96.0.10:80"],
                ["10.96.0.10:80", "10.244.0.9:8080"],
                ["192.168.0.1:30080", "192.168.0.1:30080"],
            ] {
                assert_eq!(of(&services, protocol, way, IN_USE), None, "{protocol} {way:?}");
            }
        }
    }

    #[test]
    fn a_flow_of_udp_is_cut_unless_a_program_of_the_node_answers() {
        let services = services(Udp, &ENDPOINTS, &LOCAL);
        for (way, stale) in [
            (["10.96.0.10:80", "10.244.0.5:8080"], None),
            (["10.96.0.10:80", "10.244.0.9:8080"], Some(EndpointGone)),
            (["10.96.0.10:80", "10.96.0.10:80"], Some(Untranslated)),
            (["192.168.0.1:30080", "10.244.0.9:8080"], Some(EndpointGone)),
            (["192.168.0.1:30080", "192.168.0.1:30080"], None),
        ] {
            assert_eq!(of(&services, Udp, way, IN_USE), stale, "{way:?}");
        }
    }

    #[test]
    fn ipvs_may_serve_a_client_by_a_second_entry() {
        let services = services(Tcp, &ENDPOINTS, &LOCAL);
        let destinations =
            ServiceDestinations::new(&services, &links(), &VirtualServers::default());
        let stale = entry(Tcp, ["10.96.0.10:80"; 2], BEGINS);
        let endpoint = ["10.244.7.5:8080"; 2];
        let stranger =
            ConntrackEntry { client: at("10.0.0.1:4001"), ..entry(Tcp, endpoint, IN_USE) };
        for (other, served) in [
            (entry(Tcp, endpoint, IN_USE), true),
            (entry(Tcp, endpoint, BEGINS), false),
            (entry(Udp, endpoint, IN_USE), false),
            (entry(Tcp, ["10.244.7.6:8080"; 2], IN_USE), false),
            (stale.clone(), false),
            (stranger, false),
        ] {
            assert_eq!(destinations.is_served(&stale, &other), served, "{other}");
        }
        let services = self::services(Udp, &ENDPOINTS, &LOCAL);
        let destinations =
            ServiceDestinations::new(&services, &links(), &VirtualServers::default());
        let stale = entry(Udp, ["10.96.0.10:80"; 2], BEGINS);
        let other = entry(Udp, endpoint, IN_USE);
        assert!(!destinations.is_served(&stale, &other));
    }

    #[test]
    fn what_ipvs_translated_hangs_without_its_virtual_server() {
        let services = services(Tcp, &ENDPOINTS, &LOCAL);
        let text = "-A -t 10.96.0.10:80 -s rr\n";
        let server = VirtualServers::parse("ipvs.save", text).unwrap();
        let way = ["10.96.0.10:80", "10.244.0.5:8080"];
        let by_ipvs = ConntrackEntry { is_by_nat: false, ..entry(Tcp, way, IN_USE) };
        for (ipvs, stale) in [(server, None), (VirtualServers::default(), Some(ServerGone))] {
            let destinations = ServiceDestinations::new(&services, &links(), &ipvs);
            assert_eq!(destinations.staleness(&by_ipvs), stale);
        }
    }

    #[test]
    fn a_service_may_be_its_own_endpoint() {
        let own = ["10.96.0.10:80", "192.168.0.1:30080"];
        let services = services(Tcp, &own, &own);
        for destination in own {
            assert_eq!(of(&services, Tcp, [destination; 2], BEGINS), None, "{destination}");
        }
    }

    #[test]
    fn without_endpoints_there_is_nothing_to_miss() {
        let services = services(Udp, &[], &[]);
        for in_use in [BEGINS, IN_USE] {
            assert_eq!(of(&services, Udp, ["10.96.0.10:80"; 2], in_use), None);
            let way = ["10.96.0.10:80", "10.244.0.5:8080"];
            assert_eq!(of(&services, Udp, way, in_use), Some(EndpointGone));
        }
    }

    #[test]
    fn node_ports_answer_on_the_addresses_that_a_mode_lists() {
        let mut services = services(Tcp, &ENDPOINTS, &LOCAL);
        for service in services.values_mut() {
            service.node_addresses.insert("192.168.0.1".parse().unwrap());
        }
        for (destination, stale) in
            [("192.168.0.1:30080", Some(Untranslated)), ("10.244.0.1:30080", None)]
        {
            assert_eq!(of(&services, Tcp, [destination; 2], BEGINS), stale, "{destination}");
        }
    }
}
