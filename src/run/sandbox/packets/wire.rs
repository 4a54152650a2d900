//! First packets of connections, byte by byte, and the sockets that send them.
//!
//! A packet made so has any source, and needs no server, no listening port, and no support of its
//! protocol by sockets.

use std::net::{IpAddr, SocketAddr};

use rustix::fd::OwnedFd;
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with,
};

use super::cases::EntryPoint;
use super::network::{OUTSIDE, PODS};
use crate::error::{Error, Kind, Result};
use crate::node::conntrack::protocol_number;
use crate::run::sandbox::packet_probe::in_namespace;
use crate::state::ipvs::Protocol;

/// How many routers a packet may pass (RFC 1340).
const HOPS: u8 = 64;

/// The first packet of a connection, from the IP header on. Its checksum is 0: the kernel of the
/// private namespace does not look at it. None if the addresses are not of one family.
pub(super) fn first_packet(
    protocol: Protocol,
    from: SocketAddr,
    to: SocketAddr,
) -> Option<Vec<u8>> {
    let payload = transport(protocol, from.port(), to.port());
    let number = protocol_number(protocol);
    let length = u16::try_from(payload.len()).ok()?;
    let mut packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // RFC 791. Version and length in words, service, length, identification, fragment.
            let mut header = vec![0x45, 0];
            header.extend((length + 20).to_be_bytes());
            header.extend([0, 0, 0, 0, HOPS, number, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // RFC 8200. Version, class and label, length, next header.
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(length.to_be_bytes());
            header.extend([number, HOPS]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => return None,
    };
    packet.extend(payload);
    Some(packet)
}

/// What begins a connection: a SYN, a datagram without content, an INIT.
fn transport(protocol: Protocol, from: u16, to: u16) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    match protocol {
        // RFC 9293. Sequence number, acknowledgement, header of 5 words, SYN, window.
        Protocol::Tcp => {
            segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0]);
        }
        // RFC 768. The length.
        Protocol::Udp => segment.extend([0, 8, 0, 0]),
        // RFC 9260. No tag; INIT of 20 bytes: tag, window, streams out and in, sequence number.
        Protocol::Sctp => {
            segment.extend([0; 8]);
            segment.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1]);
        }
    }
    segment
}

/// Sockets that send whole packets: of the node itself, and of the hosts around it.
pub(super) struct Senders {
    node: RawSockets,
    pods: RawSockets,
    outside: RawSockets,
}

struct RawSockets {
    ipv4: OwnedFd,
    /// None if this kernel has no IPv6.
    ipv6: Option<OwnedFd>,
}

impl RawSockets {
    fn open() -> Result<RawSockets> {
        let raw =
            |family| socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW));
        let refused = |e: rustix::io::Errno| Error::new(Kind::Permission, "a raw socket", e);
        let ipv4 = raw(AddressFamily::INET).map_err(refused)?;
        Ok(RawSockets { ipv4, ipv6: raw(AddressFamily::INET6).ok() })
    }
}

impl Senders {
    /// Opens the sockets, in the thread that is in the node's namespace.
    pub(super) fn open() -> Result<Senders> {
        Ok(Senders {
            node: RawSockets::open()?,
            pods: in_namespace(PODS, RawSockets::open)??,
            outside: in_namespace(OUTSIDE, RawSockets::open)??,
        })
    }

    /// Sends the first packet of a connection. What became of it is not told here: what rules of
    /// the node's own output drop is an error of the socket too.
    pub(super) fn send(
        &self,
        entry_point: EntryPoint,
        protocol: Protocol,
        from: SocketAddr,
        to: SocketAddr,
    ) {
        let sockets = match entry_point {
            EntryPoint::Node => &self.node,
            EntryPoint::Pods => &self.pods,
            EntryPoint::Outside => &self.outside,
        };
        let socket = if to.is_ipv4() { Some(&sockets.ipv4) } else { sockets.ipv6.as_ref() };
        if let (Some(socket), Some(packet)) = (socket, first_packet(protocol, from, to)) {
            // The port of the address is no port here.
            let to = SocketAddr::new(to.ip(), 0);
            let _ = sendto(socket, &packet, SendFlags::empty(), &to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_as_long_as_they_say() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        for (protocol, length) in [(Protocol::Tcp, 20), (Protocol::Udp, 8), (Protocol::Sctp, 32)] {
            let packet = first_packet(protocol, at("10.0.0.1:5"), at("10.0.0.2:80")).unwrap();
            assert_eq!(packet.len(), 20 + length, "{protocol}");
            assert_eq!(usize::from(packet[3]), packet.len());
            assert_eq!(packet[12..24], [10, 0, 0, 1, 10, 0, 0, 2, 0, 5, 0, 80]);
            let packet = first_packet(protocol, at("[fd00::1]:5"), at("[fd00::2]:80")).unwrap();
            assert_eq!(packet.len(), 40 + length, "{protocol}");
            assert_eq!(usize::from(packet[5]), length);
            assert_eq!(packet[39..44], [2, 0, 5, 0, 80]);
        }
        assert_eq!(first_packet(Protocol::Udp, at("[fd00::1]:5"), at("10.0.0.2:80")), None);
    }
}
