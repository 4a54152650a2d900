//! The bridge of a node on which the real kube-proxy served: once kube-proxy and its rules are gone,
//! every client gets from every service what it got before.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use proxyshift::kube_proxy::bridge::{Bridge, TABLE};
use proxyshift::kube_proxy::reach::Reach;
use proxyshift::kube_proxy::services::{Location, ServiceKey, ServicePort, Services};
use proxyshift::state::Family;
use proxyshift::state::ipvs::Protocol;
use proxyshift::state::kube_proxy::Mode;

use super::services::{offer, reads_as_the_api_says};
use crate::common::vm::kubernetes;
use crate::network::at;
use crate::pods::{CLIENTS, GATEWAY, Pods, ask};
use crate::proxy::Proxy;

/// How often a client asks a service that has several endpoints, until it has met all of them.
const TIMES: usize = 64;

/// How often a client asks a service that keeps it at its endpoint.
const STICKY_TIMES: usize = 6;

/// How many questions of a client are under way at once.
const WORKERS: usize = 6;

/// A place where a service may answer, and what is known of the service.
struct Target {
    name: String,
    at: SocketAddr,
    protocol: Protocol,
    endpoints: usize,
    is_sticky: bool,
}

/// What each client got from each target.
type Matrix = BTreeMap<(String, String), BTreeSet<String>>;

/// The targets of all services, and a port of a ClusterIP that no service has.
fn targets(services: &Services, own: &BTreeSet<IpAddr>) -> Vec<Target> {
    let mut all = Vec::new();
    for (key, service) in services.iter().filter(|(key, _)| key.protocol != Protocol::Sctp) {
        let addresses: Vec<IpAddr> = match key.address() {
            Some(address) => vec![address],
            None => {
                let of_node = GATEWAY.into_iter().chain(["127.0.0.1", "::1"]);
                let of_node = of_node.map(|a| a.parse().expect("an address"));
                let is_ipv6 = key.location == Location::Node(Family::Ipv6);
                of_node.chain(own.iter().copied()).filter(|a| a.is_ipv6() == is_ipv6).collect()
            }
        };
        let name = service.name.as_deref().unwrap_or_default();
        let name = name.split_once('/').map_or(name, |(_, name)| name).to_owned();
        all.extend(addresses.into_iter().map(|address| target(*key, service, &name, address)));
        if name == "plain:http" {
            let wrong = ServiceKey { port: 81, ..*key };
            all.extend(key.address().map(|a| target(wrong, service, "wrong port", a)));
        }
    }
    all
}

fn target(key: ServiceKey, service: &ServicePort, name: &str, address: IpAddr) -> Target {
    let everywhere = match &service.reach {
        Reach::Local { everywhere } => everywhere.clone().unwrap_or_default(),
        _ => BTreeSet::new(),
    };
    let at = SocketAddr::new(address, key.port);
    Target {
        name: format!("{name} at {at}/{}", key.protocol),
        at,
        protocol: key.protocol,
        endpoints: service.backends.union(&everywhere).count(),
        is_sticky: service.affinity.is_some(),
    }
}

/// What one client gets from a target. Which endpoint keeps it is left to chance, and so is what that
/// endpoint sees of a client that is an endpoint itself.
fn outcome(target: &Target, client: &str, own: &BTreeSet<IpAddr>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut servers = BTreeSet::new();
    for _ in 0..if target.is_sticky { STICKY_TIMES } else { TIMES } {
        match ask(target.protocol, target.at) {
            Ok(answer) => {
                servers.insert(answer.server);
                let sees = match answer.client_at_server {
                    node if own.contains(&node) => "the node's".to_owned(),
                    same if same == answer.client => "its address".to_owned(),
                    other => other.to_string(),
                };
                found.insert(match (target.is_sticky, client) {
                    (false, _) => format!("{} sees {sees}", answer.server),
                    (true, "pod-1") => "one".to_owned(),
                    (true, _) => format!("one sees {sees}"),
                });
            }
            Err(error) => {
                // The kernel does not let UDP out that is refused at the hook output.
                found.insert(match error.kind() {
                    ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied => {
                        "refused".to_owned()
                    }
                    ErrorKind::TimedOut => "no answer".to_owned(),
                    kind => kind.to_string(),
                });
                break;
            }
        }
        if !target.is_sticky && servers.len() >= target.endpoints {
            break;
        }
    }
    if target.is_sticky && servers.len() > 1 {
        found.insert(format!("{} endpoints", servers.len()));
    }
    found
}

/// Lets each client ask each target.
fn ask_all(proxy: &Proxy, targets: &[Target]) -> Matrix {
    let (began, matrix) = (Instant::now(), Mutex::new(Matrix::new()));
    proxy.run("conntrack -F");
    let mut own: BTreeSet<IpAddr> = proxy.node.nftables.iter().copied().collect();
    own.extend(GATEWAY.map(|a| a.parse::<IpAddr>().expect("an address")));
    let clients = CLIENTS.into_iter().chain([proxy.node.name.as_str()]);
    let clients: Vec<(&str, AtomicUsize)> = clients.map(|c| (c, AtomicUsize::new(0))).collect();
    thread::scope(|scope| {
        for (client, next) in clients.iter().cycle().take(clients.len() * WORKERS) {
            let (matrix, own) = (&matrix, &own);
            scope.spawn(move || {
                at(client, || {
                    while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if target.at.ip().is_loopback() && *client != proxy.node.name {
                            continue;
                        }
                        let found = outcome(target, client, own);
                        let key = ((*client).to_owned(), target.name.clone());
                        matrix.lock().expect("whole").insert(key, found);
                    }
                });
            });
        }
    });
    let matrix = matrix.into_inner().expect("whole");
    println!(
        "{}: {} asked in {:.1} s",
        proxy.node.name,
        matrix.len(),
        began.elapsed().as_secs_f64()
    );
    matrix
}

/// What differs between two matrices, one line each, without what the bridge does differently:
/// - a wrong port of a ClusterIP, which nftables mode refuses, leads nowhere;
/// - an outside address of a service without endpoints refuses the node itself, as nftables mode does.
///   iptables mode lets it pass to the load balancer;
/// - on ::1, where no mode serves anything, iptables mode drops what the policy `Local` leaves without
///   endpoints.
fn differing(proxy: &Proxy, mode: Mode, before: &Matrix, now: &Matrix) -> Vec<String> {
    assert!(before.keys().eq(now.keys()));
    let refused = BTreeSet::from(["refused".to_owned()]);
    let is_known = |key @ (client, target): &(String, String)| match mode {
        Mode::Nftables => target.starts_with("wrong port") && before[key] == refused,
        _ => {
            let passes = target.starts_with("local-empty") && *client == proxy.node.name;
            (passes || target.contains(" at [::1]:")) && now[key] == refused
        }
    };
    let mut lines = Vec::new();
    for (key @ (client, target), was) in before {
        let is = &now[key];
        if is != was && !is_known(key) {
            lines.push(format!("{client} → {target}: {was:?} before, {is:?} now"));
        }
    }
    lines
}

/// How many connections the bridges have translated.
fn translated(proxy: &Proxy, bridges: &[Bridge]) -> Vec<u64> {
    let count = |bridge: &Bridge| {
        let listed =
            proxy.run(&format!("nft list counter {} {TABLE} translated", bridge.family.nft()));
        let count = listed.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
        count.and_then(|count| count.parse().ok()).expect("a counter")
    };
    bridges.iter().map(count).collect()
}

fn serves_as_before(version: &str, mode: Mode, settings: &str) {
    let proxy = Proxy::join(version);
    offer(&proxy.namespace, &proxy.node.name);
    let addresses: Vec<String> = proxy.node.nftables.iter().map(ToString::to_string).collect();
    let [four, six] = &addresses[..] else { panic!("{addresses:?}") };
    let _pods = Pods::around(&proxy.node.name, [four, six]);
    let mut proxy = proxy.start(&mode.to_string(), settings);
    let services = reads_as_the_api_says(&proxy.node, mode);
    let targets = targets(&services, &proxy.node.nftables.clone());
    let bridges = Bridge::of(&proxy.proxyshift().captured(), mode);
    assert_eq!(bridges.len(), 2, "both families");

    let before = ask_all(&proxy, &targets);
    for outcome in ["refused", "no answer", "10.244.77.1 sees its address"] {
        let count = before.values().filter(|found| found.contains(outcome)).count();
        assert!(count > 0, "nobody: {outcome}: {before:#?}");
    }
    // Beside the whole mode the bridge changes nothing.
    for bridge in &bridges {
        proxy.run_with(&bridge.script(), &["nft", "-f", "-"]);
    }
    let beside = differing(&proxy, mode, &before, &ask_all(&proxy, &targets));
    assert!(beside.is_empty(), "beside kube-proxy's rules: {beside:#?}");
    assert_eq!(translated(&proxy, &bridges), [0, 0]);

    proxy.stop();
    let program = kubernetes(version, "kube-proxy");
    proxy.run(&format!("{} --cleanup", program.display()));
    let rules = proxy.run("iptables-nft-save") + &proxy.run("nft list tables");
    assert!(!rules.contains("KUBE-SVC") && !rules.contains("kube-proxy"), "{rules}");
    let now = ask_all(&proxy, &targets);
    assert!(translated(&proxy, &bridges).iter().all(|count| *count > 100));
    let differing = differing(&proxy, mode, &before, &now);
    assert!(differing.is_empty(), "in its place: {differing:#?}");
}

#[test]
#[ignore = "of the cluster"]
fn of_iptables_mode_serves_as_kube_proxy_did() {
    serves_as_before("1.37.2", Mode::Iptables, "");
}

#[test]
#[ignore = "of the cluster"]
fn of_nftables_mode_serves_as_kube_proxy_did() {
    serves_as_before("1.37.2", Mode::Nftables, "");
}

#[test]
#[ignore = "of the cluster"]
fn soak_of_iptables_mode_that_masquerades_all_serves_as_kube_proxy_did() {
    let settings = "iptables: {masqueradeAll: true, masqueradeBit: 15}\n";
    serves_as_before("1.34.4", Mode::Iptables, settings);
}

#[test]
#[ignore = "of the cluster"]
fn soak_of_nftables_mode_with_pods_of_a_link_serves_as_kube_proxy_did() {
    let settings = "detectLocalMode: InterfaceNamePrefix\n\
                    detectLocal: {interfaceNamePrefix: cni}\nnftables: {masqueradeBit: 9}\n";
    serves_as_before("1.34.4", Mode::Nftables, settings);
}
