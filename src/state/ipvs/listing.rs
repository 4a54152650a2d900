//! Parser of `ipvsadm -L -n`, which has the connection counts.

use std::net::SocketAddr;

use super::{Forward, Protocol, VirtualServerId};
use crate::error::Result;
use crate::state::{Family, lines};

/// The virtual servers of `ipvsadm -L -n`, in the order of the listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The virtual servers, each with its real servers.
    pub servers: Vec<ListedServer>,
}

/// A virtual server of `ipvsadm -L -n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedServer {
    /// The address or firewall mark whose packets the virtual server balances.
    pub service: VirtualServerId,
    /// The scheduler: `rr`.
    pub scheduler: String,
    /// The real servers, in the order of the listing.
    pub reals: Vec<ListedReal>,
}

/// A real server of `ipvsadm -L -n`, with its connection counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedReal {
    /// The address and port to which packets are forwarded.
    pub address: SocketAddr,
    /// How ipvs forwards packets to this real server.
    pub forward: Forward,
    /// The weight; a real server of weight 0 gets no new connections.
    pub weight: u32,
    /// The number of active connections. The kernel counts with 32 bits.
    pub active: u32,
    /// The number of inactive connections: TCP connections that are closing, and all UDP flows.
    pub inactive: u32,
}

impl ListedReal {
    /// The number of connections, active and inactive.
    pub fn connections(&self) -> u64 {
        u64::from(self.active) + u64::from(self.inactive)
    }
}

impl Listing {
    /// Parses the output of `ipvsadm -L -n`. Errors name `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<Listing> {
        let mut servers: Vec<ListedServer> = Vec::new();
        for (number, line) in lines::numbered(file, text)? {
            let error = |cause: &str| lines::error(file, number, format!("`{line}` {cause}"));
            let words: Vec<&str> = line.split_whitespace().collect();
            match (number, &words[..]) {
                (1, _) if !line.starts_with("IP Virtual Server version") => {
                    return Err(error("is not the heading of a listing"));
                }
                (_, ["IP", "Virtual", ..] | ["Prot", ..] | ["->", "RemoteAddress:Port", ..]) => {}
                (_, ["->", rest @ ..]) => {
                    let real = real(rest).ok_or_else(|| error("is not a whole real server"))?;
                    let Some(server) = servers.last_mut() else {
                        return Err(error("is a real server of no virtual server"));
                    };
                    server.reals.push(real);
                }
                (_, words) => {
                    servers.push(server(words).ok_or_else(|| error("is no virtual server"))?);
                }
            }
        }
        Ok(Listing { servers })
    }

    /// Real servers of weight 0 that still have connections, each with its virtual server. Packets
    /// of old UDP clients keep being sent to such a real server: the DNS black hole.
    pub fn draining(&self) -> impl Iterator<Item = (&VirtualServerId, &ListedReal)> {
        let all = self.servers.iter().flat_map(|s| s.reals.iter().map(|real| (&s.service, real)));
        all.filter(|(_, real)| real.weight == 0 && real.connections() > 0)
    }
}

/// Parses the line of a virtual server: `TCP 10.0.0.1:80 rr …`, `FWM 7 rr …`, `FWM 7 IPv6 rr …`.
pub(super) fn server(words: &[&str]) -> Option<ListedServer> {
    let at = |protocol, address: &str| {
        Some(VirtualServerId::Address { protocol, address: address.parse().ok()? })
    };
    let fwmark =
        |mark: &str, family| Some(VirtualServerId::Fwmark { mark: mark.parse().ok()?, family });
    let (service, scheduler) = match words {
        ["TCP", address, scheduler, ..] => (at(Protocol::Tcp, address)?, scheduler),
        ["UDP", address, scheduler, ..] => (at(Protocol::Udp, address)?, scheduler),
        ["SCTP", address, scheduler, ..] => (at(Protocol::Sctp, address)?, scheduler),
        ["FWM", mark, "IPv6", scheduler, ..] => (fwmark(mark, Family::Ipv6)?, scheduler),
        ["FWM", mark, scheduler, ..] => (fwmark(mark, Family::Ipv4)?, scheduler),
        _ => return None,
    };
    Some(ListedServer { service, scheduler: (*scheduler).to_owned(), reals: vec![] })
}

/// Parses the line of a real server, after its `->`: `192.168.66.5:53 Masq 0 0 6`.
fn real(words: &[&str]) -> Option<ListedReal> {
    let [address, forward, weight, active, inactive] = words else { return None };
    Some(ListedReal {
        address: address.parse().ok()?,
        forward: match *forward {
            "Masq" => Forward::Masq,
            "Route" | "Local" => Forward::Route,
            "Tunnel" => Forward::Tunnel,
            _ => return None,
        },
        weight: weight.parse().ok()?,
        active: active.parse().ok()?,
        inactive: inactive.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "IP Virtual Server version 1.2.1 (size=4096)\n\
        Prot LocalAddress:Port Scheduler Flags\n\
        \x20 -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n";

    #[test]
    fn every_kind_of_server_is_read() {
        let text = format!(
            "{HEAD}TCP  [fd00::a]:53 rr persistent 10800 mask 64\n\
             \x20 -> [fd00::1:5]:53               Masq    1      2          3         \n\
             UDP  10.0.0.1:53 sh (sh-port) ops\n\
             \x20 -> 10.0.0.9:53                  Local   0      0          1         \n\
             FWM  7 IPv6 wlc\n\
             FWM  8 wlc\n"
        );
        let listing = Listing::parse("ipvs.list", &text).unwrap();
        let names: Vec<String> = listing.servers.iter().map(|s| s.service.to_string()).collect();
        assert_eq!(names, ["[fd00::a]:53/tcp", "10.0.0.1:53/udp", "fwmark 7 ipv6", "fwmark 8"]);
        let first = &listing.servers[0].reals[0];
        assert_eq!((first.weight, first.active, first.inactive), (1, 2, 3));
        let draining: Vec<_> = listing.draining().collect();
        assert_eq!(draining, [(&listing.servers[1].service, &listing.servers[1].reals[0])]);
    }

    #[test]
    fn as_many_connections_as_can_be_are_counted() {
        let real = |n: u64| format!("UDP  10.0.0.1:53 rr\n  -> 10.0.0.9:53 Masq 0 {n} {n}\n");
        let most = u32::MAX.into();
        let listing = Listing::parse("ipvs.list", &format!("{HEAD}{}", real(most))).unwrap();
        assert_eq!(listing.draining().next().unwrap().1.connections(), 2 * most);
        for more in [most + 1, u64::MAX] {
            Listing::parse("ipvs.list", &format!("{HEAD}{}", real(more))).unwrap_err();
        }
    }

    #[test]
    fn errors_name_file_line_and_cause() {
        for (text, expected) in [
            ("TCP  10.0.0.1:53 rr\n", "ipvs.list:1: `TCP  10.0.0.1:53 rr` is not the heading"),
            ("HEADTCP  10.0.0.1:53\n", "ipvs.list:4: `TCP  10.0.0.1:53` is no virtual server"),
            ("HEADTCP  kube-dns:53 rr\n", "ipvs.list:4: `TCP  kube-dns:53 rr` is no virtual"),
            (
                "HEAD  -> 10.0.0.1:53 Masq 1 0 0\n",
                "ipvs.list:4: `  -> 10.0.0.1:53 Masq 1 0 0` is a",
            ),
            ("HEADUDP  10.0.0.1:53 rr\n  -> 10.0.0.1:53 Masq 1 0\n", "ipvs.list:5: `  -> 10.0.0."),
        ] {
            let text = text.replace("HEAD", HEAD);
            let error = Listing::parse("ipvs.list", &text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
