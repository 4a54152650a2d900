//! The state of a node at one moment: plain data, and the parsers that produce it.
//!
//! Parsers do no I/O. A capture, a snapshot on disk and an imported archive all yield [`Files`],
//! and [`NodeState::parse`] turns them into data.

pub mod accounting;
pub mod affinity;
pub mod api_objects;
pub mod argv;
pub mod bridge_table;
pub mod cgroup;
pub mod cluster_facts;
pub mod cni;
pub mod conntrack;
pub mod equivalence;
pub mod fingerprint;
pub mod ipset;
pub mod ipvs;
pub mod kernel_listing;
pub mod kube_proxy;
pub mod kubernetes;
mod lines;
pub mod links;
pub mod live_facts;
pub mod lookalikes;
pub mod lost_match;
pub mod multicall;
pub mod netlink_attributes;
pub mod networks;
pub mod nft;
pub mod nft_messages;
pub mod nft_path;
mod node_state;
pub mod object;
pub mod prerequisite;
pub mod rule;
pub mod ruleset;
pub mod shared_str;
pub mod stage;
pub mod sysctl;
pub mod tcp_connections;
pub mod timeout_policy;
pub mod tools;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use node_state::NodeState;

/// The address family of a netfilter table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4: `iptables`, nft family `ip`.
    Ipv4,
    /// IPv6: `ip6tables`, nft family `ip6`.
    Ipv6,
}

/// The kernel interface that holds xtables rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// `ip_tables`, written by `iptables-legacy`.
    Legacy,
    /// `nf_tables`, written by `iptables-nft`.
    Nft,
}

impl Family {
    /// Both address families, IPv4 first.
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }

    /// The name of the family's iptables tool: `iptables` or `ip6tables`.
    pub fn tool(self) -> &'static str {
        match self {
            Family::Ipv4 => "iptables",
            Family::Ipv6 => "ip6tables",
        }
    }

    /// nft's name of the family: `ip` or `ip6`.
    pub fn nft(self) -> &'static str {
        match self {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        })
    }
}

impl Backend {
    /// The backend's name: `legacy` or `nft`.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Legacy => "legacy",
            Backend::Nft => "nft",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The identity of a ruleset: all xtables rules of one address family in one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RulesetId {
    /// The address family of the rules.
    pub family: Family,
    /// The kernel interface that holds the rules.
    pub backend: Backend,
}

impl RulesetId {
    /// The rulesets of both families in both backends.
    pub const ALL: [RulesetId; 4] = [
        RulesetId { family: Family::Ipv4, backend: Backend::Legacy },
        RulesetId { family: Family::Ipv4, backend: Backend::Nft },
        RulesetId { family: Family::Ipv6, backend: Backend::Legacy },
        RulesetId { family: Family::Ipv6, backend: Backend::Nft },
    ];

    /// The name of the ruleset's file in a snapshot: `iptables-nft.save`.
    pub fn file(self) -> String {
        format!("{}-{}.save", self.family.tool(), self.backend)
    }
}

impl fmt::Display for RulesetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.family.tool(), self.backend)
    }
}

/// The text of each file of a node state, keyed by its path in the snapshot's directory
/// (`iptables-nft.save`, `files/run/flannel/subnet.env`). If a file is absent, the node had nothing
/// of that kind.
pub type Files = BTreeMap<String, shared_str::SharedStr>;
