//! The established TCP connections of a network namespace, as `/proc/net/tcp` and `/proc/net/tcp6` list
//! them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::lines;
use crate::error::Result;

/// The state of an established connection: TCP_ESTABLISHED.
const ESTABLISHED: &str = "01";

/// A TCP connection of a program in this network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpConnection {
    /// The program's own address and port.
    pub own: SocketAddr,
    /// The address and port of its peer, before any translation.
    pub peer: SocketAddr,
}

impl TcpConnection {
    /// Parses a listing; only established connections are kept. Errors name `file` and the line.
    ///
    /// # Errors
    /// [`Kind::Parse`](crate::error::Kind::Parse).
    pub fn parse(file: &str, text: &str) -> Result<Vec<TcpConnection>> {
        let mut found = Vec::new();
        for (number, line) in lines::numbered(file, text)?.into_iter().skip(1) {
            let error = || lines::error(file, number, format!("`{line}` is no TCP connection"));
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, own, peer, state, ..] = words[..] else { return Err(error()) };
            if state == ESTABLISHED {
                let own = address(own).ok_or_else(error)?;
                found.push(TcpConnection { own, peer: address(peer).ok_or_else(error)? });
            }
        }
        Ok(found)
    }
}

/// Parses `0101600A:C6CC`. Each 32 bits of the address are a number in the order of this machine.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words = address.as_bytes().chunks(8).map(|word| {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<[u8; 4]>>>()?.concat();
    let address = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[..]).ok()?)),
        32 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(address.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n";

    #[test]
    fn established_connections_are_read_and_no_others() {
        let text = format!(
            "{HEAD}   0: 0101600A:C6CC 0101600A:0050 01 00000000:00000000 02:000A1A2B 00000000\n   \
             1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n"
        );
        let found = TcpConnection::parse("tcp", &text).unwrap();
        let own = "10.96.1.1:50892".parse().unwrap();
        assert_eq!(found, [TcpConnection { own, peer: "10.96.1.1:80".parse().unwrap() }]);

        let text = format!(
            "{HEAD}   0: 000000FD000000000000000001000000:1F90 \
             0000000000000000FFFF00000101600A:0050 01\n"
        );
        let found = TcpConnection::parse("tcp6", &text).unwrap();
        let own = "[fd00::1]:8080".parse().unwrap();
        assert_eq!(found, [TcpConnection { own, peer: "10.96.1.1:80".parse().unwrap() }]);

        assert_eq!(TcpConnection::parse("tcp", HEAD).unwrap(), []);
        for torn in ["   0: 0101600A:C6CC 0101600A\n", "   0: 01016:C6CC 0101600A:0050 01\n"] {
            assert!(TcpConnection::parse("tcp", &format!("{HEAD}{torn}")).is_err(), "{torn}");
        }
    }
}
