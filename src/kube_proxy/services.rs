//! The services that a node serves. Each mode of kube-proxy reads them from what the kernel holds.
//!
//! The same services read the same in every mode. Two modes can be compared, and a check can ask
//! which endpoints an address has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use crate::state::Family;
use crate::state::ipvs::Protocol;

/// Where a service answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On an address of its own: a ClusterIP, an external IP, a load balancer's address.
    Address(IpAddr),
    /// On addresses of the node: a NodePort.
    Node(Family),
}

/// What tells one service port from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ServiceKey {
    /// Where it answers.
    pub place: Place,
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

/// What stands behind a service port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Service {
    /// `namespace/name:port`, where the mode keeps it; ipvs does not.
    pub name: Option<String>,
    /// The endpoints that get new connections; for traffic from outside, where only local ones
    /// serve that, only those.
    pub backends: BTreeSet<SocketAddr>,
    /// Seconds that a client stays with its endpoint.
    pub affinity: Option<u32>,
    /// The only networks that may use it; empty if everyone may.
    pub source_ranges: BTreeSet<IpNet>,
    /// For a NodePort, the addresses it answers on, where the mode lists them.
    pub node_addresses: BTreeSet<IpAddr>,
}

/// Services by what they answer to.
pub type Services = BTreeMap<ServiceKey, Service>;

impl ServiceKey {
    /// A service port on an address of its own.
    pub fn at(address: SocketAddr, protocol: Protocol) -> ServiceKey {
        ServiceKey { place: Place::Address(address.ip()), port: address.port(), protocol }
    }

    /// Its own address; none for a NodePort.
    pub fn address(&self) -> Option<IpAddr> {
        match self.place {
            Place::Address(address) => Some(address),
            Place::Node(_) => None,
        }
    }
}

/// `10.96.0.10:53/udp`, `node port 30080/tcp`, `node port 30080/tcp (ipv6)`.
impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServiceKey { port, protocol, .. } = self;
        match self.place {
            Place::Address(address) => {
                write!(f, "{}/{protocol}", SocketAddr::new(address, *port))
            }
            Place::Node(Family::Ipv4) => write!(f, "node port {port}/{protocol}"),
            Place::Node(Family::Ipv6) => write!(f, "node port {port}/{protocol} (ipv6)"),
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
