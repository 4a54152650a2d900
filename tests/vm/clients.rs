//! Clients that keep their port, and the services that they ask.

use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

use crate::network::{any, at, is_ipv6, socket_address};

/// What kube-proxy writes in iptables mode for services of TCP, UDP and SCTP and their NodePorts, less
/// what masquerades.
pub const RULES: &str = "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SVC-SHOPWEBAAAAAAAAA - [0:0]
:KUBE-SEP-SHOPWEBAAAAAAAAA - [0:0]
:KUBE-SVC-SHOPDNSAAAAAAAAA - [0:0]
:KUBE-SEP-SHOPDNSAAAAAAAAA - [0:0]
:KUBE-SVC-SHOPSIGNALSAAAAA - [0:0]
:KUBE-SEP-SHOPSIGNALSAAAAA - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.1.1/32 -p tcp -m comment --comment \"shop/web cluster IP\" -m tcp --dport 80 -j KUBE-SVC-SHOPWEBAAAAAAAAA
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment \"shop/dns cluster IP\" -m udp --dport 53 -j KUBE-SVC-SHOPDNSAAAAAAAAA
-A KUBE-SERVICES -d 10.96.2.1/32 -p sctp -m comment --comment \"shop/signals cluster IP\" -m sctp --dport 36412 -j KUBE-SVC-SHOPSIGNALSAAAAA
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment shop/web -m tcp --dport 30080 -j KUBE-SVC-SHOPWEBAAAAAAAAA
-A KUBE-NODEPORTS -p udp -m comment --comment shop/dns -m udp --dport 30053 -j KUBE-SVC-SHOPDNSAAAAAAAAA
-A KUBE-NODEPORTS -p udp -m comment --comment shop/dns -m udp --dport 30054 -j KUBE-SVC-SHOPDNSAAAAAAAAA
-A KUBE-NODEPORTS -p sctp -m comment --comment shop/signals -m sctp --dport 30090 -j KUBE-SVC-SHOPSIGNALSAAAAA
-A KUBE-SVC-SHOPWEBAAAAAAAAA -m comment --comment \"shop/web -> 10.244.0.11:8080\" -j KUBE-SEP-SHOPWEBAAAAAAAAA
-A KUBE-SEP-SHOPWEBAAAAAAAAA -p tcp -m comment --comment shop/web -m tcp -j DNAT --to-destination 10.244.0.11:8080
-A KUBE-SVC-SHOPDNSAAAAAAAAA -m comment --comment \"shop/dns -> 10.244.0.11:8053\" -j KUBE-SEP-SHOPDNSAAAAAAAAA
-A KUBE-SEP-SHOPDNSAAAAAAAAA -p udp -m comment --comment shop/dns -m udp -j DNAT --to-destination 10.244.0.11:8053
-A KUBE-SVC-SHOPSIGNALSAAAAA -m comment --comment \"shop/signals -> 10.244.0.11:36412\" -j KUBE-SEP-SHOPSIGNALSAAAAA
-A KUBE-SEP-SHOPSIGNALSAAAAA -p sctp -m comment --comment shop/signals -m sctp -j DNAT --to-destination 10.244.0.11:36412
COMMIT
";

/// Connects by TCP from `port` of a namespace. Waits a second for the connection.
pub fn connect_from(namespace: &str, port: u16, to: &str) -> Result<TcpStream> {
    at(namespace, || {
        let family = if is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let client = socket(family, SocketType::STREAM, None)?;
        set_socket_reuseaddr(&client, true)?;
        set_socket_timeout(&client, Timeout::Send, Some(Duration::from_secs(1)))?;
        set_socket_timeout(&client, Timeout::Recv, Some(Duration::from_secs(1)))?;
        bind(&client, &SocketAddr::new(any(), port))?;
        connect(&client, &socket_address(to))?;
        Ok(client.into())
    })
}

/// What a server of `network` sends: the name of its namespace.
pub fn greeting(stream: &mut TcpStream) -> String {
    let mut line = String::new();
    BufReader::new(&*stream).read_line(&mut line).expect("a greeting");
    line.split(' ').next().expect("a name").to_owned()
}

/// Whether a connection echoes what is sent.
pub fn echoes(stream: &mut TcpStream) -> bool {
    let mut echo = [0; 5];
    stream.write_all(b"more\n").is_ok()
        && stream.read_exact(&mut echo).is_ok()
        && &echo == b"more\n"
}

/// A client of UDP that keeps its port.
pub struct UdpClient(UdpSocket);

impl UdpClient {
    pub fn new(namespace: &str, to: &str) -> UdpClient {
        at(namespace, || {
            let client = UdpSocket::bind((any(), 0)).expect("a port");
            client.set_read_timeout(Some(Duration::from_millis(500))).expect("a time");
            client.connect(socket_address(to)).expect("a destination");
            UdpClient(client)
        })
    }

    /// Asks once. Returns the name of who answers; none if nobody does.
    pub fn ask(&self) -> Option<String> {
        // The first call after a refusal only reports that.
        let _ = self.0.take_error();
        let mut buffer = [0; 64];
        self.0.send(b"who").ok()?;
        let length = self.0.recv(&mut buffer).ok()?;
        String::from_utf8_lossy(&buffer[..length]).split(' ').next().map(str::to_owned)
    }
}
