//! The services of a node. Each mode of kube-proxy reads them from the kernel's objects.
//!
//! All modes give the same data for the same services. Two modes can be compared, and a check can
//! look up the endpoints of an address.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use crate::state::Family;
use crate::state::ipvs::Protocol;

/// The addresses of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Location {
    /// One address of its own: a ClusterIP, an external IP, a load balancer's address.
    Address(IpAddr),
    /// Addresses of the node: a NodePort.
    Node(Family),
}

/// The identity of a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServiceKey {
    /// Its addresses.
    pub location: Location,
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// A service port, with its endpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// `namespace/name:port`, where the mode keeps names; ipvs keeps none.
    pub name: Option<String>,
    /// The endpoints that get new connections. Where only local endpoints serve traffic from
    /// outside, only the local ones.
    pub backends: BTreeSet<SocketAddr>,
    /// The timeout of session affinity, in seconds.
    pub affinity: Option<u32>,
    /// The only networks that may use it; empty if everyone may.
    pub source_ranges: BTreeSet<IpNet>,
    /// The addresses of a NodePort, where the mode lists them.
    pub node_addresses: BTreeSet<IpAddr>,
}

/// Services by their keys.
pub type Services = BTreeMap<ServiceKey, ServicePort>;

impl ServiceKey {
    /// The key of a service port on an address of its own.
    pub fn at(address: SocketAddr, protocol: Protocol) -> ServiceKey {
        ServiceKey { location: Location::Address(address.ip()), port: address.port(), protocol }
    }

    /// Its own address; `None` for a NodePort.
    pub fn address(&self) -> Option<IpAddr> {
        match self.location {
            Location::Address(address) => Some(address),
            Location::Node(_) => None,
        }
    }
}

/// `10.96.0.10:53/udp`, `node port 30080/tcp`, `node port 30080/tcp (ipv6)`.
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

/// A protocol by its name in rules.
pub(super) fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}
