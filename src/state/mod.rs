//! The state of a node at one moment: plain data, and its parsers.
//!
//! Parsers do no I/O. A capture, a snapshot on disk and an imported archive all yield [`Files`],
//! and [`NodeState::parse`] turns them into data.

pub mod argv;
pub mod cni;
pub mod conntrack;
pub mod equivalence;
pub mod fingerprint;
pub mod ipset;
pub mod ipvs;
pub mod kube_proxy;
mod lines;
pub mod links;
pub mod live_facts;
pub mod nft;
mod node_state;
pub mod object;
pub mod rule;
pub mod ruleset;
pub mod shared_str;
pub mod stage;
pub mod sysctl;
pub mod tools;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use node_state::NodeState;

/// An address family of netfilter tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4: `iptables`, nft family `ip`.
    Ipv4,
    /// IPv6: `ip6tables`, nft family `ip6`.
    Ipv6,
}

/// The kernel interface that holds a set of xtables rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// `ip_tables`, written by `iptables-legacy`.
    Legacy,
    /// `nf_tables`, written by `iptables-nft`.
    Nft,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// `iptables` or `ip6tables`.
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
    /// `legacy` or `nft`.
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

/// The ruleset of one family in one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RulesetId {
    /// Its address family.
    pub family: Family,
    /// Its backend.
    pub backend: Backend,
}

impl RulesetId {
    /// All four.
    pub const ALL: [RulesetId; 4] = [
        RulesetId { family: Family::Ipv4, backend: Backend::Legacy },
        RulesetId { family: Family::Ipv4, backend: Backend::Nft },
        RulesetId { family: Family::Ipv6, backend: Backend::Legacy },
        RulesetId { family: Family::Ipv6, backend: Backend::Nft },
    ];

    /// Its file in a snapshot: `iptables-nft.save`.
    pub fn file(self) -> String {
        format!("{}-{}.save", self.family.tool(), self.backend)
    }
}

impl fmt::Display for RulesetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.family.tool(), self.backend)
    }
}

/// The text of each file of a node state, by its path in the snapshot's directory
/// (`iptables-nft.save`, `files/run/flannel/subnet.env`). An absent file means that nothing of that
/// kind existed.
pub type Files = BTreeMap<String, shared_str::SharedStr>;
