//! Pods behind a node that is nothing but kube-proxy, with servers in them, and clients in every
//! place: network namespaces.
//!
//! ```text
//! pod-1, -6, -8: endpoints ┐
//! pod-20                   ┴ cni0 ─ node ─ eth0 ─ nodes ┬ away: the endpoints 2, 3, 4 and 7
//!                                                       ├ elsewhere: the pod 30 of another node
//!                                                       ├ outside: 10.20.0.203
//!                                                       └ ranged: 203.0.113.7
//! ```

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use proxyshift::state::ipvs::Protocol;

use crate::common::{run, run_with};
use crate::network::at;

/// Addresses of both families.
type Addresses = [&'static str; 2];

/// The pods on the node: those that are endpoints, and one that is none.
const ON_NODE: [(&str, Addresses); 4] = [
    ("pod-1", ["10.244.77.1", "fd00:244:0:77::1"]),
    ("pod-6", ["10.244.77.6", "fd00:244:0:77::6"]),
    ("pod-8", ["10.244.77.8", "fd00:244:0:77::8"]),
    ("pod-20", ["10.244.77.20", "fd00:244:0:77::20"]),
];

/// What is plugged into the bridge that the node is plugged into too.
const BESIDE: [(&str, &[Addresses]); 4] = [
    (
        "away",
        &[
            ["10.244.77.2", "fd00:244:0:77::2"],
            ["10.244.77.3", "fd00:244:0:77::3"],
            ["10.244.77.4", "fd00:244:0:77::4"],
            ["10.244.77.7", "fd00:244:0:77::7"],
        ],
    ),
    ("elsewhere", &[["10.244.77.30", "fd00:244:0:77::30"]]),
    ("outside", &[["10.20.0.203", "fd00:20::203"]]),
    ("ranged", &[["203.0.113.7", "2001:db8:fff1::7"]]),
];

/// The addresses of cni0 on the node.
pub const GATEWAY: Addresses = ["10.244.77.254", "fd00:244:0:77::254"];

/// The namespaces from which services are asked, besides the node.
pub const CLIENTS: [&str; 5] = ["pod-1", "pod-20", "elsewhere", "outside", "ranged"];

/// How long a client waits. A lost first packet of TCP is sent again after 1 s.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// The namespaces around a node. They are removed when this value is dropped.
pub struct Pods;

impl Pods {
    /// Makes the namespaces around the node `node` that has these addresses, and starts the servers.
    pub fn around(node: &str, addresses: [&str; 2]) -> Pods {
        let pods = Pods;
        let of_node = ["ip", "-n", node, "-batch", "-"];
        run(&format!(
            "ip netns exec {node} sysctl -qw net.ipv6.conf.all.forwarding=1 \
             net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0 \
             net.ipv4.conf.default.send_redirects=0 \
             net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0"
        ));
        let mut batch = String::from("link add cni0 type bridge\nlink set cni0 up\n");
        for (address, bits) in GATEWAY.into_iter().zip([24, 64]) {
            batch += &format!("addr add {address}/{bits} dev cni0 nodad\n");
        }
        // Nothing answers there: what no rule translates is lost, as it is without a route back.
        batch += "route replace default via fd00:20::203 dev eth0\n";
        run_with(&batch, &of_node);
        for (name, own) in ON_NODE {
            run(&format!("ip netns add {name}"));
            let batch = format!(
                "link add v-{name} type veth peer name eth0 netns {name}\n\
                 link set v-{name} master cni0\nlink set v-{name} type bridge_slave hairpin on\n\
                 link set v-{name} up\n"
            );
            run_with(&batch, &of_node);
            configure(name, &[own], GATEWAY);
        }
        for (name, own) in BESIDE {
            run(&format!("ip netns add {name}"));
            let batch = format!(
                "link add {name} type veth peer name eth0 netns {name}\n\
                 link set {name} master nodes up\n"
            );
            run_with(&batch, &["ip", "-batch", "-"]);
            configure(name, own, addresses);
            let routes = own.iter().flatten().map(|a| format!("route replace {a} dev eth0\n"));
            run_with(&routes.collect::<String>(), &of_node);
        }
        for (name, own) in ON_NODE {
            serve(name, &own);
        }
        serve("away", &BESIDE[0].1.concat());
        pods
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        // A namespace takes its links with it, but only later.
        let links = BESIDE.iter().map(|(name, _)| ["link", "del", name]);
        let beside = BESIDE.iter().map(|(name, _)| ["netns", "del", name]);
        let on_node = ON_NODE.iter().map(|(name, _)| ["netns", "del", name]);
        for words in links.chain(beside).chain(on_node) {
            let _ = std::process::Command::new("ip").args(words).status();
        }
    }
}

/// Gives a namespace its addresses, and a way by `gateway` to all others.
fn configure(name: &str, addresses: &[Addresses], gateway: [&str; 2]) {
    let set = "net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.eth0.accept_redirects=0 \
               net.ipv6.conf.all.accept_redirects=0 net.ipv6.conf.eth0.accept_redirects=0";
    run(&format!("ip netns exec {name} sysctl -qw {set}"));
    let mut batch = String::from("link set lo up\nlink set eth0 up\n");
    for [four, six] in addresses {
        batch += &format!("addr add {four}/32 dev eth0\naddr add {six}/128 dev eth0 nodad\n");
    }
    for gateway in gateway {
        batch +=
            &format!("route add {gateway} dev eth0\nroute add default via {gateway} dev eth0\n");
    }
    run_with(&batch, &["ip", "-n", name, "-batch", "-"]);
}

/// Starts servers at each address. They send that address and the client's: on TCP port 8080, and on
/// UDP port 8053.
fn serve(namespace: &str, addresses: &[&str]) {
    let sockets = at(namespace, || {
        let bind = |address: &&str| {
            let address: IpAddr = address.parse().expect("an address");
            let tcp = TcpListener::bind((address, 8080)).expect("8080");
            (address, tcp, UdpSocket::bind((address, 8053)).expect("8053"))
        };
        addresses.iter().map(bind).collect::<Vec<_>>()
    });
    for (own, tcp, udp) in sockets {
        thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                if let Ok(peer) = stream.peer_addr() {
                    let _ = write!(stream, "{own} {}", peer.ip());
                }
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{own} {}", peer.ip()).as_bytes(), peer);
            }
        });
    }
}

/// What a client learns of a server: its address, and the client's own address as both see it.
pub struct Answer {
    pub server: IpAddr,
    pub client: IpAddr,
    pub client_at_server: IpAddr,
}

/// Asks the server at `to` from the current namespace, by a new connection.
///
/// # Errors
/// As the kernel says; [`ErrorKind::TimedOut`] if there is no answer.
pub fn ask(protocol: Protocol, to: SocketAddr) -> io::Result<Answer> {
    let mut text = String::new();
    let client = match protocol {
        Protocol::Udp => {
            let any: IpAddr = if to.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            socket.connect(to)?;
            socket.send(b"who")?;
            let mut buffer = [0; 128];
            let length = socket.recv(&mut buffer).map_err(timed_out)?;
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
            socket.local_addr()?
        }
        _ => {
            let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.read_to_string(&mut text).map_err(timed_out)?;
            stream.local_addr()?
        }
    };
    let parsed = text.split_once(' ').and_then(|(server, client_at_server)| {
        Some((server.parse().ok()?, client_at_server.parse().ok()?))
    });
    let (server, client_at_server) = parsed.ok_or(ErrorKind::InvalidData)?;
    Ok(Answer { server, client: client.ip(), client_at_server })
}

/// A socket's timeout as the one of connecting.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut.into(),
        _ => error,
    }
}
