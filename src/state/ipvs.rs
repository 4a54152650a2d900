//! `ipvsadm -S -n`, and the listing (`ipvsadm -L -n`) with its connection counts.

mod limits;
mod listing;
mod save_line;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Family, lines};
use crate::error::Result;

pub use limits::ConnectionLimits;
pub use listing::{ListedReal, ListedServer, Listing};
use save_line::SaveLine;

/// All virtual servers, in the order of the save.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServers {
    /// The virtual servers.
    pub servers: Vec<VirtualServer>,
}

/// A transport protocol that ipvs balances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// The identity of a virtual server in the kernel: what it answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtualServerId {
    /// An address; port 0 stands for every port.
    Address {
        /// Its protocol.
        protocol: Protocol,
        /// Its address and port.
        address: SocketAddr,
    },
    /// Packets with a firewall mark.
    Fwmark {
        /// The mark, not zero.
        mark: u32,
        /// The family of the packets.
        family: Family,
    },
}

/// A virtual server and the real servers behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServer {
    /// What it answers to.
    pub service: VirtualServerId,
    /// Its scheduler: `rr`.
    pub scheduler: String,
    /// How many seconds a client keeps its real server (`-p`).
    pub persistent: Option<u32>,
    /// The mask (IPv4) or prefix length (IPv6) that groups clients (`-M`).
    pub mask: Option<String>,
    /// The persistence engine (`--pe`).
    pub engine: Option<String>,
    /// One-packet scheduling (`-o`).
    pub one_packet: bool,
    /// The scheduler's own flags, comma-separated (`-b`).
    pub flags: Option<String>,
    /// Unknown words, unchanged.
    pub other: Vec<String>,
    /// Its real servers.
    pub reals: Vec<RealServer>,
}

/// How packets reach a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// Masquerading (`-m`), the only method of kube-proxy.
    Masq,
    /// Direct routing (`-g`); a listing calls it `Local` when the real server is this node.
    Route,
    /// Tunneling (`-i`).
    Tunnel,
}

/// One real server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealServer {
    /// Its address and port.
    pub address: SocketAddr,
    /// How packets reach it.
    pub forward: Forward,
    /// Its weight; 0 takes no new connections.
    pub weight: u32,
    /// The number of connections above which it takes no more (`-x`). `ipvsadm -S` drops both
    /// limits; see [`ConnectionLimits`].
    pub upper: Option<u32>,
    /// The number of connections below which it takes some again (`-y`).
    pub lower: Option<u32>,
    /// Unknown words, unchanged (`--tun-type gue`).
    pub other: Vec<String>,
}

impl VirtualServers {
    /// Parses the output of `ipvsadm -S -n`. Errors name `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<VirtualServers> {
        let mut servers: Vec<VirtualServer> = Vec::new();
        let mut index = HashMap::new();
        for (number, line) in lines::numbered(file, text)? {
            let error = |cause: String| lines::error(file, number, cause);
            let mut words = SaveLine::new(line);
            match words.next_word() {
                Some("-A") => {
                    let server = words.server().map_err(error)?;
                    if index.insert(server.service, servers.len()).is_some() {
                        return Err(error(format!("{} is added twice", server.service)));
                    }
                    servers.push(server);
                }
                Some("-a") => {
                    let (service, real) = words.real().map_err(error)?;
                    let Some(&at) = index.get(&service) else {
                        let cause = format!("a real server of {service}, which is not added here");
                        return Err(error(cause));
                    };
                    servers[at].reals.push(real);
                }
                _ => return Err(error(format!("`{line}` begins with neither `-A` nor `-a`"))),
            }
        }
        Ok(VirtualServers { servers })
    }

    /// Renders the text for `ipvsadm -R`, with options in ipvsadm's own order: the bytes of a save.
    pub fn render(&self) -> String {
        self.servers.iter().map(VirtualServer::render).collect()
    }

    /// The virtual server of `service`.
    pub fn get(&self, service: &VirtualServerId) -> Option<&VirtualServer> {
        self.servers.iter().find(|server| server.service == *service)
    }

    /// The real server at `address` of the virtual server of `service`.
    pub fn real(&self, service: &VirtualServerId, address: &SocketAddr) -> Option<&RealServer> {
        self.get(service)?.reals.iter().find(|real| real.address == *address)
    }

    /// Servers only in `after` (`+`), and only in `self` (`-`), in any order. A virtual server
    /// without its real servers is still the same virtual server.
    pub fn differences(&self, after: &VirtualServers) -> Vec<String> {
        lines::differences(self.facts(), after.facts())
    }

    fn facts(&self) -> Vec<String> {
        let lines = |server: &VirtualServer| {
            let service = server.service;
            let head = format!("ipvs {service} {}", server.options());
            let reals = server.reals.iter();
            let reals = reals.map(|r| format!("ipvs {service} -> {} {}", r.address, r.options()));
            std::iter::once(head).chain(reals).collect::<Vec<_>>()
        };
        self.servers.iter().flat_map(lines).collect()
    }
}

impl VirtualServerId {
    /// Its family.
    pub fn family(&self) -> Family {
        match self {
            VirtualServerId::Address { address: SocketAddr::V4(_), .. } => Family::Ipv4,
            VirtualServerId::Address { address: SocketAddr::V6(_), .. } => Family::Ipv6,
            VirtualServerId::Fwmark { family, .. } => *family,
        }
    }

    /// The words that select it for ipvsadm: `-t 10.96.0.10:53`, `-f 7 -6`.
    pub fn selector(&self) -> String {
        match self {
            VirtualServerId::Address { protocol, address } => {
                format!("{} {address}", protocol.option())
            }
            VirtualServerId::Fwmark { mark, family: Family::Ipv4 } => format!("-f {mark}"),
            VirtualServerId::Fwmark { mark, family: Family::Ipv6 } => format!("-f {mark} -6"),
        }
    }
}

/// `10.96.0.10:53/udp`, `[fd00::a]:53/tcp`, `fwmark 7`, `fwmark 7 ipv6`.
impl fmt::Display for VirtualServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VirtualServerId::Address { protocol, address } => write!(f, "{address}/{protocol}"),
            VirtualServerId::Fwmark { mark, family: Family::Ipv4 } => write!(f, "fwmark {mark}"),
            VirtualServerId::Fwmark { mark, family: Family::Ipv6 } => {
                write!(f, "fwmark {mark} ipv6")
            }
        }
    }
}

impl Protocol {
    fn option(self) -> &'static str {
        match self {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
            Protocol::Sctp => "--sctp-service",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

impl VirtualServer {
    /// The words after the selector to add or edit it: `-s rr -p 10800`.
    pub fn options(&self) -> String {
        let mut text = format!("-s {}", self.scheduler);
        let persistent = self.persistent.map(|seconds| seconds.to_string());
        push(&mut text, "-p", persistent.as_ref());
        push(&mut text, "-M", self.mask.as_ref());
        push(&mut text, "--pe", self.engine.as_ref());
        if self.one_packet {
            text.push_str(" -o");
        }
        push(&mut text, "-b", self.flags.as_ref());
        push_other(&mut text, &self.other);
        text
    }

    /// Its lines of a save, real servers included.
    pub fn render(&self) -> String {
        let selector = self.service.selector();
        let mut text = format!("-A {selector} {}\n", self.options());
        for real in &self.reals {
            text.push_str(&format!("-a {selector} -r {} {}\n", real.address, real.options()));
        }
        text
    }
}

impl RealServer {
    /// The words after its address to add or edit it: `-m -w 1`.
    pub fn options(&self) -> String {
        let forward = match self.forward {
            Forward::Masq => "-m",
            Forward::Route => "-g",
            Forward::Tunnel => "-i",
        };
        let mut text = format!("{forward} -w {}", self.weight);
        push(&mut text, "-x", self.upper.as_ref());
        push(&mut text, "-y", self.lower.as_ref());
        push_other(&mut text, &self.other);
        text
    }
}

fn push(text: &mut String, option: &str, value: Option<&impl fmt::Display>) {
    if let Some(value) = value {
        text.push_str(&format!(" {option} {value}"));
    }
}

fn push_other(text: &mut String, words: &[String]) {
    for word in words {
        text.push(' ');
        text.push_str(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> VirtualServers {
        let ipvs = VirtualServers::parse("ipvs.save", text).unwrap();
        assert_eq!(ipvs.render(), text);
        ipvs
    }

    #[test]
    fn every_option_survives() {
        let ipvs = parse(
            "-A -t [fd00::a]:53 -s rr -p 10800 -M 64\n\
             -a -t [fd00::a]:53 -r [fd00:1::5]:53 -m -w 1\n\
             -A -u 10.0.0.1:5060 -s sh -p 60 -M 255.255.255.0 --pe sip -o -b sh-port --new x\n\
             -A --sctp-service 10.96.1.6:7002 -s rr\n\
             -A -f 7 -6 -s wlc\n\
             -a -f 7 -6 -r [fd00:1::5]:0 -i -w 0 -x 9 -y 4 --tun-type gue --tun-port 6080\n\
             -A -f 7 -s wlc\n\
             -a -f 7 -r 10.0.0.9:0 -g -w 100\n",
        );
        let names: Vec<String> = ipvs.servers.iter().map(|s| s.service.to_string()).collect();
        let expected =
            ["[fd00::a]:53/tcp", "10.0.0.1:5060/udp", "10.96.1.6:7002/sctp", "fwmark 7 ipv6"];
        assert_eq!(names[..4], expected);
        let sip = &ipvs.servers[1];
        assert_eq!((sip.engine.as_deref(), sip.one_packet), (Some("sip"), true));
        assert_eq!(sip.other, ["--new", "x"]);
        let tunnel = &ipvs.servers[3].reals[0];
        assert_eq!((tunnel.upper, tunnel.lower), (Some(9), Some(4)));
        assert_eq!(tunnel.forward, Forward::Tunnel);
        assert_eq!(ipvs.get(&ipvs.servers[4].service), Some(&ipvs.servers[4]));
    }

    #[test]
    fn order_is_no_difference_and_weight_is() {
        let before = parse(
            "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.1.0.1:80 -m -w 1\n\
             -a -t 10.0.0.1:80 -r 10.1.0.2:80 -m -w 1\n-A -u 10.0.0.1:80 -s rr\n",
        );
        let moved = parse(
            "-A -u 10.0.0.1:80 -s rr\n-A -t 10.0.0.1:80 -s rr\n\
             -a -t 10.0.0.1:80 -r 10.1.0.2:80 -m -w 1\n\
             -a -t 10.0.0.1:80 -r 10.1.0.1:80 -m -w 1\n",
        );
        assert!(before.differences(&moved).is_empty());
        let drained = parse(
            "-A -t 10.0.0.1:80 -s wrr\n-a -t 10.0.0.1:80 -r 10.1.0.1:80 -m -w 0\n\
             -a -t 10.0.0.1:80 -r 10.1.0.2:80 -m -w 1\n-A -u 10.0.0.1:80 -s rr\n",
        );
        assert_eq!(
            before.differences(&drained),
            [
                "+ ipvs 10.0.0.1:80/tcp -> 10.1.0.1:80 -m -w 0",
                "- ipvs 10.0.0.1:80/tcp -> 10.1.0.1:80 -m -w 1",
                "- ipvs 10.0.0.1:80/tcp -s rr",
                "+ ipvs 10.0.0.1:80/tcp -s wrr",
            ]
        );
    }

    #[test]
    fn errors_name_file_line_and_cause() {
        for (text, expected) in [
            ("-A -t 10.0.0.1:80 -s\n", "ipvs.save:1: -s has no value: the line is cut off"),
            ("-A -t 10.0.0.1:80\n", "ipvs.save:1: 10.0.0.1:80/tcp has no scheduler"),
            ("-A -t web:80 -s rr\n", "ipvs.save:1: `web:80` is no value of -t (with -n)"),
            ("-A -q 10.0.0.1:80 -s rr\n", "ipvs.save:1: `-q` names no kind of virtual server"),
            (
                "-A -f 7 -s rr\n-a -f 7 -r 10.0.0.2:0 -g\n",
                "ipvs.save:2: a real server of fwmark 7 l",
            ),
            ("-A -f 7 -s rr\n-A -f 7 -s rr\n", "ipvs.save:2: fwmark 7 is added twice"),
            ("-a -f 7 -r 10.0.0.2:0 -g -w 1\n", "ipvs.save:1: a real server of fwmark 7, which is"),
            ("-A -f 7 -s rr\n-a -f 7 -r 10.0.0.2:0 -g -w 1", "ipvs.save:2: the last line is cut"),
            ("-C\n", "ipvs.save:1: `-C` begins with neither"),
        ] {
            let error = VirtualServers::parse("ipvs.save", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
