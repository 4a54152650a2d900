//! Clients that begin while nobody translates, and keep their port.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, UdpSocket};

use proxyshift::apply::conntrack::{clear_stale, find_stale};
use proxyshift::event::Silent;
use proxyshift::kube_proxy::mode;
use proxyshift::kube_proxy::stale_entries::ServiceDestinations;
use proxyshift::node::capture::{Extent, capture_reporting};
use proxyshift::node::conntrack::ConntrackSocket;
use proxyshift::node::tools::Tools;
use proxyshift::state::NodeState;
use proxyshift::state::kube_proxy::Mode;
use serde_json::Value;

use crate::clients::{RULES, UdpClient, connect_from, echoes, greeting};
use crate::common::node::Proxyshift;
use crate::common::{in_namespace, run, run_with};
use crate::network::{self, NODE, any, at, of_family, socket_address};
use crate::sctp::Packets;

const WEB: &str = "10.96.1.1:80";
const DNS: &str = "10.96.0.10:53";
const SIGNALS: &str = "10.96.2.1:36412";
const NODE_DNS: &str = "192.168.100.1:30053";
const NODE_WEB: &str = "192.168.100.1:30080";
const NODE_SIGNALS: &str = "192.168.100.1:30090";
const OWN_DNS: &str = "192.168.100.1:30054";

fn node() -> NodeState {
    let files = capture_reporting(&Tools::find(), Extent::Objects, &Silent).expect("a capture");
    NodeState::parse(files).expect("the node's state")
}

/// The stale entries, as messages show them.
fn stale() -> Vec<String> {
    let node = node();
    let services = mode::of(Mode::Iptables).services(&node);
    let destinations = ServiceDestinations::new(&services, &node.links, &node.ipvs);
    let mut conntrack = ConntrackSocket::open().expect("conntrack");
    let found = find_stale(&mut conntrack, &destinations).expect("entries");
    found.iter().map(ToString::to_string).collect()
}

/// As the stage `settle` does it.
fn settle() -> usize {
    let node = node();
    let services = mode::of(Mode::Iptables).services(&node);
    clear_stale(&ServiceDestinations::new(&services, &node.links, &node.ipvs)).expect("cleared")
}

/// The outcome of the check, by the program, and its remedy.
fn checked() -> (String, Vec<String>) {
    let check = Proxyshift::new("store").run("check --only conntrack.untranslated -o json");
    let finding = &check.json()["findings"][0];
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let remedy = finding["remedy"].as_array().expect("a list").iter().map(text).collect();
    (text(&finding["outcome"]), remedy)
}

/// Where clients of services are. What `box` sends to elsewhere is masqueraded.
const CLIENTS: [&str; 3] = ["pod", "box", NODE];

fn clients_reach_their_service() {
    network::make("nft");
    // The program of the node that answers on the port of a NodePort, and its clients.
    let own = TcpListener::bind((any(), 30080)).expect("30080");
    let own_udp = UdpSocket::bind((any(), 30054)).expect("30054");
    let mut in_use = connect_from("outside", 5000, NODE_WEB).expect("the program's own client");
    let (mut accepted, _) = own.accept().expect("it is accepted");
    drop(own);
    let own_client = UdpClient::new("outside", OWN_DNS);
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = own_udp.recv_from(&mut buffer) {
            let _ = own_udp.send_to(b"program of-the-node", peer);
        }
    });
    assert_eq!(own_client.ask().as_deref(), Some("program"));

    // Nobody translates.
    let udp = CLIENTS.map(|from| UdpClient::new(from, DNS));
    let node_port = UdpClient::new("outside", NODE_DNS);
    let packets = |namespace, address| {
        let address = socket_address(address);
        at(namespace, || Packets::at(address.ip()))
    };
    let pod = packets("pod", "10.244.0.20:0");
    let outside = packets("outside", "192.168.100.2:0");
    let (node, web) = (packets(NODE, NODE_SIGNALS), packets("web-1", "10.244.0.11:0"));
    let missed = || {
        for (client, from) in udp.iter().zip(CLIENTS) {
            assert_eq!(client.ask(), None, "udp from {from:?}");
            let error = connect_from(from, 6000, WEB).expect_err("nobody is there");
            assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "tcp from {from:?}");
        }
        assert_eq!(node_port.ask(), None);
        pod.begin(7000, socket_address(SIGNALS));
        outside.begin(7001, socket_address(NODE_SIGNALS));
        // Nobody listens there, so the node refuses, as a kernel does that has SCTP.
        assert!(node.receive(30090));
        node.refuse(30090, socket_address("192.168.100.2:7001"));
        assert!(!web.receive(36412), "an association");
    };
    // It is 3 s, and those are over before a slow machine has come this far.
    run("sysctl -qw net.netfilter.nf_conntrack_sctp_timeout_cookie_wait=60");
    missed();

    // The rules are right, and these clients go on missing their service; others do not.
    let rules = of_family(RULES);
    run_with(&rules, &[&format!("{}-nft-restore", network::iptables()), "--noflush"]);
    missed();
    let mut translated = connect_from("outside", 6001, NODE_WEB).expect("another client");
    assert_eq!(greeting(&mut translated), "web-1");
    let found = stale();
    assert_eq!(found.len(), 2 * CLIENTS.len() + 3, "{found:#?}");
    assert!(found.iter().all(|entry| entry.ends_with("not translated")), "{found:#?}");

    let (outcome, remedy) = checked();
    assert_eq!((&*outcome, remedy.len()), ("found", found.len()));
    // What the check says removes that one entry.
    run(remedy.iter().find(|command| command.contains("-p sctp")).expect("one of SCTP"));
    assert_eq!(stale().len(), found.len() - 1);

    assert_eq!(settle(), found.len() - 1);
    for (client, from) in udp.iter().zip(CLIENTS) {
        assert_eq!(client.ask().as_deref(), Some("web-1"), "udp from {from:?}");
        let mut stream = connect_from(from, 6000, WEB).unwrap_or_else(|e| panic!("{from:?}: {e}"));
        assert_eq!(greeting(&mut stream), "web-1");
    }
    assert_eq!(node_port.ask().as_deref(), Some("web-1"));
    pod.begin(7000, socket_address(SIGNALS));
    assert!(web.receive(36412), "an association");
    outside.begin(7001, socket_address(NODE_SIGNALS));
    assert!(web.receive(36412), "an association by a NodePort");

    // What was in use goes on.
    assert!(echoes(&mut translated), "a translated connection");
    in_use.write_all(b"here").expect("sent");
    let mut received = [0; 4];
    accepted.read_exact(&mut received).expect("the program's own connection");
    assert_eq!(own_client.ask().as_deref(), Some("program"));
    assert_eq!((stale(), checked()), (Vec::new(), ("ok".to_owned(), Vec::new())));
}

#[test]
fn clients_that_keep_their_port_reach_their_service() {
    if in_namespace("missed::clients_that_keep_their_port_reach_their_service") {
        clients_reach_their_service();
    }
}

#[test]
fn clients_that_keep_their_port_reach_their_service_in_ipv6() {
    if in_namespace("missed::clients_that_keep_their_port_reach_their_service_in_ipv6") {
        network::use_ipv6();
        clients_reach_their_service();
    }
}
