//! Finds stale UDP entries of conntrack. While a client keeps sending to a service, its packets go
//! to the backend in its conntrack entry, even if that backend was removed from the service.
//!
//! Reads conntrack over netlink, so the `conntrack` program is not needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netlink_bindings::conntrack::{IterableTupleAttrs, Nfgenmsg, Request};
use netlink_bindings::traits::NetlinkRequest;
use netlink_bindings::utils::ErrorContext;
use serde::Serialize;

use super::nfnetlink::socket::Socket;
use crate::error::Result;

/// The UDP services, keyed by address and port, each with its backends.
pub type UdpServices = BTreeMap<SocketAddr, BTreeSet<SocketAddr>>;

/// The protocol number of UDP: IPPROTO_UDP.
pub(crate) const UDP: u8 = 17;

/// A conntrack entry of a UDP flow to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConntrackEntry {
    /// The source of the flow.
    pub client: SocketAddr,
    /// The destination of the flow: the address and port of a service.
    pub service: SocketAddr,
    /// Where replies come from: the backend that was chosen, or the service's own address if none
    /// was.
    pub backend: SocketAddr,
    /// The kernel's identifier of this entry (CTA_ID).
    pub id: u32,
    /// Its conntrack zone; 0 by default.
    pub zone: u16,
}

impl fmt::Display for ConntrackEntry {
    /// As in messages: `udp 10.0.0.1:4000 → 10.96.0.10:53, answered by 10.244.0.5:53`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "udp {} → {}, answered by {}", self.client, self.service, self.backend)
    }
}

impl ConntrackEntry {
    /// True if the entry's destination is one of `services`, but its backend is not one of that
    /// service's backends.
    pub fn is_stale(&self, services: &UdpServices) -> bool {
        services.get(&self.service).is_some_and(|backends| !backends.contains(&self.backend))
    }
}

/// A netlink connection to conntrack in this network namespace. Opening it, or sending a request,
/// may load the kernel module `nf_conntrack_netlink`.
#[derive(Debug)]
pub struct ConntrackSocket {
    socket: Socket,
}

impl ConntrackSocket {
    /// Opens the netlink socket.
    ///
    /// # Errors
    /// [`crate::error::Kind::Permission`] without the right to open it,
    /// [`crate::error::Kind::Kernel`] if this kernel has no netfilter netlink.
    pub fn open() -> Result<ConntrackSocket> {
        Ok(ConntrackSocket { socket: Socket::open()? })
    }

    /// The stale conntrack entries of `services`, for IPv4 and IPv6.
    ///
    /// # Errors
    /// [`crate::error::Kind::Kernel`] if this kernel does not list conntrack entries,
    /// [`crate::error::Kind::Permission`] without CAP_NET_ADMIN.
    pub fn stale(&mut self, services: &UdpServices) -> Result<Vec<ConntrackEntry>> {
        let mut found = Vec::new();
        let request = Request::new().op_get_dump(&Nfgenmsg::new());
        self.socket.request(&request, "conntrack entries", |(_, entry)| {
            let original = entry.get_tuple_orig()?;
            if original.get_tuple_proto()?.get_proto_num()? != UDP {
                return Ok(());
            }
            let (client, service) = ends(&original)?;
            let (backend, _) = ends(&entry.get_tuple_reply()?)?;
            // An entry without a zone is in zone 0.
            let zone = entry.get_zone().unwrap_or(0);
            let entry = ConntrackEntry { client, service, backend, id: entry.get_id()?, zone };
            if entry.is_stale(services) {
                found.push(entry);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Sends one request and waits for the kernel's reply.
    ///
    /// # Errors
    /// [`crate::error::Kind::Kernel`] or [`crate::error::Kind::Permission`], naming `object`.
    pub(crate) fn request<R: NetlinkRequest>(&mut self, request: &R, object: &str) -> Result<()> {
        self.socket.request(request, object, |_| Ok(())).map(drop)
    }
}

/// The source and the destination of one direction of an entry.
fn ends(
    tuple: &IterableTupleAttrs<'_>,
) -> std::result::Result<(SocketAddr, SocketAddr), ErrorContext> {
    let ip = tuple.get_tuple_ip()?;
    let ports = tuple.get_tuple_proto()?;
    let source =
        ip.get_ip_v4_src().map(IpAddr::from).or_else(|_| ip.get_ip_v6_src().map(IpAddr::from))?;
    let destination =
        ip.get_ip_v4_dst().map(IpAddr::from).or_else(|_| ip.get_ip_v6_dst().map(IpAddr::from))?;
    Ok((
        SocketAddr::new(source, ports.get_proto_src_port()?),
        SocketAddr::new(destination, ports.get_proto_dst_port()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_is_what_leads_to_no_backend_of_its_service() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let entry = |service, backend| ConntrackEntry {
            client: at("10.0.0.1:4000"),
            service: at(service),
            backend: at(backend),
            id: 1,
            zone: 0,
        };
        let backends = BTreeSet::from([at("10.244.0.5:53"), at("10.244.0.6:53")]);
        let services = UdpServices::from([
            (at("10.96.0.10:53"), backends),
            (at("10.96.0.11:53"), BTreeSet::new()),
        ]);
        for (service, backend, stale) in [
            ("10.96.0.10:53", "10.244.0.5:53", false),
            ("10.96.0.10:53", "10.244.0.7:53", true),
            ("10.96.0.10:53", "10.244.0.5:54", true),
            ("10.96.0.10:53", "10.96.0.10:53", true),
            ("10.96.0.11:53", "10.244.0.5:53", true),
            ("10.96.0.10:54", "10.244.0.7:53", false),
        ] {
            assert_eq!(entry(service, backend).is_stale(&services), stale, "{service} {backend}");
        }
    }
}
