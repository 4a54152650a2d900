//! Reach: from where a service port is reached, and what its endpoints see of a client.
//!
//! Each mode of kube-proxy writes this in rules of its own; what they mean is the same.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// From where a service port is reached, which decides what an endpoint sees of a client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// By the address of the cluster: who is no pod is masqueraded.
    #[default]
    Cluster,
    /// By an address of the outside, or of the node: everybody is masqueraded.
    Everyone,
    /// The same with the policy `Local`: clients from outside get the endpoints on this node, and are
    /// not masqueraded. Pods and the node itself get `everywhere`, the node masqueraded.
    Local {
        /// All endpoints; `None` if pods and the node get the same ones as clients from outside.
        everywhere: Option<BTreeSet<SocketAddr>>,
    },
}

/// What a connection gets where there is no endpoint for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoEndpoint {
    /// "Connection refused".
    #[default]
    Reject,
    /// No answer, so that a load balancer asks another node: a policy `Local` without endpoints on
    /// this one.
    Drop,
}

/// How kube-proxy tells the connections of pods from others (`detectLocalMode`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodSource {
    /// By their addresses.
    Networks(Vec<IpNet>),
    /// By the link that they come in by: its name, or the beginning of its name and `*`.
    Link(String),
    /// Not at all: no connection is masqueraded for coming from elsewhere.
    Unknown,
    /// Not at all, but the node's own connections are masqueraded: in ipvs mode the node has the
    /// addresses of services, and connects to a service from that service's own address.
    AllButNode,
}
