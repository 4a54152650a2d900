//! The services that a node serves, read from what the kernel holds in each mode of kube-proxy.
//!
//! The same services read the same way in every mode, so two modes can be compared, and a check
//! can ask who stands behind an address.

mod iptables;
mod ipvs;
mod nftables;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;

use crate::state::ipvs::Protocol;
use crate::state::kube_proxy::Mode;
use crate::state::{Family, NodeState};

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

/// The services as the kernel serves them in `mode`; none in userspace mode, where a process
/// alone knows them.
pub fn services(state: &NodeState, mode: Mode) -> Services {
    services_where(state, mode, |_, _| true)
}

/// As [`services`], but only those whose key, and name if there is one, `wanted` takes: cheap
/// where there are many.
pub fn services_where(
    state: &NodeState,
    mode: Mode,
    wanted: impl Fn(&ServiceKey, Option<&str>) -> bool,
) -> Services {
    match mode {
        Mode::Iptables => iptables::services(state, &wanted),
        Mode::Ipvs => ipvs::services(state, &wanted),
        Mode::Nftables => nftables::services(state, &wanted),
        Mode::Userspace => Services::new(),
    }
}

/// The endpoints in the chains of iptables mode by the service's name, whether or not anything
/// still leads to them: what is left of them after a change of mode.
pub fn chains_by_name(state: &NodeState) -> BTreeMap<String, BTreeSet<SocketAddr>> {
    iptables::by_name(state)
}

/// A protocol by its name in rules.
fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}
