//! Stale UDP entries of connection tracking: a client that goes on sending to a service keeps being
//! sent to a backend that is gone, for as long as it goes on.
//!
//! Over netlink, so that no `conntrack` program is needed, and each entry is deleted by the
//! kernel's own number for it: one that was made anew meanwhile stays.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netlink_bindings::conntrack::{IterableTupleAttrs, Nfgenmsg, OpGetDo, Request};
use netlink_bindings::consts::NLM_F_ACK;
use netlink_bindings::traits::{NetlinkRequest, Protocol};
use netlink_bindings::utils::ErrorContext;
use serde::Serialize;

use super::nfnetlink::socket::Socket;
use crate::error::{Error, Kind, Result};

/// The UDP services, by address and port, each with its backends.
pub type Services = BTreeMap<SocketAddr, BTreeSet<SocketAddr>>;

/// IPPROTO_UDP.
const UDP: u8 = 17;

/// An entry of a UDP flow to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Who sends.
    pub client: SocketAddr,
    /// Where to: the address of a service.
    pub service: SocketAddr,
    /// Who is to answer: the backend that was chosen, or the service itself where none was.
    pub backend: SocketAddr,
    /// The kernel's number for the entry.
    pub id: u32,
    /// Its conntrack zone; 0 unless rules say otherwise.
    pub zone: u16,
}

impl fmt::Display for Entry {
    /// For sentences: `udp 10.0.0.1:4000 → 10.96.0.10:53, answered by 10.244.0.5:53`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "udp {} → {}, answered by {}", self.client, self.service, self.backend)
    }
}

impl Entry {
    /// True if it leads to a service of `services`, but to none of that service's backends.
    pub fn is_stale(&self, services: &Services) -> bool {
        services.get(&self.service).is_some_and(|backends| !backends.contains(&self.backend))
    }
}

/// A connection to this network namespace's connection tracking. Opening it, and asking, may load
/// the kernel's `nf_conntrack_netlink`.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Connects.
    ///
    /// # Errors
    /// [`Kind::Permission`] without the right to, [`Kind::Kernel`] without netfilter netlink.
    pub fn open() -> Result<Conntrack> {
        Ok(Conntrack { socket: Socket::open()? })
    }

    /// The stale entries of `services`, IPv4 and IPv6.
    ///
    /// # Errors
    /// [`Kind::Kernel`] if this kernel does not list its entries, [`Kind::Permission`] without
    /// CAP_NET_ADMIN.
    pub fn stale(&mut self, services: &Services) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        let request = Request::new().op_get_dump(&Nfgenmsg::new());
        self.socket.ask(&request, "conntrack entries", |(_, entry)| {
            let original = entry.get_tuple_orig()?;
            if original.get_tuple_proto()?.get_proto_num()? != UDP {
                return Ok(());
            }
            let (client, service) = ends(&original)?;
            let (backend, _) = ends(&entry.get_tuple_reply()?)?;
            // An entry without a zone is in zone 0.
            let zone = entry.get_zone().unwrap_or(0);
            let entry = Entry { client, service, backend, id: entry.get_id()?, zone };
            if entry.is_stale(services) {
                found.push(entry);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Deletes one entry; false if it is gone already, or was made anew.
    ///
    /// # Errors
    /// [`Kind::Kernel`] or [`Kind::Permission`], with the entry.
    pub fn delete(&mut self, entry: &Entry) -> Result<bool> {
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
        match self.socket.ask(&Delete(request), &entry.to_string(), |_| Ok(())) {
            Ok(_) => Ok(true),
            Err(error) if error.cause == rustix::io::Errno::NOENT.to_string() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Source and destination of one direction.
fn ends(
    tuple: &IterableTupleAttrs<'_>,
) -> std::result::Result<(SocketAddr, SocketAddr), ErrorContext> {
    let (ip, ports) = (tuple.get_tuple_ip()?, tuple.get_tuple_proto()?);
    let source =
        ip.get_ip_v4_src().map(IpAddr::from).or_else(|_| ip.get_ip_v6_src().map(IpAddr::from))?;
    let destination =
        ip.get_ip_v4_dst().map(IpAddr::from).or_else(|_| ip.get_ip_v6_dst().map(IpAddr::from))?;
    Ok((
        SocketAddr::new(source, ports.get_proto_src_port()?),
        SocketAddr::new(destination, ports.get_proto_dst_port()?),
    ))
}

/// The deletion of an entry, which is named as one that is asked for; the bindings know only the
/// latter.
struct Delete<'r>(OpGetDo<'r>);

impl NetlinkRequest for Delete<'_> {
    fn protocol(&self) -> Protocol {
        // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_is_what_leads_to_no_backend_of_its_service() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let entry = |service, backend| Entry {
            client: at("10.0.0.1:4000"),
            service: at(service),
            backend: at(backend),
            id: 1,
            zone: 0,
        };
        let backends = BTreeSet::from([at("10.244.0.5:53"), at("10.244.0.6:53")]);
        let services = Services::from([
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
