//! Services of every kind, by the real kube-proxy of each version in nftables mode: what is read of
//! the kernel is what the API says.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proxyshift::kube_proxy::mode;
use proxyshift::kube_proxy::parity::parity;
use proxyshift::kube_proxy::services::{ServiceKey, ServicePort, Services};
use proxyshift::state::kube_proxy::Mode;
use serde_json::{Value, json};

use crate::common::node::nft_objects;
use crate::control_plane::{CEILING, Cluster, logs};
use crate::expected::{Seen, expected};
use crate::proxy::Proxy;

/// The longest name that the API takes.
const LONGEST: usize = 63;

/// An endpoint of both families: the last part of its addresses, whether it is on the node, and its
/// conditions.
pub(super) struct Endpoint(pub u8, pub bool, pub &'static str);

/// The conditions of endpoints.
pub(super) const READY: &str = "ready";
const ENDING: &str = "serving and terminating";
const GONE: &str = "not serving";

const TWO: [Endpoint; 2] = [Endpoint(1, true, READY), Endpoint(2, false, READY)];
const REMOTE: [Endpoint; 2] = [Endpoint(3, false, READY), Endpoint(4, false, READY)];

/// Makes Services of every kind, with endpoints, some of which are on the node.
pub(super) fn offer(namespace: &str, node: &str) {
    let cluster = Cluster::shared();
    cluster.kubectl(&format!("create namespace {namespace}"));
    let mut all = Vec::new();
    let mut add = |name: &str, spec: Value, endpoints: &[Endpoint]| {
        all.extend(with_slices(namespace, node, name, spec, endpoints));
    };
    let http = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
    let three = json!([{"name": "http", "port": 80, "targetPort": 8080},
        {"name": "dns", "port": 53, "targetPort": 8053, "protocol": "UDP"},
        {"name": "sctp", "port": 7000, "targetPort": 7001, "protocol": "SCTP"}]);
    let affinity = json!({"clientIP": {"timeoutSeconds": 600}});
    add("plain", json!({"ports": http}), &TWO);
    add("one", json!({"ports": http}), &TWO[..1]);
    add("unnamed", json!({"ports": [{"port": 80, "targetPort": 8080}]}), &REMOTE);
    add("several", json!({"ports": three, "type": "NodePort"}), &TWO);
    add("headless", json!({"ports": http, "clusterIP": "None"}), &TWO);
    add("empty", json!({"ports": three, "type": "NodePort"}), &[]);
    add("unready", json!({"ports": http}), &[Endpoint(5, true, GONE)]);
    add("ending", json!({"ports": http}), &[Endpoint(6, true, ENDING), Endpoint(7, false, GONE)]);
    add("mixed", json!({"ports": http}), &[Endpoint(6, true, ENDING), Endpoint(8, true, READY)]);
    let sticky = json!({"ports": three, "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": affinity, "type": "NodePort"});
    add("sticky", sticky, &TWO);
    let external = json!({"ports": http, "externalIPs": addresses(namespace, 4)});
    add("external", external, &TWO);
    for (name, endpoints) in [("inside", &TWO[..]), ("inside-empty", &REMOTE)] {
        add(name, json!({"ports": http, "internalTrafficPolicy": "Local"}), endpoints);
    }
    for (name, endpoints) in [("local", &TWO[..]), ("local-remote", &REMOTE), ("local-empty", &[])]
    {
        let local = json!({"ports": http, "type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8:fff1::/64"]});
        add(name, local, endpoints);
    }
    let ranges = json!(["10.20.0.0/24", "203.0.113.7/32", "fd00:20::/64"]);
    let open = json!({"ports": three, "type": "LoadBalancer", "sessionAffinity": "ClientIP",
        "loadBalancerSourceRanges": ranges});
    add("ranges", open, &TWO);
    add("balanced", json!({"ports": http, "type": "LoadBalancer"}), &TWO);
    let portless = json!({"ports": http, "type": "LoadBalancer",
        "allocateLoadBalancerNodePorts": false});
    add("portless", portless, &TWO);
    for (name, family) in [("only-four", "IPv4"), ("only-six", "IPv6")] {
        let spec = json!({"ports": http, "type": "NodePort", "ipFamilyPolicy": "SingleStack",
            "ipFamilies": [family]});
        add(name, spec, &TWO);
    }
    let long = "n".repeat(LONGEST);
    let ports = json!([{"name": "p".repeat(LONGEST), "port": 80, "targetPort": 8080}]);
    let sticky = json!({"ports": ports, "sessionAffinity": "ClientIP"});
    add(&long, sticky, &TWO);
    add("a-b--c-d", json!({"ports": [{"name": "x-y", "port": 80, "targetPort": 8080}]}), &TWO);
    let elsewhere = json!({"metadata": {"name": "elsewhere", "namespace": namespace}, "kind": "Service",
        "apiVersion": "v1", "spec": {"type": "ExternalName", "externalName": "example.org"}});
    all.push(elsewhere);
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string());
    balance(namespace);
}

/// Addresses of both families, which no Service of another case has: these may not be gone yet.
fn addresses(namespace: &str, number: u8) -> [String; 2] {
    let case = namespace.rsplit('-').next().expect("a number");
    [format!("198.18.{case}.{number}"), format!("2001:db8:{case}::{number}")]
}

/// A Service of both families, if `spec` does not say otherwise, with its slices.
pub(super) fn with_slices(
    namespace: &str,
    node: &str,
    name: &str,
    mut spec: Value,
    endpoints: &[Endpoint],
) -> Vec<Value> {
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = json!("RequireDualStack");
    }
    let ports = spec["ports"].as_array().expect("ports").iter().map(|port| {
        json!({"name": port["name"].as_str().unwrap_or_default(), "port": port["targetPort"],
            "protocol": port["protocol"].as_str().unwrap_or("TCP")})
    });
    let ports: Vec<Value> = ports.collect();
    let service = json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
        "metadata": {"name": name, "namespace": namespace}});
    let families = [("IPv4", "10.244.77."), ("IPv6", "fd00:244:0:77::")];
    let slices = families.map(|(family, prefix)| {
        let endpoints = endpoints.iter().map(|Endpoint(last, local, condition)| {
            let node = if *local { node } else { "elsewhere" };
            json!({"addresses": [format!("{prefix}{last}")], "nodeName": node, "conditions": {
                "ready": *condition == READY, "serving": *condition != GONE,
                "terminating": *condition == ENDING}})
        });
        let short: String = name.chars().take(40).collect();
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": format!("{short}-{}", family.to_lowercase()), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name,
                    "endpointslice.kubernetes.io/managed-by": "tests"}},
            "ports": ports, "endpoints": endpoints.collect::<Vec<_>>()})
    });
    [&[service][..], &slices].concat()
}

/// Gives each Service of a load balancer an address of each family, as a cloud would.
fn balance(namespace: &str) {
    let cluster = Cluster::shared();
    let text = cluster.kubectl(&format!("get services -n {namespace} -o json"));
    let services: Value = serde_json::from_str(&text).expect("JSON");
    let balanced = services["items"].as_array().expect("items").iter();
    for (number, service) in
        (50..).zip(balanced.filter(|service| service["spec"]["type"] == "LoadBalancer"))
    {
        let ingress = addresses(namespace, number).map(|ip| json!({"ip": ip, "ipMode": "VIP"}));
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        let name = service["metadata"]["name"].as_str().expect("a name");
        cluster.kubectl(&format!(
            "patch service -n {namespace} {name} --subresource status --type merge -p {patch}"
        ));
    }
}

/// What is read of the kernel, without what stands for the node itself among source ranges.
fn read(node: &Seen, mode: Mode) -> Services {
    let mut services = mode::of(mode).services(&node.state());
    for (key, service) in &mut services {
        let own = key.address().map(ipnet::IpNet::from);
        service.source_ranges.retain(|range| Some(*range) != own);
    }
    services
}

/// Waits until what is read is what the API says, and fails with the differences otherwise.
pub(super) fn reads_as_the_api_says(node: &Seen, mode: Mode) -> Services {
    let until = Instant::now() + CEILING;
    loop {
        let (found, differing) = compared(node, mode);
        if differing.is_empty() {
            println!("{}: {} service ports as the API says", node.name, found.len());
            return found;
        }
        let shown = differing.join("\n");
        assert!(Instant::now() < until, "{mode} mode:\n{shown}\n{}", logs());
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What is read of a node, and in what it differs from what the API says.
pub(super) fn compared(node: &Seen, mode: Mode) -> (Services, Vec<String>) {
    let (wanted, found) = (expected(node, mode), read(node, mode));
    let differing = differences(&wanted, &found);
    (found, differing)
}

fn differences(wanted: &Services, found: &Services) -> Vec<String> {
    let keys: BTreeSet<&ServiceKey> = wanted.keys().chain(found.keys()).collect();
    let line = |key: &ServiceKey| {
        let (a, b): (Option<&ServicePort>, _) = (wanted.get(key), found.get(key));
        (a != b).then(|| format!("{key}\n  of the API: {a:?}\n  read:       {b:?}"))
    };
    keys.into_iter().filter_map(line).collect()
}

/// Reads the Services of a kube-proxy of `version`, in nftables and then in iptables mode.
fn are_read_by(version: &str, settings: &str) {
    let proxy = Proxy::join(version);
    offer(&proxy.namespace, &proxy.node.name);
    let proxy = proxy.start("nftables", settings);
    let new = reads_as_the_api_says(&proxy.node, Mode::Nftables);
    let proxy = proxy.start("iptables", settings);
    let old = reads_as_the_api_says(&proxy.node, Mode::Iptables);
    assert_eq!(parity(&old, &new), [], "iptables to nftables");
    assert_eq!(parity(&new, &old), [], "nftables to iptables");
}

#[test]
#[ignore = "of the cluster"]
fn at_all_addresses_of_the_node_and_masqueraded_are_read() {
    let settings = "nodePortAddresses: ['0.0.0.0/0', '::/0']\n\
                    iptables: {masqueradeAll: true}\nnftables: {masqueradeAll: true}\n";
    are_read_by("1.37.2", settings);
}

#[test]
#[ignore = "of the cluster"]
fn soak_at_some_addresses_of_the_node_are_read() {
    are_read_by("1.34.4", "nodePortAddresses: [10.20.0.0/24, 'fd00:20::/64']\n");
}

/// Tables of others beside kube-proxy's, with their names and handles.
const OTHERS: &str = "table inet kube-proxy { comment \"ours\"
set s { type ipv4_addr; comment \"ours\"; elements = { 192.0.2.1 comment \"one\" }; }
chain c { type filter hook forward priority 7; ip saddr @s accept; }; }
table ip kube-proxy2 { chain c { type filter hook forward priority 8; }; }
table bridge kube-proxy { chain c { type filter hook forward priority 9; }; }
";

fn others(proxy: &Proxy) -> String {
    let tables = ["inet kube-proxy", "ip kube-proxy2", "bridge kube-proxy"];
    tables.map(|table| proxy.run(&format!("nft -j -a list table {table}"))).concat()
}

/// kube-proxy's tables in nft's JSON, as [`nft_objects`].
fn own(proxy: &Proxy) -> Vec<String> {
    let of_family = |family| proxy.run(&format!("nft -j list table {family} kube-proxy"));
    ["ip", "ip6"].map(|family| nft_objects(&of_family(family))).concat()
}

/// The tables of a kube-proxy that serves in iptables mode now are removed and put back; and what
/// iptables mode left when nftables mode serves again is removed.
fn each_mode_is_cleaned_up(version: &str) {
    let proxy = Proxy::join(version);
    offer(&proxy.namespace, &proxy.node.name);
    let proxy = proxy.start("nftables", "");
    let served = reads_as_the_api_says(&proxy.node, Mode::Nftables);
    let (before, program) = (own(&proxy), proxy.proxyshift());
    proxy.run_with(OTHERS, &["nft", "-f", "-"]);
    // Nothing of a healthy node is a leftover.
    let plan = program.expect(0, "plan -o json").json();
    let objects = plan["objects"].as_array().expect("objects").iter();
    assert_eq!(objects.filter(|o| o["action"] != "keep").count(), 0, "{plan:#}");
    let beside = others(&proxy);

    // Without nft it leaves the tables alone.
    let proxy = proxy.start_alone("iptables", "");
    assert_eq!(parity(&served, &reads_as_the_api_says(&proxy.node, Mode::Iptables)), []);
    assert_eq!(own(&proxy), before);
    let plan = program.expect(0, "plan -o json").json();
    let objects = plan["objects"].as_array().expect("objects").iter();
    let removed: Vec<&Value> = objects.filter(|o| o["action"] == "remove").collect();
    assert_eq!(removed.len(), 2, "{plan:#}");
    program.expect(0, "rehearse");
    program.expect(0, "cleanup --yes");
    let tables = proxy.run("nft list tables");
    assert!(
        !tables.contains(" ip kube-proxy\n") && !tables.contains("ip6 kube-proxy\n"),
        "{tables}"
    );
    assert_eq!(others(&proxy), beside);
    reads_as_the_api_says(&proxy.node, Mode::Iptables);
    let back = program.expect(0, "rollback");
    assert_eq!(own(&proxy), before, "{}", back.err);
    assert_eq!(reads_as_the_api_says(&proxy.node, Mode::Nftables), served);
    assert_eq!(others(&proxy), beside);
    program.expect(0, "cleanup --yes");

    let proxy = proxy.start_alone("nftables", "");
    reads_as_the_api_says(&proxy.node, Mode::Nftables);
    program.expect(0, "cleanup --yes");
    for save in ["iptables-nft-save", "ip6tables-nft-save"] {
        let left = proxy.run(save);
        // A kubelet up to 1.26 writes these too, and the version of the one here is not known.
        let shared = ["KUBE-FIREWALL", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"];
        let is_shared = |line: &&str| shared.iter().any(|chain| line.contains(chain));
        let of_mode = left.lines().filter(|l| l.contains("KUBE-") && !is_shared(l));
        assert_eq!(of_mode.collect::<Vec<_>>(), [""; 0], "{left}");
    }
    reads_as_the_api_says(&proxy.node, Mode::Nftables);
    assert_eq!(others(&proxy), beside);
}

#[test]
#[ignore = "of the cluster"]
fn of_1_37_are_left_by_each_mode_and_cleaned_up() {
    each_mode_is_cleaned_up("1.37.2");
}

#[test]
#[ignore = "of the cluster"]
fn of_1_34_are_left_by_each_mode_and_cleaned_up() {
    each_mode_is_cleaned_up("1.34.4");
}
