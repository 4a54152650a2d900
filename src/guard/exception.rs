//! The scope of one of the guard's exceptions: a network or an interface, never all packets.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::error::{Error, Kind, Result};
use crate::state::Family;
use crate::state::nft_path::{InvalidPackets, PacketSide};

/// The comment (`-m comment`) by which the guard recognises its own rules.
pub const COMMENT: &str = "proxyshift guard";

/// The shortest prefix length that an exception's network may have. A network that has a shorter
/// prefix is no narrow exception.
const WIDEST: u8 = 8;

/// The longest name of an interface, in bytes: IFNAMSIZ without the final NUL.
const LONGEST_NAME: usize = 15;

/// Which INVALID packets the guard accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exception {
    /// INVALID packets from or to a network.
    Network(IpNet),
    /// INVALID packets that enter or leave by an interface.
    Interface(String),
}

impl FromStr for Exception {
    type Err = Error;

    /// # Errors
    /// [`Kind::Usage`] for a text that is no network, address or interface name, and for a scope of
    /// (nearly) all packets.
    fn from_str(text: &str) -> Result<Exception> {
        let refuse = |cause: &str| Err(Error::new(Kind::Usage, text, cause));
        let network = match text.parse::<IpAddr>() {
            Ok(address) => Some(IpNet::from(address)),
            Err(_) if text.contains('/') => match text.parse::<IpNet>() {
                Ok(network) => Some(network.trunc()),
                Err(_) => return refuse("is no network in CIDR form"),
            },
            Err(_) => None,
        };
        if let Some(network) = network {
            return match network {
                n if n.prefix_len() < WIDEST => {
                    refuse("is wider than a /8: an exception is for the networks that need it")
                }
                n if n.addr().is_loopback() => refuse("is the loopback, which nobody forwards"),
                n => Ok(Exception::Network(n)),
            };
        }
        let in_names =
            |c: char| c.is_ascii_graphic() && !matches!(c, '!' | '"' | '\'' | '\\' | ':');
        match text {
            "lo" => refuse("is the loopback, which nobody forwards"),
            _ if text.contains(['+', '*']) => {
                refuse("names many interfaces: name each that needs it")
            }
            _ if text.is_empty()
                || text.len() > LONGEST_NAME
                || text.starts_with(['-', '.'])
                || !text.chars().all(in_names) =>
            {
                refuse("is neither a network in CIDR form nor an interface's name")
            }
            name => Ok(Exception::Interface(name.to_owned())),
        }
    }
}

impl std::fmt::Display for Exception {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exception::Network(network) => write!(f, "{network}"),
            Exception::Interface(name) => write!(f, "{name}"),
        }
    }
}

impl Exception {
    /// The two rules for this exception in filter FORWARD, one for each direction. No rules if the
    /// exception is a network of the other address family.
    pub(super) fn rules(&self, family: Family) -> Vec<String> {
        let (from, to, value) = match (self, family) {
            (Exception::Network(n @ IpNet::V4(_)), Family::Ipv4)
            | (Exception::Network(n @ IpNet::V6(_)), Family::Ipv6) => ("-s", "-d", n.to_string()),
            (Exception::Network(_), _) => return Vec::new(),
            (Exception::Interface(name), _) => ("-i", "-o", name.clone()),
        };
        let rule = |option: &str| {
            format!(
                "-A FORWARD {option} {value} -m conntrack --ctstate INVALID -m comment \
                 --comment \"{COMMENT}\" -j ACCEPT"
            )
        };
        vec![rule(from), rule(to)]
    }
}

impl Exception {
    /// The packets of this exception, of one address family. None if the exception is a network of the
    /// other.
    pub(super) fn packets(&self, family: Family) -> Vec<InvalidPackets> {
        let sides = match self {
            Exception::Network(network) if Family::of(network.addr()) != family => {
                return Vec::new();
            }
            Exception::Network(network) => [PacketSide::From(*network), PacketSide::To(*network)],
            Exception::Interface(name) => {
                [PacketSide::Enters(name.clone()), PacketSide::Leaves(name.clone())]
            }
        };
        sides.map(|side| InvalidPackets { family, side: Some(side) }).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_for_everything() {
        for text in [
            "0.0.0.0/0",
            "::/0",
            "128.0.0.0/1",
            "10.0.0.0/7",
            "127.0.0.0/8",
            "::1",
            "+",
            "eth+",
            "lo",
            "",
            "10.0.0.0/33",
            "10.0.0",
            "/8",
            "-j",
            "a b",
            "an-interface-of-16",
            "*",
            "!eth0",
        ] {
            let parsed = text.parse::<Exception>();
            // `10.0.0` is no network, but a valid name of an interface.
            let fine = text == "10.0.0";
            assert_eq!(parsed.is_ok(), fine, "{text}: {parsed:?}");
            assert!(parsed.is_ok() || parsed.is_err_and(|e| e.kind == Kind::Usage), "{text}");
        }
    }

    #[test]
    fn rules_of_networks_and_interfaces() {
        let rules = |text: &str, family| text.parse::<Exception>().expect(text).rules(family);
        let end =
            "-m conntrack --ctstate INVALID -m comment --comment \"proxyshift guard\" -j ACCEPT";
        let both = |a: &str, b: &str| [a, b].map(|m| format!("-A FORWARD {m} {end}"));
        assert_eq!(rules("10.9.0.7/24", Family::Ipv4), both("-s 10.9.0.0/24", "-d 10.9.0.0/24"));
        assert_eq!(rules("10.9.0.7", Family::Ipv4), both("-s 10.9.0.7/32", "-d 10.9.0.7/32"));
        assert_eq!(rules("fd00::/64", Family::Ipv6), both("-s fd00::/64", "-d fd00::/64"));
        assert_eq!(rules("eth1.7", Family::Ipv6), both("-i eth1.7", "-o eth1.7"));
        assert_eq!(rules("fd00::/64", Family::Ipv4), [""; 0]);
    }
}
