//! Services in the way in which each mode of kube-proxy serves them, read from the captured nodes.

mod nodes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proxyshift::kube_proxy::mode::{self, chains_by_name};
use proxyshift::kube_proxy::reach::{NoEndpoint, PodSource, Reach};
use proxyshift::kube_proxy::services::*;
use proxyshift::state::ipvs::Protocol;
use proxyshift::state::kube_proxy::Mode;
use proxyshift::state::{Family, NodeState};

fn node(name: &str) -> NodeState {
    nodes::state(&nodes::files(name))
}

fn services(state: &NodeState, mode: Mode) -> Services {
    mode::of(mode).services(state)
}

fn find<'a>(services: &'a Services, key: &str) -> &'a ServicePort {
    let found = services.iter().find(|(k, _)| k.to_string() == key);
    found.unwrap_or_else(|| panic!("no {key}: {:?}", services.keys().collect::<Vec<_>>())).1
}

fn backends(service: &ServicePort) -> Vec<String> {
    service.backends.iter().map(ToString::to_string).collect()
}

#[test]
fn every_kind_of_service_reads_the_same_in_every_mode() {
    // Two nodes have `live/web`, with a NodePort, and `live/dns` too; those that kube-proxy 1.34 and
    // 1.37 wrote for this have fewer of `default/app-N`, and `shop/six` in both families.
    for (name, mode, count) in [
        ("docker-legacy-iptables-1.20-no-conntrack", Mode::Iptables, 34),
        ("docker-iptables-1.30", Mode::Iptables, 34),
        ("half-migrated-ipvs-1.20", Mode::Ipvs, 34),
        ("nftables-leftovers-1.30", Mode::Nftables, 34),
        ("iptables-1.37", Mode::Iptables, 37),
        ("nftables-1.37", Mode::Nftables, 37),
        ("iptables-1.34", Mode::Iptables, 21),
        ("nftables-1.34", Mode::Nftables, 21),
        ("nftables-leftovers-legacy-1.37", Mode::Nftables, 21),
        ("nftables-beside-iptables-1.37", Mode::Nftables, 19),
        ("ipvs-1.34", Mode::Ipvs, 21),
        ("ipvs-1.37", Mode::Ipvs, 21),
        ("half-migrated-ipvs-1.37", Mode::Ipvs, 21),
    ] {
        let services = services(&node(name), mode);
        assert_eq!(services.len(), count, "{name}");
        let dns = find(&services, "10.96.0.10:53/udp");
        assert_eq!(backends(dns), ["192.168.64.7:53", "192.168.66.5:53"], "{name}");
        let balanced = find(&services, "203.0.113.50:443/tcp");
        assert_eq!(backends(balanced), ["192.168.64.11:443"], "{name}");
        assert_eq!(
            balanced.source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["203.0.113.0/24"],
            "{name}"
        );
        assert_eq!(find(&services, "10.96.1.3:443/tcp").backends.len(), 2, "{name}");
        assert!(find(&services, "10.96.1.5:7000/tcp").backends.is_empty(), "{name}");
        assert_eq!(find(&services, "10.96.1.6:7002/sctp").backends.len(), 1, "{name}");
        assert_eq!(find(&services, "10.96.1.2:8000/tcp").affinity, Some(10800), "{name}");
        assert_eq!(find(&services, "node port 30080/tcp").backends.len(), 3, "{name}");
        assert_eq!(
            backends(find(&services, "node port 30443/tcp")),
            ["192.168.64.11:443"],
            "{name}"
        );
        let expected = (mode != Mode::Ipvs).then_some("kube-system/kube-dns:dns");
        assert_eq!(dns.name.as_deref(), expected, "{name}");
    }
}

/// From where each kind of service is reached, of nodes that have the same ones.
#[test]
fn reach_reads_the_same_in_every_mode() {
    for (name, mode) in [
        ("docker-legacy-iptables-1.20-no-conntrack", Mode::Iptables),
        ("docker-iptables-1.30", Mode::Iptables),
        ("half-migrated-ipvs-1.20", Mode::Ipvs),
        ("nftables-leftovers-1.30", Mode::Nftables),
        ("iptables-1.34", Mode::Iptables),
        ("nftables-1.34", Mode::Nftables),
        ("ipvs-1.34", Mode::Ipvs),
        ("iptables-1.37", Mode::Iptables),
        ("nftables-1.37", Mode::Nftables),
        ("ipvs-1.37", Mode::Ipvs),
    ] {
        let state = node(name);
        let services = services(&state, mode);
        let reach = |key: &str| find(&services, key).reach.clone();
        for key in ["10.96.0.10:53/udp", "10.96.1.3:443/tcp", "10.96.1.5:7000/tcp"] {
            assert_eq!(reach(key), Reach::Cluster, "{name}: {key}");
        }
        for key in ["198.51.100.7:9000/tcp", "node port 30080/tcp"] {
            assert_eq!(reach(key), Reach::Everyone, "{name}: {key}");
        }
        let all = || ["192.168.64.11:443", "192.168.66.11:443"].map(|e| e.parse().unwrap()).into();
        // A virtual server has the same endpoints for everybody.
        let everywhere = (mode != Mode::Ipvs).then(all);
        for key in ["203.0.113.50:443/tcp", "node port 30443/tcp"] {
            let local = Reach::Local { everywhere: everywhere.clone() };
            assert_eq!(reach(key), local, "{name}: {key}");
        }
        assert_eq!(find(&services, "10.96.1.5:7000/tcp").without, NoEndpoint::Reject, "{name}");
        let pods = PodSource::Networks(vec!["192.168.64.0/20".parse().unwrap()]);
        assert_eq!(mode::of(mode).pods(&state, Family::Ipv4), pods, "{name}");
    }
}

/// These nodes have the same services in different modes, so they must have the same endpoints: a
/// migration must show this parity.
#[test]
fn modes_agree_on_endpoints() {
    let plain = |services: Services| -> BTreeMap<ServiceKey, BTreeSet<SocketAddr>> {
        services.into_iter().map(|(k, s)| (k, s.backends)).collect()
    };
    let old = plain(services(&node("docker-legacy-iptables-1.20-no-conntrack"), Mode::Iptables));
    assert_eq!(old, plain(services(&node("docker-iptables-1.30"), Mode::Iptables)));
    assert_eq!(old, plain(services(&node("half-migrated-ipvs-1.20"), Mode::Ipvs)));
    assert_eq!(old, plain(services(&node("nftables-leftovers-1.30"), Mode::Nftables)));
    let new = plain(services(&node("iptables-1.37"), Mode::Iptables));
    assert_eq!(new, plain(services(&node("nftables-1.37"), Mode::Nftables)));
    assert!(new.values().filter(|backends| backends.is_empty()).count() == 1, "{new:?}");
    assert!(old.iter().all(|(key, backends)| new.get(key) == Some(backends)), "{new:?}");
    // These have a service in both families.
    let dual = plain(services(&node("iptables-1.34"), Mode::Iptables));
    for name in ["ipvs-1.34", "ipvs-1.37", "half-migrated-ipvs-1.37"] {
        assert_eq!(dual, plain(services(&node(name), Mode::Ipvs)), "{name}");
    }
}

/// The layouts of nftables mode in 1.34 and in 1.37 mean the same, in both families.
#[test]
fn layouts_agree_on_services() {
    let plain = |name: &str, mode| -> BTreeMap<ServiceKey, ServicePort> {
        let services = services(&node(name), mode).into_iter();
        services.map(|(k, s)| (k, ServicePort { node_addresses: BTreeSet::new(), ..s })).collect()
    };
    let expected = plain("iptables-1.34", Mode::Iptables);
    assert!(expected.keys().any(|key| key.to_string() == "[fd00:96::7]:80/tcp"), "{expected:?}");
    assert_eq!(expected, plain("nftables-1.34", Mode::Nftables));
    assert_eq!(expected, plain("nftables-leftovers-legacy-1.37", Mode::Nftables));
    assert_eq!(expected, plain("nftables-leftovers-legacy-1.37", Mode::Iptables));
}

/// ipvs mode has rewritten KUBE-SERVICES on this node, so the old chains still give the names of
/// services and their endpoints, but no service addresses.
#[test]
fn a_half_migrated_node_still_has_the_old_endpoints_by_name() {
    let state = node("half-migrated-ipvs-1.20");
    let chains = chains_by_name(&state);
    let old = services(&node("docker-legacy-iptables-1.20-no-conntrack"), Mode::Iptables);
    let new = services(&state, Mode::Ipvs);
    let mut compared = 0;
    for (key, service) in &old {
        let name = service.name.as_deref().expect("iptables mode keeps names");
        if key.address().is_none_or(|a| !a.to_string().starts_with("10.9")) {
            continue;
        }
        assert_eq!(
            chains.get(name).cloned().unwrap_or_default(),
            new[key].backends,
            "{key} {name}"
        );
        compared += 1;
    }
    assert_eq!(compared, 30);
    let only_rejected = services(&state, Mode::Iptables);
    assert_eq!(
        only_rejected.keys().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.96.1.5:7000/tcp", "node port 30080/tcp", "node port 30443/tcp"]
    );
}

#[test]
fn a_weight_of_zero_is_no_backend() {
    let state = node("ipvs-dns-blackhole-1.20");
    let key = |k: &ServiceKey, _: Option<&str>| k.port == 53 && k.protocol == Protocol::Udp;
    let dns = mode::of(Mode::Ipvs).services_where(&state, &key);
    assert_eq!(dns.len(), 1);
    assert_eq!(backends(find(&dns, "10.96.0.10:53/udp")), ["192.168.64.7:53"]);
}

#[test]
fn someone_elses_virtual_server_is_no_service() {
    let services = services(&node("ipvs-with-keepalived-1.20"), Mode::Ipvs);
    assert!(services.keys().all(|k| k.port != 8443));
}
