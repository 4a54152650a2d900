//! The bridge on the real kernel: packets of every kind of client to every kind of frontend.

#[path = "../common/mod.rs"]
mod common;
#[path = "../vm/network.rs"]
#[allow(dead_code, reason = "the virtual machine uses the rest")]
mod network;
#[path = "../nodes/mod.rs"]
mod nodes;
mod packets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use common::{in_namespace, run, run_with};
use network::{NODE, of_family, tcp, udp};
use proxyshift::kube_proxy::bridge::{
    Backends, Bridge, Frontend, NoEndpoint, PodSource, Reach, TABLE,
};
use proxyshift::state::Family;
use proxyshift::state::ipvs::Protocol;
use proxyshift::state::kube_proxy::Mode;

const CLUSTER_IP: &str = "10.96.1.1:80";
const DNS: &str = "10.96.0.10:53";
const STICKY: &str = "10.96.1.3:80";
const STAYING: [&str; 2] = ["10.96.1.5:80", "10.96.1.6:80"];
const STAYING_OUTSIDE: [&str; 2] = ["198.51.100.6:80", "198.51.100.7:80"];
const OWN: &str = "10.96.1.4:80";
const EMPTY: &str = "10.96.1.9:80";
const EXTERNAL: &str = "198.51.100.4:80";
const RANGED: &str = "198.51.100.5:80";
const NODE_PORT: &str = "192.168.100.1:30080";
const LOCAL: &str = "192.168.100.1:30086";
const ELSEWHERE: &str = "192.168.100.1:30087";

const BOTH: [&str; 2] = ["10.244.0.11", "10.244.0.12"];

fn socket(text: &str) -> SocketAddr {
    of_family(text).parse().expect(text)
}

fn endpoints(pods: &[&str], port: u16) -> BTreeSet<SocketAddr> {
    pods.iter().map(|pod| socket(&format!("{pod}:{port}"))).collect()
}

fn backends(pods: &[&str], reach: Reach) -> Backends {
    Backends {
        endpoints: endpoints(pods, 8080),
        reach,
        has_affinity: false,
        clients: BTreeMap::new(),
        source_ranges: Vec::new(),
        without: NoEndpoint::Reject,
    }
}

fn bridge(family: Family) -> Bridge {
    let at = |text: &str, protocol, backends: Backends| {
        let socket = socket(text);
        (Frontend { address: socket.ip(), protocol, port: socket.port() }, backends)
    };
    let net = |text: &str| of_family(text).parse().expect(text);
    let local = || Reach::Local { everywhere: Some(endpoints(&BOTH, 8080)) };
    let dns = Backends { endpoints: endpoints(&BOTH, 8053), ..backends(&[], Reach::Cluster) };
    // By its address alone a client would get the same endpoint of all services.
    let staying = |pod: &str| Backends {
        has_affinity: true,
        clients: [("10.244.0.20", pod), ("192.168.100.2", pod)]
            .map(|(from, to)| (of_family(from).parse().expect(from), socket(&format!("{to}:8080"))))
            .into(),
        ..backends(&BOTH, Reach::Cluster)
    };
    let sticky = Backends { clients: BTreeMap::new(), ..staying(BOTH[0]) };
    let [first, second] = BOTH.map(staying);
    let of_outside = |staying: Backends| Backends { reach: local(), ..staying };
    let ranged =
        Backends { source_ranges: vec![net("203.0.113.0/24")], ..backends(&BOTH, Reach::Everyone) };
    let elsewhere = Backends { without: NoEndpoint::Drop, ..backends(&[], local()) };
    let frontends = [
        at(CLUSTER_IP, Protocol::Tcp, backends(&BOTH, Reach::Cluster)),
        at(DNS, Protocol::Udp, dns),
        at(STICKY, Protocol::Tcp, sticky),
        at(STAYING[0], Protocol::Tcp, first.clone()),
        at(STAYING[1], Protocol::Tcp, second.clone()),
        at(STAYING_OUTSIDE[0], Protocol::Tcp, of_outside(first)),
        at(STAYING_OUTSIDE[1], Protocol::Tcp, of_outside(second)),
        at(OWN, Protocol::Tcp, backends(&BOTH[..1], Reach::Cluster)),
        at(EMPTY, Protocol::Tcp, backends(&[], Reach::Cluster)),
        at(EXTERNAL, Protocol::Tcp, backends(&BOTH, Reach::Everyone)),
        at(RANGED, Protocol::Tcp, ranged),
        at(NODE_PORT, Protocol::Tcp, backends(&BOTH, Reach::Everyone)),
        at(LOCAL, Protocol::Tcp, backends(&BOTH[..1], local())),
        at(ELSEWHERE, Protocol::Tcp, elsewhere),
    ];
    let pods = PodSource::Networks(vec![net("10.244.0.0/16")]);
    Bridge { family, mark: 0x4000, pods, frontends: frontends.into() }
}

/// How many connections the bridge has translated.
fn translated(family: Family) -> u64 {
    let listed = run(&format!("nft list counter {} {TABLE} translated", family.nft()));
    let count = listed.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
    count.and_then(|count| count.parse().ok()).expect("a counter")
}

fn client(from: &str, to: &str) -> IpAddr {
    tcp(from, to)
        .unwrap_or_else(|e| panic!("{from:?} → {to}: {e}"))
        .client
        .parse()
        .expect("an address")
}

fn servers(from: &str, to: &str, times: usize) -> BTreeSet<String> {
    let ask = |_| tcp(from, to).unwrap_or_else(|e| panic!("{from:?} → {to}: {e}")).server;
    (0..times).map(ask).collect()
}

fn serves(family: Family) {
    network::make("nft");
    // As CNI plugins do it, so that a pod can be led back to itself.
    run("ip link set v-web-1 type bridge_slave hairpin on");
    run_with(&bridge(family).script(), &["nft", "-f", "-"]);
    let address = |text: &str| of_family(text).parse::<IpAddr>().expect(text);
    let (node, outside) = (address("10.244.0.1"), address("192.168.100.2"));

    // Pods are seen as themselves; everybody else is masqueraded.
    assert_eq!(client("pod", CLUSTER_IP), address("10.244.0.20"));
    assert_eq!(client("outside", EXTERNAL), node);
    assert_eq!(client("outside", NODE_PORT), node);
    assert_eq!(client("pod", EXTERNAL), node);
    assert_eq!(client("box", CLUSTER_IP), node);
    // A pod that is led back to itself.
    assert_eq!(client("web-1", OWN), node);
    for from in ["pod", NODE, "box"] {
        let answered = udp(from, DNS).unwrap_or_else(|e| panic!("{from:?} → {DNS}: {e}"));
        assert!(answered.server.starts_with("web-"), "{from:?}: {answered:?}");
        assert_eq!(servers(from, CLUSTER_IP, 24).len(), 2, "{from:?}: both endpoints");
    }
    assert_eq!(servers("pod", STICKY, 12).len(), 1, "a client stays");
    for (from, both) in [("pod", STAYING), ("pod", STAYING_OUTSIDE), ("outside", STAYING_OUTSIDE)] {
        let got = both.map(|to| servers(from, to, 6).into_iter().collect::<Vec<_>>());
        assert_eq!(got, [["web-1"], ["web-2"]], "{from} stayed with another before");
    }

    // The policy Local: outside clients keep their address, pods and the node get all endpoints.
    assert_eq!(client("outside", LOCAL), outside);
    assert_eq!(servers("outside", LOCAL, 12).len(), 1, "the endpoint on this node");
    assert_eq!(client("pod", LOCAL), address("10.244.0.20"));
    assert_eq!(servers("pod", LOCAL, 24).len(), 2);
    assert_eq!(servers(NODE, ELSEWHERE, 24).len(), 2);
    assert_eq!(servers("pod", ELSEWHERE, 24).len(), 2);
    let dropped = tcp("outside", ELSEWHERE).expect_err("no endpoint on this node");
    assert_eq!(dropped.kind(), std::io::ErrorKind::TimedOut, "{dropped}");

    let refused = tcp("pod", EMPTY).expect_err("nobody is behind it");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
    let denied = tcp("outside", RANGED).expect_err("not from this network");
    assert_eq!(denied.kind(), std::io::ErrorKind::TimedOut, "{denied}");
    // The outside has an address in that network too.
    let way = format!("{} src {}", socket(RANGED).ip(), address("203.0.113.2"));
    let family_flag = if family == Family::Ipv6 { "-6 " } else { "" };
    let gateway = address("192.168.100.1");
    run(&format!("ip -n outside {family_flag}route add {way} via {gateway}"));
    assert_eq!(client("outside", RANGED), node);

    // What comes first with a mapping of its own is left alone.
    let before = translated(family);
    assert!(before > 0);
    let (port, pod) = (socket(NODE_PORT), socket("10.244.0.12:8080"));
    run(&format!(
        "{}-nft -t nat -A PREROUTING -d {} -p tcp --dport {} -j DNAT --to-destination {pod}",
        network::iptables(),
        port.ip(),
        port.port()
    ));
    assert_eq!(servers("outside", NODE_PORT, 6), ["web-2".to_owned()].into());
    assert_eq!(translated(family), before);

    run_with(&Bridge::removal(family), &["nft", "-f", "-"]);
    assert!(!run("nft list tables").contains(TABLE));
}

#[test]
fn every_kind_of_frontend_is_served() {
    if in_namespace("every_kind_of_frontend_is_served") {
        serves(Family::Ipv4);
    }
}

#[test]
fn every_kind_of_frontend_is_served_in_ipv6() {
    if in_namespace("every_kind_of_frontend_is_served_in_ipv6") {
        network::use_ipv6();
        serves(Family::Ipv6);
    }
}

/// The modes that serve anything on a captured node, each with its bridges.
fn captured(name: &str) -> Vec<(Mode, Vec<Bridge>)> {
    let state = nodes::state(&nodes::files(name));
    let bridges = Mode::ALL.map(|mode| (mode, Bridge::of(&state, mode)));
    bridges.into_iter().filter(|(_, bridges)| !bridges.is_empty()).collect()
}

/// Each captured node's bridge loads, and has what the node serves.
#[test]
fn the_bridge_of_each_captured_node_loads() {
    if !in_namespace("the_bridge_of_each_captured_node_loads") {
        return;
    }
    for name in nodes::names() {
        let served = captured(&name);
        assert!(!served.is_empty(), "{name}");
        for (mode, bridges) in served {
            for bridge in &bridges {
                run_with(&bridge.script(), &["nft", "-f", "-"]);
                let listed =
                    run(&format!("nft -j list map {} {TABLE} frontends", bridge.family.nft()));
                let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
                let objects = listed["nftables"].as_array().expect("objects");
                let map = objects.iter().find_map(|object| object.get("map")).expect("the map");
                let count = map["elem"].as_array().map_or(0, Vec::len);
                assert_eq!(count, bridge.frontends.len(), "{name} in {mode} mode");
                run_with(&Bridge::removal(bridge.family), &["nft", "-f", "-"]);
            }
        }
    }
}

/// NodePorts have a frontend for each address of the node on which the mode serves them.
#[test]
fn node_ports_answer_where_the_mode_serves_them() {
    let at = |name: &str, mode: Mode, port: u16| -> Vec<String> {
        let bridges = captured(name).into_iter().filter(|(of, _)| *of == mode);
        let frontends = bridges.flat_map(|(_, bridges)| bridges).flat_map(|b| b.frontends);
        let own = frontends.map(|(frontend, _)| frontend).filter(|f| f.port == port);
        own.map(|frontend| frontend.address.to_string()).collect()
    };
    let of_1_20 = at("docker-legacy-iptables-1.20-no-conntrack", Mode::Iptables, 30080);
    assert_eq!(of_1_20, ["10.9.3.2", "127.0.0.1", "172.17.0.1"]);
    let all = ["10.9.0.2", "127.0.0.1", "172.17.0.1", "192.168.64.1", "192.168.68.1"];
    assert_eq!(at("iptables-1.37", Mode::Iptables, 30080), all);
    let global = ["10.9.0.2", "172.17.0.1", "192.168.64.1"];
    assert_eq!(at("ipvs-1.37", Mode::Ipvs, 30080), global);
    assert_eq!(at("nftables-1.37", Mode::Nftables, 30080), ["10.9.0.2"]);
}
