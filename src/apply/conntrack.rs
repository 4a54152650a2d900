//! Deletes conntrack entries by the kernel's identifier. An entry that was created meanwhile for
//! the same flow is kept, because it has another identifier.

use std::net::IpAddr;

use netlink_bindings::conntrack::{Nfgenmsg, OpGetDo, Request};
use netlink_bindings::consts::NLM_F_ACK;
use netlink_bindings::traits::{NetlinkRequest, Protocol};

use crate::error::{Error, Kind, Result};
use crate::node::conntrack::{ConntrackEntry, ConntrackSocket, UDP};

/// Deletes one entry. Returns false if the entry is gone, or was created anew under another
/// identifier.
///
/// # Errors
/// [`Kind::Kernel`] or [`Kind::Permission`], naming the entry.
pub fn delete(conntrack: &mut ConntrackSocket, entry: &ConntrackEntry) -> Result<bool> {
    let family = if entry.service.is_ipv4() { 2 } else { 10 };
    let mut request =
        Request::new().op_get_do(&Nfgenmsg { nfgen_family: family, ..Nfgenmsg::new() });
    let tuple = request.encode().nested_tuple_orig();
    let addresses = tuple.nested_tuple_ip();
    let addresses = match (entry.client.ip(), entry.service.ip()) {
        (IpAddr::V4(client), IpAddr::V4(service)) => {
            addresses.push_ip_v4_src(client).push_ip_v4_dst(service)
        }
        (IpAddr::V6(client), IpAddr::V6(service)) => {
            addresses.push_ip_v6_src(client).push_ip_v6_dst(service)
        }
        _ => return Err(Error::new(Kind::Unexpected, entry.to_string(), "of two families")),
    };
    let attributes = addresses
        .end_nested()
        .nested_tuple_proto()
        .push_proto_num(UDP)
        .push_proto_src_port(entry.client.port())
        .push_proto_dst_port(entry.service.port())
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
