//! SCTP without sockets of its own, which a kernel may lack: its packets by hand.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, bind, recv, sendto, socket,
};

/// The chunk that begins an association.
const INIT: u8 = 1;

/// The chunk that refuses one.
const ABORT: u8 = 6;

/// A socket that sends and receives the packets of SCTP at `address`, with all of its ports.
pub struct Packets(OwnedFd);

impl Packets {
    /// Opens it in the current namespace.
    pub fn at(address: IpAddr) -> Packets {
        let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let number = Protocol::from_raw(132.try_into().expect("not zero"));
        let fd = socket(family, SocketType::RAW, Some(number)).expect("a raw socket");
        set_socket_timeout(&fd, Timeout::Recv, Some(Duration::from_millis(300))).expect("a time");
        bind(&fd, &SocketAddr::new(address, 0)).expect("its address");
        Packets(fd)
    }

    /// Sends an INIT, as a client does that begins an association.
    pub fn begin(&self, from: u16, to: SocketAddr) {
        // Its own tag, the window, one stream each way and the first number.
        let body = [[0, 0, 0, 7], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]].concat();
        self.send(from, to, 0, INIT, &body);
    }

    /// Refuses an INIT that came from `to`, as a host without a listener does.
    pub fn refuse(&self, from: u16, to: SocketAddr) {
        self.send(from, to, 7, ABORT, &[]);
    }

    fn send(&self, from: u16, to: SocketAddr, tag: u32, chunk: u8, body: &[u8]) {
        let length = u16::try_from(body.len() + 4).expect("a short chunk").to_be_bytes();
        let ports = [from.to_be_bytes(), to.port().to_be_bytes()].concat();
        let chunk = [&[chunk, 0], &length[..], body].concat();
        let sum = |sum: [u8; 4]| [&ports, &tag.to_be_bytes()[..], &sum, &chunk].concat();
        let packet = sum(checksum(&sum([0; 4])).to_le_bytes());
        let sent = sendto(&self.0, &packet, SendFlags::empty(), &SocketAddr::new(to.ip(), 0));
        assert_eq!(sent.expect("sent"), packet.len());
    }

    /// Whether an INIT to this port arrives.
    pub fn receive(&self, port: u16) -> bool {
        let mut buffer = [0; 512];
        while let Ok((_, length)) = recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
            // IPv4 has its header before the packet, IPv6 has not.
            let header = if buffer[0] >> 4 == 4 && length == 52 { 20 } else { 0 };
            let packet = &buffer[header..length];
            if packet[2..4] == port.to_be_bytes() && packet[12] == INIT {
                return true;
            }
        }
        false
    }
}

/// CRC-32C (RFC 9260, appendix A), without which conntrack does not look at a packet.
fn checksum(packet: &[u8]) -> u32 {
    let step = |sum: u32| (sum >> 1) ^ if sum & 1 == 1 { 0x82F6_3B78 } else { 0 };
    !packet.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum)))
}
