//! Clients that begin while nobody translates, and then meet ipvs.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use proxyshift::apply::conntrack::{clear_stale, find_stale};
use proxyshift::event::Silent;
use proxyshift::kube_proxy::mode;
use proxyshift::kube_proxy::stale_entries::ServiceDestinations;
use proxyshift::node::capture::{Extent, capture_reporting};
use proxyshift::node::conntrack::ConntrackSocket;
use proxyshift::node::tools::Tools;
use proxyshift::state::NodeState;
use proxyshift::state::kube_proxy::Mode;

use crate::clients::{RULES, UdpClient, connect_from, echoes, greeting};
use crate::common::{run, run_with};
use crate::machine::inside;
use crate::network;

const WEB: &str = "10.96.1.1:80";
const DNS: &str = "10.96.0.10:53";

/// The services, as kube-proxy makes them in ipvs mode.
const SERVERS: &str = "-A -t 10.96.1.1:80 -s rr
-a -t 10.96.1.1:80 -r 10.244.0.11:8080 -m -w 1
-A -u 10.96.0.10:53 -s rr
-a -u 10.96.0.10:53 -r 10.244.0.11:8053 -m -w 1
";

/// Has ipvs serve, as kube-proxy does it.
fn start_ipvs() {
    run("ip link add kube-ipvs0 type dummy");
    for address in ["10.96.1.1", "10.96.0.10"] {
        run(&format!("ip addr add {address}/32 dev kube-ipvs0"));
    }
    run("sysctl -qw net.ipv4.vs.conntrack=1 net.ipv4.vs.expire_nodest_conn=1");
    run_with(SERVERS, &["ipvsadm", "-R"]);
}

/// Runs `work` with the services of a mode.
fn with_services<T>(of: Mode, work: impl FnOnce(&ServiceDestinations<'_>) -> T) -> T {
    let files = capture_reporting(&Tools::find(), Extent::Objects, &Silent).expect("a capture");
    let node = NodeState::parse(files).expect("the node's state");
    let services = mode::of(of).services(&node);
    work(&ServiceDestinations::new(&services, &node.links, &node.ipvs))
}

/// Connects, and is greeted. An emulated CPU may be slow.
fn connects(port: u16) -> TcpStream {
    let mut stream = (0..5).find_map(|_| connect_from("pod", port, WEB).ok()).expect("it connects");
    assert_eq!(greeting(&mut stream), "web-1");
    stream
}

#[test]
#[ignore = "in the machine"]
fn what_ipvs_serves_is_not_cut() {
    if !inside("cases::stale_entries::what_ipvs_serves_is_not_cut") {
        return;
    }
    network::make("nft");
    let udp = UdpClient::new("pod", DNS);
    assert_eq!(udp.ask(), None);
    for port in [6000, 6001] {
        connect_from("pod", port, WEB).expect_err("nobody is there");
    }

    start_ipvs();
    // As Calico does it, and here for one of the clients.
    run("iptables-nft -A FORWARD -p tcp --dport 6001 -m conntrack --ctstate INVALID -j DROP");

    // ipvs serves one of them over its old entry; the others go on missing their service.
    let mut served = connects(6000);
    connect_from("pod", 6001, WEB).expect_err("its replies are INVALID");
    assert_eq!(udp.ask(), None, "its replies come from another port");
    let mut conntrack = ConntrackSocket::open().expect("conntrack");
    let found = with_services(Mode::Ipvs, |services| find_stale(&mut conntrack, services))
        .expect("entries");
    let clients: Vec<String> =
        found.iter().map(|entry| format!("{} {}", entry.protocol, entry.client.port())).collect();
    assert_eq!(clients.len(), 2, "{clients:?}");
    assert!(clients.contains(&"tcp 6001".to_owned()), "{clients:?}");

    assert_eq!(with_services(Mode::Ipvs, clear_stale).expect("cleared"), 2);
    assert_eq!((0..5).find_map(|_| udp.ask()).as_deref(), Some("web-1"));
    connects(6001);
    assert!(echoes(&mut served), "the connection by ipvs");
}

#[test]
#[ignore = "in the machine"]
fn what_ipvs_left_does_not_hang() {
    if !inside("cases::stale_entries::what_ipvs_left_does_not_hang") {
        return;
    }
    network::make("nft");
    let translate = || run_with(RULES, &["iptables-nft-restore", "--noflush"]);
    // As the kernel and kube-proxy have it. With the second the kernel deletes the old entries.
    for (port, expire) in [(6000, 0), (6002, 1)] {
        start_ipvs();
        run(&format!("sysctl -qw net.ipv4.vs.expire_nodest_conn={expire}"));
        let mut served = connects(port);
        let udp = UdpClient::new("pod", DNS);
        assert_eq!((0..5).find_map(|_| udp.ask()).as_deref(), Some("web-1"));
        if expire == 0 {
            translate();
        }
        run("ipvsadm -C");
        run("ip link del kube-ipvs0");
        assert!(!echoes(&mut served) && udp.ask().is_none(), "{expire}: both hang");
        if expire == 1 {
            translate();
            assert!(!echoes(&mut served) && udp.ask().is_none(), "{expire}: both go on to hang");
        }
        assert_eq!(with_services(Mode::Iptables, clear_stale).expect("cleared"), 2, "{expire}");
        assert_eq!((0..5).find_map(|_| udp.ask()).as_deref(), Some("web-1"));
        // The client sends again, less and less often.
        let ends = |stream: &mut TcpStream| match stream.read(&mut [0; 64]) {
            Ok(_) => true,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        assert!((0..30).any(|_| ends(&mut served)), "{expire}: it goes on, or is reset");
        for chain in ["PREROUTING", "OUTPUT"] {
            run(&format!("iptables-nft -t nat -F {chain}"));
        }
        run("conntrack -F");
    }
}
