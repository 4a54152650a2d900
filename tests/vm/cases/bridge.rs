//! The bridge in place of ipvs mode, and of the iptables mode of each version: every client gets from
//! every service what it got before.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Result};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use proxyshift::kube_proxy::bridge::Bridge;
use proxyshift::state::kube_proxy::Mode;

use crate::cluster::{BIN, Cluster};
use crate::common::node::Proxyshift;
use crate::common::{run, run_with};
use crate::kube_proxy::{is_old, program};
use crate::machine::inside;
use crate::network::{Answer, NODE, tcp, udp};

/// The places from which services are asked; web-1 is an endpoint itself.
const CLIENTS: [&str; 5] = ["pod", "web-1", NODE, "box", "outside"];

/// How to ask a service.
type Ask = fn(&str, &str) -> Result<Answer>;

/// The services of services.yaml.
const SERVICES: [(Ask, &str); 14] = [
    (tcp, "10.96.1.1:80"),
    (udp, "10.96.0.10:53"),
    (tcp, "10.96.0.10:53"),
    (tcp, "10.96.1.2:80"),
    (tcp, STICKY),
    (tcp, "10.96.1.4:80"),
    (tcp, EXTERNAL),
    (tcp, "198.51.100.5:80"),
    (tcp, "192.168.100.1:30080"),
    (tcp, "10.244.0.1:30080"),
    (udp, "192.168.100.1:30053"),
    (tcp, "192.168.100.1:30085"),
    (tcp, "192.168.100.1:30086"),
    (tcp, "10.96.1.9:80"),
];

const STICKY: &str = "10.96.1.3:80";
const EXTERNAL: &str = "198.51.100.4:80";

/// The addresses of the node.
const OWN: [&str; 4] = ["192.168.100.1", "10.244.0.1", "172.17.0.1", "127.0.0.1"];

/// What each client gets from each service. Of two endpoints both are met within so many questions.
const TIMES: usize = 32;

type Matrix = BTreeMap<(&'static str, &'static str), BTreeSet<String>>;

/// What a client gets from a service. Which endpoint keeps it is left to chance.
fn outcome(ask: Ask, client: &str, service: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut servers = BTreeSet::new();
    for _ in 0..if service == STICKY { 4 } else { TIMES } {
        match ask(client, service) {
            Ok(answer) => {
                let sees = match &*answer.client {
                    own if OWN.contains(&own) => "the node",
                    other => other,
                };
                let is_sticky = service == STICKY;
                let server = if is_sticky { "one" } else { &*answer.server };
                // What the one sees of an endpoint depends on whether it is the same.
                let sees = if is_sticky && client == "web-1" { "it" } else { sees };
                found.insert(format!("{server} sees {sees}"));
                servers.insert(answer.server);
            }
            Err(error) => {
                let refused = [ErrorKind::ConnectionRefused, ErrorKind::PermissionDenied];
                let is_refused = refused.contains(&error.kind());
                found.insert(if is_refused { "refused" } else { "no answer" }.to_owned());
                break;
            }
        }
        if servers.len() == 2 {
            break;
        }
    }
    assert!(service != STICKY || servers.len() == 1, "{client:?}: {servers:?}");
    found
}

/// Lets all clients ask all services, each client beside the others. One service answers one client after
/// the other: two that ask in step share the turns of a round robin, and each would meet one endpoint alone.
fn ask_all() -> Matrix {
    run("conntrack -F");
    let turns = SERVICES.map(|_| Mutex::new(()));
    let of = |client| {
        let services = SERVICES.iter().zip(&turns);
        let asked = services.map(|((ask, service), turn)| {
            let _turn = turn.lock().expect("no client panics");
            ((client, *service), outcome(*ask, client, service))
        });
        asked.collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let of = &of;
        let asking = CLIENTS.map(|client| scope.spawn(move || of(client)));
        asking.into_iter().flat_map(|thread| thread.join().expect("answers")).collect()
    })
}

/// Fails with each difference, but what iptables mode of 1.20 does not serve: connections to an
/// outside address by the node and, where the rules see the ports of bridges, by what is behind one.
fn assert_same(before: &Matrix, now: &Matrix, mode: Mode, when: &str) {
    let lost = |client, service| {
        mode == Mode::Iptables && is_old() && client != "outside" && service == EXTERNAL
    };
    let differing = before.iter().filter(|((client, service), was)| {
        now[&(*client, *service)] != **was && !lost(*client, *service)
    });
    let lines = differing.map(|(key, was)| format!("{key:?}: {was:?} before, {:?} now", now[key]));
    let lines: Vec<String> = lines.collect();
    assert!(lines.is_empty(), "{when}: {lines:#?}");
}

/// The rules of a kubelet up to 1.26 that drop what kube-proxy up to 1.24 lets it drop.
fn mark_drop() {
    let nat = "*nat\n-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000\nCOMMIT\n";
    let filter = "*filter\n:KUBE-FIREWALL -\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n\
                  -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\nCOMMIT\n";
    run_with(&format!("{nat}{filter}"), &["iptables-nft-restore", "--noflush"]);
}

fn serves_in_place_of(mode: Mode) {
    let mut cluster = Cluster::new("nft");
    run("ip link set v-web-1 type bridge_slave hairpin on");
    // The kernel counts redirects among the refusals that it may send within a second.
    run("sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0");
    cluster.kube_proxy(&mode.to_string());
    cluster.serves();
    if is_old() {
        mark_drop();
    }
    let before = ask_all();
    let bridges = Bridge::of(&Proxyshift::new("store").captured(), mode);
    assert_eq!(bridges.len(), 1, "{bridges:?}");
    run_with(&bridges[0].script(), &["nft", "-f", "-"]);
    assert_same(&before, &ask_all(), mode, "beside kube-proxy's rules");

    cluster.stop();
    let path = format!("{BIN}:{}", std::env::var("PATH").expect("a PATH"));
    let cleaned = Command::new(program()).arg("--cleanup").env("PATH", path).output();
    println!("{cleaned:?}");
    // kube-proxy leaves some of this, by version.
    run("ipvsadm -C");
    let _ = Command::new("ip").args(["link", "del", "kube-ipvs0"]).output();
    let nat = cluster.save("nat");
    assert!(!nat.contains("KUBE-SVC-") && !nat.contains("-A KUBE-SERVICES"), "{nat}");
    assert_same(&before, &ask_all(), mode, "in their place");
}

#[test]
#[ignore = "in the machine"]
fn the_bridge_serves_in_place_of_ipvs_mode() {
    if inside("cases::bridge::the_bridge_serves_in_place_of_ipvs_mode") {
        serves_in_place_of(Mode::Ipvs);
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_the_bridge_serves_in_place_of_iptables_mode() {
    if inside("cases::bridge::soak_the_bridge_serves_in_place_of_iptables_mode") {
        serves_in_place_of(Mode::Iptables);
    }
}
