//! The services of a node. For each mode of kube-proxy they are read from objects of the kernel.
//!
//! All modes give the same data for the same services, so that two modes can be compared and a
//! check can look up the endpoints of an address.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use crate::kube_proxy::reach::{NoEndpoint, Reach};
use crate::state::Family;
use crate::state::ipvs::Protocol;

/// Where a service port answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Location {
    /// On one address of the service's own: a ClusterIP, an external IP, a load balancer's address.
    Address(IpAddr),
    /// On addresses of the node: the service port is a NodePort.
    Node(Family),
}

/// What identifies a service port: where it answers, its port and its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServiceKey {
    /// Where the service port answers.
    pub location: Location,
    /// The port number.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

/// What the kernel does for a service port: its endpoints and restrictions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// The service's `namespace/name:port`, if the mode keeps names; ipvs keeps none.
    pub name: Option<String>,
    /// The endpoints that get new connections. If only local endpoints serve traffic from outside,
    /// these are only the local ones.
    pub backends: BTreeSet<SocketAddr>,
    /// The timeout of session affinity, in seconds.
    pub affinity: Option<u32>,
    /// The only networks that may use the service; empty if everyone may.
    pub source_ranges: BTreeSet<IpNet>,
    /// The node's addresses that a NodePort answers on, if the mode lists them.
    pub node_addresses: BTreeSet<IpAddr>,
    /// Which clients are masqueraded, and which get other endpoints.
    pub reach: Reach,
    /// What a connection gets where there is no endpoint.
    pub without: NoEndpoint,
}

/// What the rules of a mode do not tell of services, so that it cannot be compared with another mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Untold {
    /// The names of services.
    Names,
    /// The source ranges of services without endpoints.
    RangesWithoutEndpoints,
    /// Which other endpoints pods and the node get of a service with the policy `Local`: the mode
    /// gives everybody the same ones.
    EndpointsElsewhere,
}

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Untold::Names => "the names of services",
            Untold::RangesWithoutEndpoints => "the source ranges of services without endpoints",
            Untold::EndpointsElsewhere => {
                "the endpoints on other nodes of services with the policy Local"
            }
        })
    }
}

/// Services, keyed by [`ServiceKey`].
pub type Services = BTreeMap<ServiceKey, ServicePort>;

/// The endpoint of each client that stays with one, for each service port.
pub type StickyClients = BTreeMap<ServiceKey, BTreeMap<IpAddr, SocketAddr>>;

impl ServiceKey {
    /// The key of a service port that answers on an address of its own.
    pub fn at(address: SocketAddr, protocol: Protocol) -> ServiceKey {
        ServiceKey { location: Location::Address(address.ip()), port: address.port(), protocol }
    }

    /// The address family in which the service port answers.
    pub fn family(&self) -> Family {
        match self.location {
            Location::Address(address) => Family::of(address),
            Location::Node(family) => family,
        }
    }

    /// The service's own address; `None` for a NodePort.
    pub fn address(&self) -> Option<IpAddr> {
        match self.location {
            Location::Address(address) => Some(address),
            Location::Node(_) => None,
        }
    }
}

/// Examples: `10.96.0.10:53/udp`, `node port 30080/tcp`, `node port 30080/tcp (ipv6)`.
impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServiceKey { port, protocol, .. } = self;
        match self.location {
            Location::Address(address) => {
                write!(f, "{}/{protocol}", SocketAddr::new(address, *port))
            }
            Location::Node(Family::Ipv4) => write!(f, "node port {port}/{protocol}"),
            Location::Node(Family::Ipv6) => write!(f, "node port {port}/{protocol} (ipv6)"),
        }
    }
}

/// The protocol that rules call `name`.
pub(super) fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}
