//! The connections of ipvs, as `ipvsadm -L -n -c` lists them.

use std::net::{IpAddr, SocketAddr};

use super::{Protocol, VirtualServerId};
use crate::error::Result;
use crate::state::lines;

/// The states of an open connection. One that waits for its client (SYN_SENT) is none: no client of ipvs
/// has it, as the client is the one who begins. ipvs gives it to a closed connection on a new answer of
/// that endpoint to that client's port, of a connection that others translate; and counts it as active.
const OPEN: [&str; 3] = ["ESTABLISHED", "SYN_RECV", "SYNACK"];

/// What ipvs keeps of a client of a virtual server with persistence, until its time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PersistenceTemplate {
    /// The address of the client.
    pub client: IpAddr,
    /// The protocol of the virtual server.
    pub protocol: Protocol,
    /// Where the virtual server answers.
    pub server: SocketAddr,
    /// The real server.
    pub real: SocketAddr,
}

/// The virtual servers of the open connections, one for each connection.
///
/// # Errors
/// [`Kind::Parse`](crate::error::Kind::Parse), naming `file` and the line.
pub fn open_connections(file: &str, text: &str) -> Result<Vec<VirtualServerId>> {
    let connections = connections(file, text)?.into_iter();
    let open = connections.filter(|connection| OPEN.contains(&connection.state));
    let server = |Connection { protocol, server: address, .. }: Connection<'_>| {
        VirtualServerId::Address { protocol, address }
    };
    Ok(open.map(server).collect())
}

/// The templates of persistence, which stand for all ports of their clients.
///
/// # Errors
/// As [`open_connections`].
pub fn persistence_templates(file: &str, text: &str) -> Result<Vec<PersistenceTemplate>> {
    let all = connections(file, text)?.into_iter().filter(|one| one.client.port() == 0);
    let template = |Connection { protocol, client, server, real, .. }: Connection<'_>| {
        PersistenceTemplate { client: client.ip(), protocol, server, real }
    };
    Ok(all.map(template).collect())
}

/// A connection, or a template.
struct Connection<'a> {
    protocol: Protocol,
    state: &'a str,
    client: SocketAddr,
    server: SocketAddr,
    real: SocketAddr,
}

/// The connections to virtual servers that have an address.
fn connections<'a>(file: &str, text: &'a str) -> Result<Vec<Connection<'a>>> {
    let mut all = Vec::new();
    for (number, line) in lines::numbered(file, text)?.into_iter().skip(2) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let connection = connection(&words).ok_or_else(|| {
            lines::error(file, number, format!("`{line}` is not a whole connection"))
        })?;
        all.extend(connection);
    }
    Ok(all)
}

/// Parses the words of a connection: `TCP 14:59 ESTABLISHED 10.0.0.9:4000 10.96.0.10:53
/// 10.244.0.2:53`, and maybe what its scheduler says of it. There is none for a protocol that no
/// virtual server has: a template that keeps the clients of a firewall mark is of `IP`.
fn connection<'a>(words: &[&'a str]) -> Option<Option<Connection<'a>>> {
    let [protocol, _, state, client, server, real, ..] = words else { return None };
    let protocol = match *protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return Some(None),
    };
    let [client, server, real] = [client, server, real].map(|text| text.parse().ok());
    Some(Some(Connection { protocol, state, client: client?, server: server?, real: real? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.1 and ipvsadm 1.31 list them.
    const LISTED: &str = "\
IPVS connection entries
pro expire state       source             virtual            destination
TCP 14:59  ESTABLISHED 10.96.1.1:50796    10.96.1.1:80       10.244.0.11:8080
TCP 01:49  SYN_SENT    10.244.0.20:47216  10.96.1.1:80       10.244.0.11:8080
TCP 01:59  TIME_WAIT   10.244.0.20:42682  10.96.1.3:80       10.244.0.12:8080
UDP 04:59  UDP         10.244.0.20:55727  10.96.0.10:53      10.244.0.12:8053
TCP 09:59  ASSURED     10.244.0.20:0      10.96.1.3:80       10.244.0.12:8080
TCP 00:58  SYN_RECV    [fd00::9]:4000     [fd00::a]:80       [fd00::11]:8080
IP  00:58  NONE        10.244.0.20:0      0.0.0.7:0          10.244.0.12:0
";

    #[test]
    fn those_that_are_open_are_listed_and_no_others() {
        let open = open_connections("ipvsadm", LISTED).unwrap();
        let open: Vec<String> = open.iter().map(ToString::to_string).collect();
        assert_eq!(open, ["10.96.1.1:80/tcp", "[fd00::a]:80/tcp"]);
        let none = LISTED.lines().take(2).map(|line| format!("{line}\n")).collect::<String>();
        assert_eq!(open_connections("ipvsadm", &none).unwrap(), []);
        assert_eq!(persistence_templates("ipvsadm", &none).unwrap(), []);
        let torn = format!("{none}TCP 14:59  ESTABLISHED 10.96.1.1:50796\n");
        assert!(open_connections("ipvsadm", &torn).is_err());
    }

    #[test]
    fn templates_are_of_no_port_of_their_clients() {
        let templates = persistence_templates("ipvsadm", LISTED).unwrap();
        let [PersistenceTemplate { client, protocol, server, real }] = templates[..] else {
            panic!("{templates:?}")
        };
        let addresses = format!("{client} {server}/{protocol} {real}");
        assert_eq!(addresses, "10.244.0.20 10.96.1.3:80/tcp 10.244.0.12:8080");
    }
}
