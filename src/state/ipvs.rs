//! Virtual servers as `ipvsadm -S -n` saves them, the listing (`ipvsadm -L -n`) with its connection
//! counts, and that of the connections (`ipvsadm -L -n -c`).

mod connections;
mod limits;
mod listing;
mod save_line;

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Family, lines};
use crate::error::Result;

pub use connections::{PersistenceTemplate, open_connections, persistence_templates};
pub use limits::ConnectionLimits;
pub use listing::{ListedReal, ListedServer, Listing};
use save_line::SaveLine;

/// All ipvs virtual servers, in the order of `ipvsadm -S`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServers {
    /// The virtual servers, each with its real servers.
    pub servers: Vec<VirtualServer>,
}

/// A transport protocol that ipvs balances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// `-t` of ipvsadm.
    Tcp,
    /// `-u` of ipvsadm.
    Udp,
    /// `--sctp-service` of ipvsadm.
    Sctp,
}

/// The identity of a virtual server in the kernel: the address or the firewall mark whose packets
/// it balances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtualServerId {
    /// Packets to an address and port of one protocol.
    Address {
        /// The transport protocol of the packets.
        protocol: Protocol,
        /// The destination of the packets; port 0 stands for every port.
        address: SocketAddr,
    },
    /// Packets with a firewall mark.
    Fwmark {
        /// The firewall mark, which is not zero.
        mark: u32,
        /// The address family of the packets.
        family: Family,
    },
}

/// A virtual server and the real servers behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServer {
    /// The address or firewall mark whose packets this virtual server balances.
    pub service: VirtualServerId,
    /// The scheduler: `rr`.
    pub scheduler: String,
    /// For how many seconds a client keeps its real server (`-p`).
    pub persistent: Option<u32>,
    /// The mask (IPv4) or prefix length (IPv6) that groups clients for persistence (`-M`).
    pub mask: Option<String>,
    /// The persistence engine (`--pe`): `sip`.
    pub engine: Option<String>,
    /// Whether each UDP packet is scheduled on its own (`-o`).
    pub one_packet: bool,
    /// The scheduler's own flags, comma-separated (`-b`): `sh-port`.
    pub flags: Option<String>,
    /// Options of the save that this parser does not know, unchanged.
    pub other: Vec<String>,
    /// The real servers, in the order of the save.
    pub reals: Vec<RealServer>,
}

/// How ipvs forwards packets to a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// Masquerading (`-m`), the only method that kube-proxy uses.
    Masq,
    /// Direct routing (`-g`). A listing calls it `Local` when the real server is this node.
    Route,
    /// Tunneling (`-i`).
    Tunnel,
}

/// One real server of a virtual server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealServer {
    /// The address and port to which packets are forwarded.
    pub address: SocketAddr,
    /// How ipvs forwards packets to this real server.
    pub forward: Forward,
    /// The weight; a real server of weight 0 gets no new connections.
    pub weight: u32,
    /// The number of connections above which the real server gets no new ones (`-x`). `ipvsadm -S`
    /// omits `upper` and `lower`, so [`ConnectionLimits`] adds them.
    pub upper: Option<u32>,
    /// The number of connections below which the real server gets new ones again (`-y`).
    pub lower: Option<u32>,
    /// Options of the save that this parser does not know, unchanged (`--tun-type gue`).
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

    /// Renders the input of `ipvsadm -R`. The options are in ipvsadm's own order, so the text is
    /// the same to the byte as the output of `ipvsadm -S`.
    pub fn render(&self) -> String {
        self.servers.iter().map(VirtualServer::render).collect()
    }

    /// The virtual server with the identity `service`.
    pub fn get(&self, service: &VirtualServerId) -> Option<&VirtualServer> {
        self.servers.iter().find(|server| server.service == *service)
    }

    /// The real server at `address` of the virtual server with the identity `service`.
    pub fn real(&self, service: &VirtualServerId, address: &SocketAddr) -> Option<&RealServer> {
        self.get(service)?.reals.iter().find(|real| real.address == *address)
    }

    /// Virtual servers and real servers that are only in `after` (`+`) or only in `self` (`-`);
    /// their order does not count. A virtual server that lost real servers is not itself a
    /// difference.
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
    /// The address family of the packets that the virtual server balances.
    pub fn family(&self) -> Family {
        match self {
            VirtualServerId::Address { address, .. } => Family::of(address.ip()),
            VirtualServerId::Fwmark { family, .. } => *family,
        }
    }

    /// The ipvsadm arguments that select the virtual server: `-t 10.96.0.10:53`, `-f 7 -6`.
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

/// Displayed as `10.96.0.10:53/udp`, `[fd00::a]:53/tcp`, `fwmark 7` or `fwmark 7 ipv6`.
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
    /// The options that follow the selector in an `ipvsadm` command that adds or edits the virtual
    /// server, such as `-s rr -p 10800`.
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

    /// The lines of this virtual server and of its real servers in the format of `ipvsadm -S`.
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
    /// The options that follow the real server's address in an `ipvsadm` command that adds or edits
    /// the real server, such as `-m -w 1`.
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
