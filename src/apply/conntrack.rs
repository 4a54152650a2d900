//! Deletes conntrack entries that lead past their service.
//!
//! Each is deleted by the kernel's identifier. An entry that was created meanwhile for the same flow
//! is kept, because it has another identifier.

use std::collections::HashSet;
use std::net::IpAddr;

use netlink_bindings::conntrack::{Nfgenmsg, OpGetDo, Request};
use netlink_bindings::consts::NLM_F_ACK;
use netlink_bindings::traits::{NetlinkRequest, Protocol};

use crate::error::{Error, Kind, Result};
use crate::kube_proxy::stale_entries::ServiceDestinations;
use crate::node::conntrack::{ConntrackSocket, protocol_number};
use crate::state::conntrack::ConntrackEntry;

/// Deletes the stale entries of services, so that the next packet of each client is translated as
/// the rules say now. Returns how many were deleted.
///
/// # Errors
/// [`Kind::Kernel`] or [`Kind::Permission`] if conntrack cannot be read, or naming an entry.
pub fn clear_stale(services: &ServiceDestinations<'_>) -> Result<usize> {
    let mut conntrack = ConntrackSocket::open()?;
    let mut cleared = 0;
    for entry in find_stale(&mut conntrack, services)? {
        cleared += usize::from(delete(&mut conntrack, &entry)?);
    }
    Ok(cleared)
}

/// The stale entries of services, but for those whose clients are served all the same.
///
/// # Errors
/// [`Kind::Kernel`] or [`Kind::Permission`] if conntrack cannot be read.
pub fn find_stale(
    conntrack: &mut ConntrackSocket,
    services: &ServiceDestinations<'_>,
) -> Result<Vec<ConntrackEntry>> {
    let mut stale = conntrack.entries(|entry| services.staleness(entry).is_some())?;
    let client = |entry: &ConntrackEntry| (entry.protocol, entry.client);
    let clients: HashSet<_> = stale.iter().filter(|entry| !entry.in_use).map(client).collect();
    let others = conntrack.entries(|other| other.in_use && clients.contains(&client(other)))?;
    stale.retain(|entry| !others.iter().any(|other| services.is_served(entry, other)));
    Ok(stale)
}

/// Deletes one entry. Returns false if the entry is gone, or was created anew under another
/// identifier.
///
/// # Errors
/// [`Kind::Kernel`] or [`Kind::Permission`], naming the entry.
pub fn delete(conntrack: &mut ConntrackSocket, entry: &ConntrackEntry) -> Result<bool> {
    let family = if entry.destination.is_ipv4() { 2 } else { 10 };
    let mut request =
        Request::new().op_get_do(&Nfgenmsg { nfgen_family: family, ..Nfgenmsg::new() });
    let tuple = request.encode().nested_tuple_orig();
    let addresses = tuple.nested_tuple_ip();
    let addresses = match (entry.client.ip(), entry.destination.ip()) {
        (IpAddr::V4(client), IpAddr::V4(destination)) => {
            addresses.push_ip_v4_src(client).push_ip_v4_dst(destination)
        }
        (IpAddr::V6(client), IpAddr::V6(destination)) => {
            addresses.push_ip_v6_src(client).push_ip_v6_dst(destination)
        }
        _ => return Err(Error::new(Kind::Unexpected, entry.to_string(), "of two families")),
    };
    let attributes = addresses
        .end_nested()
        .nested_tuple_proto()
        .push_proto_num(protocol_number(entry.protocol))
        .push_proto_src_port(entry.client.port())
        .push_proto_dst_port(entry.destination.port())
        .end_nested()
        .end_nested()
        .push_id(entry.id);
    match entry.zone {
        0 => drop(attributes),
        zone => drop(attributes.push_zone(zone)),
    }
    match conntrack.request(&Delete(request), &entry.to_string()) {
        Ok(()) => Ok(true),
        Err(error) if error.cause == rustix::io::Errno::NOENT.to_string() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The netlink request that deletes an entry: a get request with another message type, because
/// netlink-bindings has only get requests for conntrack.
struct Delete<'r>(OpGetDo<'r>);

impl NetlinkRequest for Delete<'_> {
    fn protocol(&self) -> Protocol {
        // NFNL_SUBSYS_CTNETLINK (1) and IPCTNL_MSG_CT_DELETE (2).
        Protocol::Raw { protonum: 12, request_type: 1 << 8 | 2 }
    }

    fn flags(&self) -> u16 {
        self.0.flags() | NLM_F_ACK as u16
    }

    fn payload(&self) -> &[u8] {
        self.0.payload()
    }

    type ReplyType<'buf> = ();

    fn decode_reply(_: &[u8]) -> Self::ReplyType<'_> {}
}
