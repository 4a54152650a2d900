//! The bridge: a table of ours that translates new connections to services while kube-proxy is between
//! two modes of which one removes the other's objects first (DESIGN.md, "Moves to and from nftables").
//!
//! It stands behind kube-proxy's own rules: the kernel asks chains that translate in order of priority
//! until one has set a mapping, so while a mode is whole the bridge gets nothing that the mode serves.

mod choice;
mod follow;
mod of_node;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use crate::kube_proxy::reach::{NoEndpoint, PodSource, Reach};
use crate::state::Family;
pub use crate::state::bridge_table::{TABLE, Translated};
use crate::state::ipvs::Protocol;
pub use follow::LoadedBridges;
pub use of_node::sticky_clients;

/// What a bridge serves in one address family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The family of the table, and of all addresses in it.
    pub family: Family,
    /// The bit by which kube-proxy marks connections that are masqueraded: `0x4000`. Its own chain at
    /// postrouting may be the one that masquerades.
    pub mark: u32,
    /// Which clients are pods.
    pub pods: PodSource,
    /// Where the bridge answers, and with what.
    #[serde(with = "pairs")]
    pub frontends: BTreeMap<Frontend, Backends>,
}

/// Where a service port answers. A NodePort has a frontend for each address of the node that it
/// answers on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Frontend {
    /// The address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// What new connections to a frontend get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backends {
    /// The endpoints; where the policy is `Local`, those on this node.
    pub endpoints: BTreeSet<SocketAddr>,
    /// Which clients are masqueraded, and which get other endpoints.
    pub reach: Reach,
    /// Whether a client stays with its endpoint.
    pub has_affinity: bool,
    /// The clients that stayed with an endpoint already as the bridge was loaded. Of all others their
    /// addresses decide.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clients: BTreeMap<IpAddr, SocketAddr>,
    /// The only networks that may connect; empty if all may.
    pub source_ranges: Vec<IpNet>,
    /// What a connection gets where there is no endpoint.
    pub without: NoEndpoint,
}

impl NoEndpoint {
    /// The chain of frontends without any endpoint. A chain for each of them would load slowly.
    fn chain(self) -> &'static str {
        match self {
            NoEndpoint::Reject => "without-endpoint",
            NoEndpoint::Drop => "without-local-endpoint",
        }
    }

    fn verdict(self) -> &'static str {
        match self {
            NoEndpoint::Reject => "reject",
            NoEndpoint::Drop => "drop",
        }
    }
}

impl Frontend {
    /// The frontend as a key of nft's maps: `10.96.0.10 . udp . 53`.
    fn key(&self) -> String {
        format!("{} . {} . {}", self.address, self.protocol, self.port)
    }
}

/// Examples: `10.96.0.10:53/udp`, `[fd00::a]:53/udp`.
impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

impl Bridge {
    /// nft's name of the family's type of address.
    fn address_type(&self) -> &'static str {
        match self.family {
            Family::Ipv4 => "ipv4_addr",
            Family::Ipv6 => "ipv6_addr",
        }
    }

    /// The script for `nft -f` that makes the table, in place of one that is there, in one
    /// transaction.
    pub fn script(&self) -> String {
        self.script_after(Translated::default())
    }

    /// As [`Bridge::script`], with a counter that begins with what that of the other table counts.
    pub fn script_after(&self, translated: Translated) -> String {
        table::script(self, translated)
    }

    /// The script for `nft -f` that deletes the table of a family, if it is there.
    pub fn removal(family: Family) -> String {
        let family = family.nft();
        format!("table {family} {TABLE}\ndelete table {family} {TABLE}\n")
    }
}

/// Frontends as a list in JSON, where a key can only be a text.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::{Backends, Frontend};

    pub(super) fn serialize<S: Serializer>(
        frontends: &BTreeMap<Frontend, Backends>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(frontends)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<Frontend, Backends>, D::Error> {
        Ok(Vec::deserialize(from)?.into_iter().collect())
    }
}
