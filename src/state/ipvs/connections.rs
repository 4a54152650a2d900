//! The connections of ipvs, as `ipvsadm -L -n -c` lists them.

use std::net::SocketAddr;

use super::{Protocol, VirtualServerId};
use crate::error::Result;
use crate::state::lines;

/// The states of an open connection. One that waits for its client (SYN_SENT) is none: no client of ipvs
/// has it, as the client is the one who begins. ipvs gives it to a closed connection on a new answer of
/// that endpoint to that client's port, of a connection that others translate; and counts it as active.
const OPEN: [&str; 3] = ["ESTABLISHED", "SYN_RECV", "SYNACK"];

/// The virtual servers of the open connections, one for each connection.
///
/// # Errors
/// [`Kind::Parse`](crate::error::Kind::Parse), naming `file` and the line.
pub fn open_connections(file: &str, text: &str) -> Result<Vec<VirtualServerId>> {
    let mut open = Vec::new();
    for (number, line) in lines::numbered(file, text)?.into_iter().skip(2) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let connection = connection(&words).ok_or_else(|| {
            lines::error(file, number, format!("`{line}` is not a whole connection"))
        })?;
        open.extend(connection.filter(|_| OPEN.contains(&words[2])));
    }
    Ok(open)
}

/// Parses the words of a connection: `TCP 14:59 ESTABLISHED 10.0.0.9:4000 10.96.0.10:53
/// 10.244.0.2:53`, and maybe what its scheduler says of it. There is no server for a protocol that no
/// virtual server has: a template that keeps the clients of a firewall mark is of `IP`.
fn connection(words: &[&str]) -> Option<Option<VirtualServerId>> {
    let [protocol, _, _, _, server, _, ..] = words else { return None };
    let protocol = match *protocol {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return Some(None),
    };
    let address: SocketAddr = server.parse().ok()?;
    Some(Some(VirtualServerId::Address { protocol, address }))
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
        let torn = format!("{none}TCP 14:59  ESTABLISHED 10.96.1.1:50796\n");
        assert!(open_connections("ipvsadm", &torn).is_err());
    }
}
