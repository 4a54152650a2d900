//! The services of a node as the API has them: what kube-proxy serves once it knows.
//!
//! Which endpoints it chooses is of its `CategorizeEndpoints` (pkg/proxy/topology.go), without hints
//! of topology: endpoints of all zones count.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::kube_proxy::reach::{NoEndpoint, Reach};
use crate::kube_proxy::services::{Location, ServiceKey, Services};
use crate::state::Family;
use crate::state::api_objects::{
    ApiProtocol, ApiService, ApiServicePort, ApiServiceSpec, ApiSlice, TrafficPolicy, address,
};
use crate::state::ipvs::Protocol;

/// The services of a node as the API has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApiServices(HashMap<ServiceKey, ServedByApi>);

/// What new connections to a service port get, by the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedByApi {
    /// By which kind of address.
    pub kind: AddressKind,
    /// The endpoints; where the policy is `Local`, those on this node.
    pub endpoints: BTreeSet<SocketAddr>,
    /// All endpoints, where the policy of connections from outside is `Local`.
    pub everywhere: Option<BTreeSet<SocketAddr>>,
    /// Whether a client stays with its endpoint.
    pub has_affinity: bool,
    /// The only networks that may connect; empty if all may.
    pub source_ranges: Vec<IpNet>,
    /// What a connection gets where there is no endpoint.
    pub without: NoEndpoint,
}

/// By which kind of address a service port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressKind {
    /// By a ClusterIP.
    Inside,
    /// By an external IP, an address of a load balancer, or a NodePort.
    Outside,
}

impl ServedByApi {
    /// Which clients are masqueraded, and which get other endpoints. `masquerades_all` is whether
    /// kube-proxy is told to masquerade everybody.
    pub fn reach(&self, masquerades_all: bool) -> Reach {
        match (self.kind, &self.everywhere) {
            (AddressKind::Inside, _) if masquerades_all => Reach::Everyone,
            (AddressKind::Inside, _) => Reach::Cluster,
            (AddressKind::Outside, None) => Reach::Everyone,
            (AddressKind::Outside, Some(everywhere)) => {
                Reach::Local { everywhere: Some(everywhere.clone()) }
            }
        }
    }

    /// Whether anybody gets an endpoint.
    pub fn has_endpoints(&self) -> bool {
        !self.endpoints.is_empty() || self.everywhere.as_ref().is_some_and(|all| !all.is_empty())
    }

    /// Whether somebody gets this endpoint.
    fn leads_to(&self, endpoint: &SocketAddr) -> bool {
        let elsewhere = self.everywhere.as_ref();
        self.endpoints.contains(endpoint) || elsewhere.is_some_and(|all| all.contains(endpoint))
    }
}

/// An endpoint of a port, with what its slice tells of it.
#[derive(Clone, Copy)]
struct Candidate {
    at: SocketAddr,
    is_local: bool,
    is_ready: bool,
    serves_while_terminating: bool,
}

/// The endpoints of the slices, by what a port of a Service names.
type Candidates<'a> = HashMap<(&'a str, &'a str, &'a str, Protocol, Family), Vec<Candidate>>;

impl ApiServices {
    /// The services of the node `node` by these Services and EndpointSlices.
    pub fn of<'a>(
        services: impl Iterator<Item = &'a ApiService>,
        slices: impl Iterator<Item = &'a ApiSlice>,
        node: &str,
    ) -> ApiServices {
        let candidates = candidates(slices, node);
        let mut served = ApiServices::default();
        for service in services.filter(|s| s.spec.kind != "ExternalName") {
            for cluster_ip in service.spec.cluster_ips.iter().filter_map(|ip| address(ip)) {
                for port in &service.spec.ports {
                    served.add(service, port, cluster_ip, &candidates);
                }
            }
        }
        served
    }

    /// Adds what a port of a Service is served at in the family of one of its ClusterIPs.
    fn add(
        &mut self,
        service: &ApiService,
        port: &ApiServicePort,
        cluster_ip: IpAddr,
        candidates: &Candidates<'_>,
    ) {
        let (family, protocol) = (Family::of(cluster_ip), port.protocol.into());
        let ApiService { metadata, spec, status } = service;
        let names = (metadata.namespace.as_str(), metadata.name.as_str(), port.name.as_str());
        let key = (names.0, names.1, names.2, protocol, family);
        let all = candidates.get(&key).map_or(&[][..], Vec::as_slice);
        let at = |address, port| ServiceKey::at(SocketAddr::new(address, port), protocol);
        self.0.insert(at(cluster_ip, port.port), inside(spec, all));
        let outside = outside(spec, all);
        for external in of_family(&spec.external_ips, family) {
            self.0.insert(at(external, port.port), outside.clone());
        }
        let is_served = |ip_mode: &str| ip_mode != "Proxy";
        let ingress = status.load_balancer.ingress.iter().filter(|i| is_served(&i.ip_mode));
        let balanced = ServedByApi { source_ranges: ranges(spec, family), ..outside.clone() };
        for ingress in of_family(ingress.map(|ingress| &ingress.ip), family) {
            self.0.insert(at(ingress, port.port), balanced.clone());
        }
        if port.node_port != 0 {
            let key =
                ServiceKey { location: Location::Node(family), port: port.node_port, protocol };
            self.0.insert(key, outside);
        }
    }

    /// What the API has of the service port at an address; of a NodePort, if it has no service at the
    /// address itself.
    pub fn at(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<&ServedByApi> {
        let key = ServiceKey::at(SocketAddr::new(address, port), protocol);
        let of_node = ServiceKey { location: Location::Node(Family::of(address)), ..key };
        self.0.get(&key).or_else(|| self.0.get(&of_node))
    }

    /// Those of `services` that the API still has, each with those of its endpoints that it still has.
    pub fn still_served(&self, services: &Services) -> Services {
        let kept = services.iter().filter_map(|(key, service)| {
            let now = self.0.get(key)?;
            let mut service = service.clone();
            service.backends.retain(|endpoint| now.leads_to(endpoint));
            if let Reach::Local { everywhere: Some(everywhere) } = &mut service.reach {
                everywhere.retain(|endpoint| now.leads_to(endpoint));
            }
            Some((*key, service))
        });
        kept.collect()
    }
}

/// What a ClusterIP is served with.
fn inside(spec: &ApiServiceSpec, all: &[Candidate]) -> ServedByApi {
    let is_local = spec.internal_traffic_policy == TrafficPolicy::Local;
    served(spec, all, is_local, AddressKind::Inside)
}

/// What all other addresses are served with.
fn outside(spec: &ApiServiceSpec, all: &[Candidate]) -> ServedByApi {
    let is_local = spec.external_traffic_policy == TrafficPolicy::Local;
    served(spec, all, is_local, AddressKind::Outside)
}

fn served(
    spec: &ApiServiceSpec,
    all: &[Candidate],
    is_local: bool,
    kind: AddressKind,
) -> ServedByApi {
    let everywhere = chosen(all.iter());
    let endpoints =
        if is_local { chosen(all.iter().filter(|c| c.is_local)) } else { everywhere.clone() };
    // Of what has endpoints, but none on this node that the policy demands, nothing is heard.
    let is_dropped = endpoints.is_empty() && !everywhere.is_empty();
    ServedByApi {
        kind,
        without: if is_dropped { NoEndpoint::Drop } else { NoEndpoint::Reject },
        everywhere: (is_local && kind == AddressKind::Outside).then_some(everywhere),
        has_affinity: spec.session_affinity == "ClientIP",
        source_ranges: Vec::new(),
        endpoints,
    }
}

/// The endpoints that get connections: the ready ones, or, if there are none, those that still serve
/// while they terminate.
fn chosen<'a>(all: impl Iterator<Item = &'a Candidate> + Clone) -> BTreeSet<SocketAddr> {
    let of = |wanted: fn(&&Candidate) -> bool| all.clone().filter(wanted).map(|c| c.at).collect();
    let ready: BTreeSet<SocketAddr> = of(|candidate| candidate.is_ready);
    if ready.is_empty() { of(|candidate| candidate.serves_while_terminating) } else { ready }
}

/// The networks that may use a load balancer's addresses of a family; none if all may.
fn ranges(spec: &ApiServiceSpec, family: Family) -> Vec<IpNet> {
    let parsed = spec.load_balancer_source_ranges.iter().filter_map(|net| net.trim().parse().ok());
    let own: Vec<IpNet> = parsed.filter(|net: &IpNet| Family::of(net.addr()) == family).collect();
    let is_open = own.iter().any(|net| net.prefix_len() == 0);
    if is_open { Vec::new() } else { IpNet::aggregate(&own) }
}

fn of_family<'a>(
    addresses: impl IntoIterator<Item = &'a String>,
    family: Family,
) -> impl Iterator<Item = IpAddr> {
    let parsed = addresses.into_iter().filter_map(|text| address(text));
    parsed.filter(move |address| Family::of(*address) == family)
}

/// The endpoints of all slices.
fn candidates<'a>(slices: impl Iterator<Item = &'a ApiSlice>, node: &str) -> Candidates<'a> {
    let mut found: Candidates<'a> = HashMap::new();
    for slice in slices {
        let Some((service, family)) =
            slice.metadata.labels.service_name.as_deref().zip(slice.family())
        else {
            continue;
        };
        for port in &slice.ports {
            let Some(number) = port.port else { continue };
            let key = (
                slice.metadata.namespace.as_str(),
                service,
                port.name.as_str(),
                protocol(port.protocol),
                family,
            );
            let of_port = found.entry(key).or_default();
            of_port.extend(slice.endpoints.iter().filter_map(|endpoint| {
                let address = endpoint.addresses.first().and_then(|text| address(text))?;
                (Family::of(address) == family).then(|| Candidate {
                    at: SocketAddr::new(address, number),
                    is_local: endpoint.node_name.as_deref() == Some(node),
                    is_ready: endpoint.conditions.is_ready(),
                    serves_while_terminating: endpoint.conditions.serves_while_terminating(),
                })
            }));
        }
    }
    found
}

fn protocol(protocol: ApiProtocol) -> Protocol {
    protocol.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_proxy::services::ServicePort;

    const NODE: &str = "node-1";

    /// A Service `shop/web` of both families with more lines of its spec, and its slices with these
    /// endpoints: an address, a node, and conditions.
    fn services(spec: &str, endpoints: &[(&str, &str, &str)]) -> ApiServices {
        let service = format!(
            r#"{{"metadata": {{"namespace": "shop", "name": "web"}}, "spec": {{
                "clusterIPs": ["10.96.0.10", "fd00:96::a"], {spec}
                "ports": [{{"name": "http", "port": 80, "nodePort": 30080}}]}},
                "status": {{"loadBalancer": {{"ingress": [{{"ip": "198.51.100.4", "ipMode": "VIP"}},
                    {{"ip": "198.51.100.5", "ipMode": "Proxy"}}, {{"hostname": "x"}}]}}}}}}"#
        );
        let slices = [("IPv4", '.'), ("IPv6", ':')].map(|(kind, mark)| {
            let own = endpoints.iter().filter(|(address, ..)| address.contains(mark));
            let own = own.map(|(address, node, conditions)| {
                format!(
                    r#"{{"addresses": ["{address}"], "nodeName": "{node}",
                        "conditions": {{{conditions}}}}}"#
                )
            });
            let own: Vec<String> = own.collect();
            format!(
                r#"{{"metadata": {{"namespace": "shop", "name": "web-{kind}",
                    "labels": {{"kubernetes.io/service-name": "web"}}}}, "addressType": "{kind}",
                    "ports": [{{"name": "other", "port": 1}}, {{"name": "http", "port": 8080}}],
                    "endpoints": [{}]}}"#,
                own.join(", ")
            )
        });
        let service: ApiService = serde_json::from_str(&service).unwrap();
        let slices = slices.map(|slice| serde_json::from_str::<ApiSlice>(&slice).unwrap());
        ApiServices::of([service].iter(), slices.iter(), NODE)
    }

    fn at<'a>(services: &'a ApiServices, address: &str, port: u16) -> Option<&'a ServedByApi> {
        services.at(address.parse().unwrap(), port, Protocol::Tcp)
    }

    fn texts(endpoints: &BTreeSet<SocketAddr>) -> Vec<String> {
        endpoints.iter().map(ToString::to_string).collect()
    }

    const READY: &str = r#""ready": true"#;
    const GONE: &str = r#""ready": false, "serving": false, "terminating": true"#;
    const ENDING: &str = r#""ready": false, "serving": true, "terminating": true"#;
    const STARTING: &str = r#""ready": false, "serving": false"#;

    #[test]
    fn ready_endpoints_are_chosen_and_else_those_that_serve_while_they_end() {
        for (endpoints, chosen) in [
            (
                &[("10.244.0.1", NODE, READY), ("10.244.0.2", "b", ENDING)][..],
                &["10.244.0.1:8080"][..],
            ),
            (&[("10.244.0.1", NODE, ENDING), ("10.244.0.2", "b", GONE)], &["10.244.0.1:8080"]),
            (&[("10.244.0.1", NODE, GONE), ("10.244.0.2", "b", STARTING)], &[]),
            (&[("10.244.0.1", NODE, ""), ("fd00::1", "b", READY)], &["10.244.0.1:8080"]),
            (&[("10.244.0.1x", NODE, READY)], &[]),
            (&[], &[]),
        ] {
            let services = services("", endpoints);
            for (address, port) in
                [("10.96.0.10", 80), ("198.51.100.4", 80), ("192.168.0.1", 30080)]
            {
                let found = at(&services, address, port).unwrap();
                assert_eq!(texts(&found.endpoints), chosen, "{address} {endpoints:?}");
                assert_eq!(found.without, NoEndpoint::Reject);
                assert_eq!(found.has_endpoints(), !chosen.is_empty());
            }
        }
        let services = services("", &[("fd00::1", NODE, READY)]);
        assert_eq!(texts(&at(&services, "fd00:96::a", 80).unwrap().endpoints), ["[fd00::1]:8080"]);
        assert_eq!(at(&services, "198.51.100.5", 80), None, "nodes do not answer there");
        assert_eq!(at(&services, "10.96.0.10", 81), None);
        assert_eq!(services.at("10.96.0.10".parse().unwrap(), 80, Protocol::Udp), None);
    }

    #[test]
    fn policies_choose_by_the_node() {
        let local = r#""externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
            "sessionAffinity": "ClientIP","#;
        let both = [("10.244.0.1", NODE, ENDING), ("10.244.0.2", "b", READY)];
        let here = services(local, &both);
        for (address, port, everywhere) in
            [("10.96.0.10", 80, false), ("198.51.100.4", 80, true), ("192.168.0.1", 30080, true)]
        {
            let found = at(&here, address, port).unwrap();
            assert_eq!(texts(&found.endpoints), ["10.244.0.1:8080"], "{address}");
            let elsewhere = found.everywhere.as_ref().map(texts);
            assert_eq!(elsewhere, everywhere.then(|| vec!["10.244.0.2:8080".to_owned()]));
            assert!(found.has_affinity);
        }
        let elsewhere = services(local, &both[1..]);
        let inside = at(&elsewhere, "10.96.0.10", 80).unwrap();
        assert_eq!((inside.endpoints.len(), inside.without), (0, NoEndpoint::Drop));
        let outside = at(&elsewhere, "192.168.0.1", 30080).unwrap();
        assert_eq!((outside.endpoints.len(), outside.without), (0, NoEndpoint::Drop));
        assert!(outside.has_endpoints(), "pods and the node get the other");
        let none = services(local, &[]);
        assert_eq!(at(&none, "192.168.0.1", 30080).unwrap().without, NoEndpoint::Reject);
    }

    #[test]
    fn ranges_are_those_of_the_family_and_do_not_overlap() {
        let spec = |ranges: &str| format!(r#""loadBalancerSourceRanges": [{ranges}],"#);
        for (ranges, expected) in [
            (
                r#""10.0.0.0/8", "10.1.0.0/16", " 192.0.2.0/24", "fd00::/8""#,
                "10.0.0.0/8 192.0.2.0/24",
            ),
            (r#""10.0.0.0/8", "0.0.0.0/0""#, ""),
            (r#""fd00::/8""#, ""),
        ] {
            let services = services(&spec(ranges), &[]);
            let of = |address: &str, port| {
                let found = at(&services, address, port).unwrap();
                found.source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            };
            assert_eq!(of("198.51.100.4", 80), expected, "{ranges}");
            assert_eq!(
                (of("10.96.0.10", 80), of("10.0.0.1", 30080)),
                (String::new(), String::new())
            );
        }
    }

    #[test]
    fn what_the_api_has_no_more_is_not_expected() {
        let [kept, gone, other] = ["10.244.0.1:8080", "10.244.0.9:8080", "10.244.0.2:8080"]
            .map(|text| text.parse::<SocketAddr>().unwrap());
        let port = |reach: Reach, backends: &[SocketAddr]| ServicePort {
            backends: backends.iter().copied().collect(),
            reach,
            ..ServicePort::default()
        };
        let key = |address: &str| ServiceKey::at(address.parse().unwrap(), Protocol::Tcp);
        let everywhere = Some([kept, gone, other].into());
        let node = ServiceKey {
            location: Location::Node(Family::Ipv4),
            port: 30080,
            protocol: Protocol::Tcp,
        };
        let before = Services::from([
            (key("10.96.0.10:80"), port(Reach::Cluster, &[kept, gone])),
            (key("10.96.0.99:80"), port(Reach::Cluster, &[kept])),
            (node, port(Reach::Local { everywhere }, &[kept, gone])),
        ]);
        let both = [("10.244.0.1", NODE, READY), ("10.244.0.2", "b", READY)];
        let local = services(r#""externalTrafficPolicy": "Local","#, &both);
        let still = local.still_served(&before);
        assert_eq!(still.len(), 2);
        assert_eq!(still[&key("10.96.0.10:80")], port(Reach::Cluster, &[kept]));
        let everywhere = Some([kept, other].into());
        assert_eq!(still[&node], port(Reach::Local { everywhere }, &[kept]));
        let scaled = services("", &[]).still_served(&before);
        assert!(scaled.values().all(|service| service.backends.is_empty()), "{scaled:?}");
    }
}
