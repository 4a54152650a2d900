//! Which packets are sent: from every kind of client to two frontends of each kind.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::kube_proxy::bridge::{Backends, Bridge, Frontend, NoEndpoint, PodSource, Reach};
use crate::state::Family;
use crate::state::ipvs::Protocol;

/// How many frontends of a kind are tried.
const OF_A_KIND: usize = 2;

/// How many endpoints a frontend that is tried has at most: each must be seen, and the modes choose
/// by chance.
const MOST_ENDPOINTS: usize = 64;

/// How many endpoints of a frontend connect to it themselves.
const ENDPOINTS_AS_CLIENTS: usize = 3;

/// How many addresses of a network are looked at for one that is free.
const MOST_HOSTS: usize = 70_000;

/// Where packets enter the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum EntryPoint {
    /// The node sends them itself.
    Node,
    /// By a link of pods.
    Pods,
    /// By the uplink.
    Outside,
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Client {
    /// A pod on the node.
    Pod,
    /// The pod that is the endpoint itself.
    Endpoint,
    /// The node.
    Node,
    /// A host outside of the cluster.
    Outside,
    /// A host outside of the cluster, in the source ranges of the service.
    InRange,
}

impl Client {
    pub(super) fn entry_point(self) -> EntryPoint {
        match self {
            Client::Pod | Client::Endpoint => EntryPoint::Pods,
            Client::Node => EntryPoint::Node,
            Client::Outside | Client::InRange => EntryPoint::Outside,
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Client::Pod => "a pod",
            Client::Endpoint => "its own endpoint",
            Client::Node => "the node",
            Client::Outside => "outside",
            Client::InRange => "outside, in its source ranges",
        })
    }
}

/// What becomes of a connection: where it goes, and whether another source is put into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    pub(super) endpoint: SocketAddr,
    pub(super) masqueraded: bool,
}

/// Example: `10.244.0.5:8080 masqueraded`.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.endpoint, if self.masqueraded { " masqueraded" } else { "" })
    }
}

/// A client and a frontend.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) frontend: Frontend,
    pub(super) client: Client,
    /// The addresses of the client. If a client stays with its endpoint, each one is another client.
    pub(super) sources: Vec<IpAddr>,
    /// The ways that the services of the node lead to expect.
    pub(super) expected: BTreeSet<Way>,
    pub(super) has_affinity: bool,
}

impl Case {
    /// Whether kube-proxy's rules lead the node itself nowhere, but to the address that it requests:
    /// those of 1.20 translate external addresses for all others alone. `by_rules` are their ways.
    pub(super) fn is_left_alone(&self, by_rules: &BTreeSet<Way>) -> bool {
        let requested = SocketAddr::new(self.frontend.address, self.frontend.port);
        self.client == Client::Node
            && !by_rules.is_empty()
            && by_rules.iter().all(|way| way.endpoint == requested)
            && !self.expected.iter().any(|way| way.endpoint == requested)
    }

    /// Whether the client is an endpoint that kube-proxy's rules do not lead back to itself. It runs on
    /// another node, and no connection of it to itself comes by this one. nftables mode since 1.36
    /// knows only the endpoints on the node for this.
    pub(super) fn is_elsewhere(&self, by_rules: &BTreeSet<Way>) -> bool {
        let back = by_rules.iter().find(|way| self.sources.contains(&way.endpoint.ip()));
        self.client == Client::Endpoint && back.is_some_and(|way| !way.masqueraded)
    }

    /// How many connections show all of `ways`, which are chosen by chance: one is missed once in a
    /// thousand million cases.
    pub(super) fn enough(ways: usize) -> usize {
        // It is below 2^11.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        match ways {
            0 | 1 => 4,
            n => {
                let n = u32::try_from(n).map_or(f64::from(u32::MAX), f64::from);
                (n * (21.0 + n.ln())) as usize
            }
        }
    }

    /// The source of the connection with this number. A client that is to stay connects twice.
    pub(super) fn source(&self, number: usize) -> Option<IpAddr> {
        let number = if self.has_affinity { number / 2 } else { number };
        self.sources.get(number % self.sources.len().max(1)).copied()
    }
}

/// Example: `10.96.0.10:53/udp from a pod (10.244.0.9)`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.frontend, self.client)?;
        self.sources.first().map_or(Ok(()), |source| write!(f, " ({source})"))
    }
}

/// The addresses of one family around the node.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) family: Family,
    /// The addresses of the node, the first one that of its uplink.
    pub(super) own: Vec<IpAddr>,
    /// An address of the node that it has nowhere else, and that packets get which are masqueraded.
    pub(super) masquerade: IpAddr,
    /// An address that no rule is for.
    pub(super) plain: IpAddr,
    /// A network of hosts outside.
    outside: IpNet,
    /// The addresses that are somebody's already.
    taken: BTreeSet<IpAddr>,
}

impl Surroundings {
    /// The surroundings in which this bridge is tried, with the node's addresses of its family; `None`
    /// if all networks that serve as an example are taken.
    pub(super) fn of(bridge: &Bridge, own: Vec<IpAddr>) -> Option<Surroundings> {
        let examples = match bridge.family {
            Family::Ipv4 => ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/16"],
            Family::Ipv6 => {
                ["2001:db8:6e6f::/64", "2001:db8:6465::/64", "100::/64", "2001:2:0:6e6f::/64"]
            }
        };
        let mut examples: Vec<IpNet> = examples.iter().filter_map(|e| e.parse().ok()).collect();
        let taken: BTreeSet<IpAddr> = taken(bridge, &own);
        examples.retain(|example| {
            let pods = match &bridge.pods {
                PodSource::Networks(networks) => networks.as_slice(),
                _ => &[],
            };
            !pods.iter().any(|pods| pods.contains(example) || example.contains(pods))
                && !taken.iter().any(|address| example.contains(address))
        });
        let ranges = || bridge.frontends.values().flat_map(|backends| &backends.source_ranges);
        let is_outside = |example: &&IpNet| !ranges().any(|range| range.contains(*example));
        let outside = *examples.iter().find(is_outside).or(examples.first())?;
        let mut hosts = hosts(&outside);
        let (masquerade, plain) = (hosts.next()?, hosts.next()?);
        Some(Surroundings { family: bridge.family, own, masquerade, plain, outside, taken })
    }

    /// The hosts outside.
    pub(super) fn hosts(&self) -> impl Iterator<Item = IpAddr> {
        hosts(&self.outside).skip(2)
    }
}

/// The addresses of hosts in a network. Its first address is not one of a host, in IPv6 either.
fn hosts(network: &IpNet) -> impl Iterator<Item = IpAddr> + use<> {
    let first = network.network();
    network.hosts().take(MOST_HOSTS).filter(move |address| *address != first)
}

/// The addresses that are somebody's already.
fn taken(bridge: &Bridge, own: &[IpAddr]) -> BTreeSet<IpAddr> {
    let served = bridge.frontends.keys().map(|frontend| frontend.address);
    let endpoints = bridge.frontends.values().flat_map(all_endpoints).map(|e| e.ip());
    own.iter().copied().chain(served).chain(endpoints).collect()
}

fn all_endpoints(backends: &Backends) -> impl Iterator<Item = &SocketAddr> {
    let elsewhere = match &backends.reach {
        Reach::Local { everywhere } => everywhere.as_ref(),
        _ => None,
    };
    backends.endpoints.iter().chain(elsewhere.into_iter().flatten())
}

/// What is alike in frontends of which a few are tried for all.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct FrontendKind {
    protocol: Protocol,
    is_loopback: bool,
    is_of_node: bool,
    /// None, one, or more of the endpoints for clients from outside, and for others.
    endpoints: [usize; 2],
    reach: u8,
    has_affinity: bool,
    has_ranges: bool,
    drops: bool,
}

impl FrontendKind {
    fn of(frontend: Frontend, backends: &Backends, own: &[IpAddr]) -> FrontendKind {
        let reach = match &backends.reach {
            Reach::Cluster => 0,
            Reach::Everyone => 1,
            Reach::Local { .. } => 2,
        };
        let endpoints = [backends.endpoints.len(), all_endpoints(backends).count()];
        FrontendKind {
            protocol: frontend.protocol,
            is_loopback: frontend.address.is_loopback(),
            is_of_node: own.contains(&frontend.address),
            endpoints: endpoints.map(|count| count.min(2)),
            reach,
            has_affinity: backends.has_affinity,
            has_ranges: !backends.source_ranges.is_empty(),
            drops: backends.without == NoEndpoint::Drop,
        }
    }
}

/// Two frontends of each kind, those with the fewest endpoints.
pub(super) fn chosen<'a>(bridge: &'a Bridge, own: &[IpAddr]) -> Vec<(Frontend, &'a Backends)> {
    let mut kinds: BTreeMap<FrontendKind, Vec<(Frontend, &Backends)>> = BTreeMap::new();
    for (frontend, backends) in &bridge.frontends {
        let kind = FrontendKind::of(*frontend, backends, own);
        kinds.entry(kind).or_default().push((*frontend, backends));
    }
    let few = |all: Vec<(Frontend, &'a Backends)>| {
        let count = |(_, backends): &(Frontend, &Backends)| all_endpoints(backends).count();
        let mut all: Vec<_> = all.into_iter().filter(|one| count(one) <= MOST_ENDPOINTS).collect();
        all.sort_by_key(count);
        all.truncate(OF_A_KIND);
        all
    };
    kinds.into_values().flat_map(few).collect()
}

/// The cases of one frontend.
pub(super) fn cases(
    bridge: &Bridge,
    around: &Surroundings,
    (frontend, backends): (Frontend, &Backends),
) -> Vec<Case> {
    let most = Case::enough(all_endpoints(backends).count());
    let many = if backends.has_affinity { most.div_ceil(2) } else { 1 };
    let free = |address: &IpAddr| !around.taken.contains(address);
    let is_pod = |address: &IpAddr| match &bridge.pods {
        PodSource::Networks(networks) => networks.iter().any(|net| net.contains(address)),
        _ => false,
    };
    let family = |net: &&IpNet| Family::of(net.addr()) == bridge.family;
    let pods: Vec<IpAddr> = match &bridge.pods {
        PodSource::Networks(networks) => {
            let hosts = networks.iter().filter(family).flat_map(hosts);
            hosts.filter(free).take(many).collect()
        }
        PodSource::Link(_) => around.hosts().take(many).collect(),
        PodSource::Unknown | PodSource::AllButNode => Vec::new(),
    };
    let ranges = backends.source_ranges.iter().filter(family);
    let in_range = ranges.flat_map(hosts).filter(|address| {
        free(address) && !is_pod(address) && !is_special(*address) && *address != around.masquerade
    });
    let in_range: Vec<IpAddr> = in_range.take(many).collect();
    let node = if around.own.contains(&frontend.address) || frontend.address.is_loopback() {
        Some(frontend.address)
    } else {
        around.own.first().copied()
    };
    let is_foreign = |address: &IpAddr| !around.own.contains(address) && !address.is_loopback();
    let endpoints = backends.endpoints.iter().map(SocketAddr::ip).filter(is_foreign);
    let endpoints: BTreeSet<IpAddr> = endpoints.take(ENDPOINTS_AS_CLIENTS).collect();
    let mut clients = vec![(Client::Node, Vec::from_iter(node))];
    if !frontend.address.is_loopback() {
        clients.extend([
            (Client::Pod, pods),
            (Client::Outside, around.hosts().take(many).collect()),
            (Client::InRange, in_range),
        ]);
        clients.extend(endpoints.into_iter().map(|one| (Client::Endpoint, vec![one])));
    }
    let case = |(client, sources): (Client, Vec<IpAddr>)| {
        let source = *sources.first()?;
        // A single client would see one endpoint of several, by chance.
        let too_few = backends.endpoints.len() > 1 && sources.len() < many;
        (!too_few).then(|| Case {
            frontend,
            client,
            expected: ways(&bridge.pods, backends, client, source),
            sources,
            has_affinity: backends.has_affinity,
        })
    };
    clients.into_iter().filter_map(case).collect()
}

/// Whether no host has the address, so that the kernel drops packets from it.
fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_loopback() || a.octets()[0] == 0 || a.octets()[0] >= 224,
        IpAddr::V6(a) => a.is_loopback() || a.is_unspecified() || a.is_multicast(),
    }
}

/// What new connections of a client get of these backends.
fn ways(pods: &PodSource, backends: &Backends, client: Client, source: IpAddr) -> BTreeSet<Way> {
    let ranges = &backends.source_ranges;
    if !ranges.is_empty() && !ranges.iter().any(|range| range.contains(&source)) {
        return BTreeSet::new();
    }
    let is_pod = match pods {
        PodSource::Networks(networks) => networks.iter().any(|net| net.contains(&source)),
        PodSource::Link(_) => client.entry_point() == EntryPoint::Pods,
        PodSource::AllButNode => client != Client::Node,
        PodSource::Unknown => false,
    };
    let (endpoints, masqueraded) = match &backends.reach {
        Reach::Everyone => (&backends.endpoints, true),
        Reach::Cluster => (&backends.endpoints, !is_pod && *pods != PodSource::Unknown),
        Reach::Local { everywhere } => {
            let all = everywhere.as_ref().unwrap_or(&backends.endpoints);
            match (is_pod, client) {
                (true, _) => (all, false),
                (false, Client::Node) => (all, true),
                (false, _) => (&backends.endpoints, false),
            }
        }
    };
    let way = |endpoint: &SocketAddr| Way {
        endpoint: *endpoint,
        masqueraded: masqueraded || endpoint.ip() == source,
    };
    endpoints.iter().map(way).collect()
}
