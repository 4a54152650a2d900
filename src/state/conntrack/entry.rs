//! An entry of the kernel's connection tracking.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

use crate::state::ipvs::Protocol;

/// A conntrack entry: one flow, as the kernel translates it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConntrackEntry {
    /// The transport protocol of the flow.
    pub protocol: Protocol,
    /// The source of the flow.
    pub client: SocketAddr,
    /// The destination that the client sends to.
    pub destination: SocketAddr,
    /// Where the packets go, and where replies come from: an endpoint, or the destination itself if
    /// it was not translated.
    pub leads_to: SocketAddr,
    /// The source that the packets arrive there with: the client, or another one if it is masqueraded.
    pub arrives_as: SocketAddr,
    /// Whether NAT sends the packets there. If it does not, and the entry leads elsewhere than to its
    /// destination, ipvs has written it and translates the packets itself.
    pub is_by_nat: bool,
    /// Whether the client has been answered, so that it may lose a connection with this entry. A
    /// flow that has only begun, that was picked up in its midst, or that was refused, is not in use.
    pub in_use: bool,
    /// The kernel's identifier of this entry (CTA_ID).
    pub id: u32,
    /// Its conntrack zone; 0 by default.
    pub zone: u16,
}

impl ConntrackEntry {
    /// Whether the kernel sends the flow elsewhere than to its destination. What masquerades the
    /// client does not count.
    pub fn is_translated(&self) -> bool {
        self.leads_to != self.destination
    }
}

impl fmt::Display for ConntrackEntry {
    /// As in messages: `udp 10.0.0.1:4000 → 10.96.0.10:53, translated to 10.244.0.5:53`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConntrackEntry { protocol, client, destination, leads_to, .. } = self;
        write!(f, "{protocol} {client} → {destination}, ")?;
        if self.is_translated() {
            return write!(f, "translated to {leads_to}");
        }
        f.write_str("not translated")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_where_it_leads() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let entry = |leads_to| ConntrackEntry {
            protocol: Protocol::Sctp,
            client: at("10.0.0.1:4000"),
            destination: at("10.96.0.10:53"),
            leads_to: at(leads_to),
            arrives_as: at("10.0.0.1:4000"),
            is_by_nat: true,
            in_use: true,
            id: 1,
            zone: 0,
        };
        assert_eq!(
            entry("10.244.0.5:53").to_string(),
            "sctp 10.0.0.1:4000 → 10.96.0.10:53, translated to 10.244.0.5:53"
        );
        assert_eq!(
            entry("10.96.0.10:53").to_string(),
            "sctp 10.0.0.1:4000 → 10.96.0.10:53, not translated"
        );
    }
}
