//! Reads the entries of conntrack over netlink, so the `conntrack` program is not needed.

use std::net::{IpAddr, SocketAddr};

use netlink_bindings::conntrack::{
    IterableConntrackAttrs, IterableTupleAttrs, NfCtSctpState, Nfgenmsg, Request,
};
use netlink_bindings::traits::NetlinkRequest;
use netlink_bindings::utils::ErrorContext;

use super::nfnetlink::socket::Socket;
use crate::error::Result;
use crate::state::conntrack::ConntrackEntry;
use crate::state::ipvs::Protocol;

/// The bit of an entry's status once a packet has come back: IPS_SEEN_REPLY.
const REPLIED: u32 = 1 << 1;

/// The bit of an entry's status if NAT translates the destination: IPS_DST_NAT.
const TRANSLATED: u32 = 1 << 5;

/// SCTP_CONNTRACK_CLOSED, which netlink-bindings calls `Cloned`.
const SCTP_CLOSED: u8 = NfCtSctpState::Cloned as u8;

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

    /// The entries of TCP, UDP and SCTP that `wanted` accepts: of both address families, in every
    /// zone. A node may have hundreds of thousands, so only these are kept.
    ///
    /// # Errors
    /// [`crate::error::Kind::Kernel`] if this kernel does not list conntrack entries,
    /// [`crate::error::Kind::Permission`] without CAP_NET_ADMIN.
    pub fn entries(
        &mut self,
        wanted: impl Fn(&ConntrackEntry) -> bool,
    ) -> Result<Vec<ConntrackEntry>> {
        let mut found = Vec::new();
        let request = Request::new().op_get_dump(&Nfgenmsg::new());
        self.socket.request(&request, "conntrack entries", |(_, attributes)| {
            found.extend(parse(&attributes)?.filter(&wanted));
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

/// The number of a protocol in IP packets (IANA's "Assigned Internet Protocol Numbers").
pub(crate) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// Parses an entry; `None` for an entry of another protocol.
fn parse(entry: &IterableConntrackAttrs<'_>) -> Result<Option<ConntrackEntry>, ErrorContext> {
    let original = entry.get_tuple_orig()?;
    let number = original.get_tuple_proto()?.get_proto_num()?;
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let Some(protocol) = all.into_iter().find(|p| protocol_number(*p) == number) else {
        return Ok(None);
    };
    let (client, destination) = ends(&original)?;
    let (leads_to, arrives_as) = ends(&entry.get_tuple_reply()?)?;
    Ok(Some(ConntrackEntry {
        protocol,
        client,
        destination,
        leads_to,
        arrives_as,
        is_by_nat: entry.get_status()? & TRANSLATED != 0,
        in_use: is_in_use(entry, protocol)?,
        id: entry.get_id()?,
        // An entry without a zone is in zone 0.
        zone: entry.get_zone().unwrap_or(0),
    }))
}

/// Whether a packet has come back. An association of SCTP that was refused keeps its entry, where the
/// kernel drops that of a refused connection of TCP.
fn is_in_use(entry: &IterableConntrackAttrs<'_>, protocol: Protocol) -> Result<bool, ErrorContext> {
    let has_reply = entry.get_status()? & REPLIED != 0;
    let state = || entry.get_protoinfo()?.get_protoinfo_sctp()?.get_sctp_state();
    let is_refused = protocol == Protocol::Sctp && state().ok() == Some(SCTP_CLOSED);
    Ok(has_reply && !is_refused)
}

/// The source and the destination of one direction of an entry.
fn ends(tuple: &IterableTupleAttrs<'_>) -> Result<(SocketAddr, SocketAddr), ErrorContext> {
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
