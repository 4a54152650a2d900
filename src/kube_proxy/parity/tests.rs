//! Parity of random services, and of a few fixed ones.

use std::net::{IpAddr, Ipv4Addr};

use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;

use super::*;
use crate::state::Family;
use crate::state::ipvs::Protocol;

fn key(text: &str) -> ServiceKey {
    ServiceKey::at(text.parse().unwrap(), Protocol::Tcp)
}

fn service(backends: &[&str]) -> ServicePort {
    let backends = backends.iter().map(|b| b.parse().unwrap()).collect();
    ServicePort { backends, ..ServicePort::default() }
}

fn sentences(missing: &[Missing]) -> Vec<String> {
    missing.iter().map(ToString::to_string).collect()
}

#[test]
fn each_difference_has_a_name() {
    let a = ServicePort {
        name: Some("shop/web:http".into()),
        affinity: Some(10800),
        source_ranges: ["10.0.0.0/8".parse().unwrap()].into(),
        ..service(&["10.1.0.1:80", "10.1.0.2:80"])
    };
    let node_port =
        ServiceKey { location: Location::Node(Family::Ipv4), port: 30080, protocol: Protocol::Tcp };
    let before = Services::from([
        (key("10.96.0.1:80"), a.clone()),
        (key("10.96.0.2:80"), service(&["10.1.0.3:80"])),
        (key("10.96.0.3:80"), service(&[])),
        (node_port, ServicePort { affinity: None, ..a }),
    ]);
    let after = Services::from([
        (key("10.96.0.1:80"), service(&["10.1.0.2:80", "10.1.0.9:80"])),
        (
            node_port,
            ServicePort {
                affinity: Some(1),
                source_ranges: ["10.0.0.0/8".parse().unwrap()].into(),
                ..service(&["10.1.0.1:80", "10.1.0.2:80"])
            },
        ),
    ]);
    assert_eq!(
        sentences(&parity(&before, &after)),
        [
            "10.96.0.1:80/tcp (shop/web:http): the backend 10.1.0.1:80 is missing",
            "10.96.0.1:80/tcp (shop/web:http): clients no longer stay with their backend",
            "10.96.0.1:80/tcp (shop/web:http): open to everyone now, to 10.0.0.0/8 before",
            "10.96.0.2:80/tcp is missing",
            "node port 30080/tcp (shop/web:http): clients now stay with their backend",
        ]
    );
}

#[test]
fn ranges_that_mean_the_same_are_no_difference() {
    let with = |ranges: &[&str]| {
        let source_ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
        let service = ServicePort { source_ranges, ..service(&["10.1.0.1:443"]) };
        Services::from([(key("203.0.113.50:443"), service)])
    };
    for (before, after, same) in [
        (&["10.0.0.0/8"][..], &["10.1.2.3/8"][..], true),
        (&["0.0.0.0/0"], &[], true),
        (&["10.0.0.0/8"], &["10.0.0.0/8", "203.0.113.50/32"], true),
        (&["10.0.0.0/8"], &[], false),
        (&[], &["10.0.0.0/8"], false),
        (&["10.0.0.0/8"], &["10.0.0.0/9"], false),
    ] {
        let missing = parity(&with(before), &with(after));
        assert_eq!(missing.is_empty(), same, "{before:?} {after:?}");
    }
}

/// If no endpoint is local, ipvs mode sends outside traffic to every endpoint, and iptables mode
/// sends it to none.
#[test]
fn a_local_policy_without_a_local_endpoint_is_no_difference() {
    let backends = ["10.1.0.1:443", "10.1.0.2:443"];
    let (cluster, balancer) = (key("10.96.0.3:443"), key("203.0.113.50:443"));
    let before = Services::from([(cluster, service(&backends)), (balancer, service(&backends))]);
    let named =
        |backends: &[&str]| ServicePort { name: Some("shop/lb".into()), ..service(backends) };
    let mut after = Services::from([(cluster, named(&backends)), (balancer, named(&[]))]);
    assert!(parity(&before, &after).is_empty());
    // The ClusterIP loses a backend too, so no address has all of them.
    after.insert(cluster, named(&backends[..1]));
    assert_eq!(parity(&before, &after).len(), 3);
}

/// Who is masqueraded is compared; which endpoints pods and the node get of the policy `Local` only
/// between modes that give these others.
#[test]
fn reach_is_compared_as_far_as_both_modes_have_it() {
    let with = |reach: Reach| {
        Services::from([(
            key("203.0.113.50:443"),
            ServicePort { reach, ..service(&["10.1.0.1:443"]) },
        )])
    };
    let local = |everywhere: &[&str]| {
        let all = everywhere.iter().map(|e| e.parse().unwrap()).collect();
        Reach::Local { everywhere: Some(all) }
    };
    let (one, both) = (&["10.1.0.1:443"][..], &["10.1.0.1:443", "10.1.0.2:443"][..]);
    let everybody = Reach::Local { everywhere: None };
    let at = "203.0.113.50:443/tcp";
    let lost = format!("{at}: the backend 10.1.0.2:443 is missing");
    let masqueraded = format!(
        "{at}: now endpoints see no client's address, before endpoints see the addresses of clients \
         from outside"
    );
    for (before, now, expected) in [
        (local(both), local(both), None),
        (local(one), local(both), None),
        (local(both), local(one), Some(lost)),
        (local(both), everybody.clone(), None),
        (everybody.clone(), local(both), None),
        (everybody, Reach::Everyone, Some(masqueraded)),
        (Reach::Cluster, Reach::Cluster, None),
    ] {
        let missing = sentences(&parity(&with(before.clone()), &with(now.clone())));
        assert_eq!(missing, Vec::from_iter(expected), "{before:?} {now:?}");
    }
}

#[test]
fn what_the_old_side_no_longer_has_counts_as_changed() {
    let (a, b) = (key("10.96.0.1:80"), key("10.96.0.2:80"));
    let before = Services::from([
        (a, service(&["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"])),
        (b, service(&["10.1.0.4:80"])),
    ]);
    let later = Services::from([(a, service(&["10.1.0.1:80", "10.1.0.3:80", "10.1.0.5:80"]))]);
    let after = Services::from([(a, service(&["10.1.0.1:80"]))]);
    let found = parity_since(&before, Some(&later), &after);
    assert_eq!(
        sentences(&found.missing),
        [
            "10.96.0.1:80/tcp: the backend 10.1.0.3:80 is missing",
            "10.96.0.1:80/tcp: the backend 10.1.0.5:80 is missing",
        ]
    );
    let changed: Vec<String> = found.changed.iter().map(ToString::to_string).collect();
    assert_eq!(
        changed,
        [
            "10.96.0.1:80/tcp: the backend 10.1.0.2:80 is missing; it has changed so meanwhile",
            "10.96.0.2:80/tcp is missing; it has changed so meanwhile",
        ]
    );
    assert!(!found.holds() && parity_since(&before, Some(&later), &later).holds());
    assert_eq!(parity_since(&before, None, &after).missing, parity(&before, &after));
}

fn any_service() -> impl Strategy<Value = ServicePort> {
    let backends = btree_set((0u8..6, 80u16..82), 0..4).prop_map(|all| {
        all.into_iter()
            .map(|(host, port)| SocketAddr::new(Ipv4Addr::new(10, 1, 0, host).into(), port))
            .collect()
    });
    let ranges = btree_set(0u8..4, 0..3).prop_map(|all| {
        let net = |n| IpNet::new(Ipv4Addr::new(172, 16, n, 0).into(), 24).unwrap();
        all.into_iter().map(net).collect()
    });
    let name = prop::option::of((0u8..3).prop_map(|n| format!("shop/web:{n}")));
    let affinity = prop::option::of(1u32..99);
    let reach = (name, backends, affinity, ranges, any_reach());
    reach.prop_map(|(name, backends, affinity, source_ranges, reach)| ServicePort {
        name,
        backends,
        affinity,
        source_ranges,
        reach,
        ..ServicePort::default()
    })
}

fn any_reach() -> impl Strategy<Value = Reach> {
    let elsewhere = btree_set(6u8..9, 0..3).prop_map(|all| {
        all.into_iter().map(|host| SocketAddr::from(([10, 1, 0, host], 80))).collect()
    });
    let local = elsewhere.prop_map(|everywhere| Reach::Local { everywhere: Some(everywhere) });
    prop_oneof![Just(Reach::Cluster), Just(Reach::Everyone), local]
}

fn any_services() -> impl Strategy<Value = Services> {
    let location = prop_oneof![
        (0u8..5).prop_map(|n| Location::Address(Ipv4Addr::new(10, 96, 0, n).into())),
        Just(Location::Node(Family::Ipv4)),
        Just(Location::Address("fd00::1".parse().unwrap())),
    ];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let key = (location, 80u16..83, protocol).prop_map(|(location, port, protocol)| ServiceKey {
        location,
        port,
        protocol,
    });
    btree_map(key, any_service(), 0..12)
}

/// The services as ipvs mode keeps them: without names, with the addresses of NodePorts, and with the
/// same endpoints for everybody.
fn as_ipvs(services: &Services, keeps_empty: bool) -> Services {
    let kept = services.iter().filter(|(_, s)| keeps_empty || !s.backends.is_empty());
    kept.map(|(key, service)| {
        let own: IpAddr = "10.9.0.1".parse().unwrap();
        let node_addresses = match key.location {
            Location::Node(_) => [own].into(),
            Location::Address(_) => BTreeSet::new(),
        };
        let reach = match service.reach.clone() {
            Reach::Local { .. } => Reach::Local { everywhere: None },
            reach => reach,
        };
        (*key, ServicePort { name: None, node_addresses, reach, ..service.clone() })
    })
    .collect()
}

proptest! {
    #[test]
    fn nothing_is_missing_where_only_the_mode_differs(
        services in any_services(),
        more in any_services(),
        keeps_empty: bool,
    ) {
        prop_assert_eq!(parity(&services, &services), vec![]);
        let mut ipvs = as_ipvs(&services, keeps_empty);
        prop_assert_eq!(sentences(&parity(&services, &ipvs)), Vec::<String>::new());
        prop_assert_eq!(sentences(&parity(&ipvs, &services)), Vec::<String>::new());
        // New services are no difference.
        for (key, service) in more {
            ipvs.entry(key).or_insert(service);
        }
        prop_assert_eq!(sentences(&parity(&services, &ipvs)), Vec::<String>::new());
    }

    #[test]
    fn exactly_the_removed_part_is_missing(
        services in any_services(),
        at in any::<prop::sample::Index>(),
    ) {
        let full: Vec<ServiceKey> =
            services.iter().filter(|(_, s)| !s.backends.is_empty()).map(|(k, _)| *k).collect();
        prop_assume!(!full.is_empty());
        let key = full[at.index(full.len())];
        let mut without = as_ipvs(&services, true);
        without.remove(&key);
        let missing = parity(&services, &without);
        prop_assert_eq!(missing.len(), 1);
        prop_assert_eq!((missing[0].service, &missing[0].what), (key, &MissingPart::Service));

        let mut fewer = as_ipvs(&services, true);
        let gone = *services[&key].backends.first().unwrap();
        fewer.get_mut(&key).unwrap().backends.remove(&gone);
        let missing = parity(&services, &fewer);
        prop_assert_eq!(missing.len(), 1);
        prop_assert_eq!((missing[0].service, &missing[0].what), (key, &MissingPart::Backend(gone)));
    }

    #[test]
    fn a_later_capture_only_moves_what_it_explains(
        before in any_services(),
        later in any_services(),
        after in any_services(),
    ) {
        let found = parity_since(&before, Some(&later), &after);
        prop_assert_eq!(&found.missing, &parity(&later, &after));
        for missing in parity(&before, &after) {
            let named = found.missing.iter().chain(found.changed.iter().map(|c| &c.0));
            let mut subjects = named.map(Missing::subject);
            prop_assert!(subjects.any(|s| s == missing.subject()));
        }
        prop_assert!(parity_since(&before, Some(&after), &after).holds());
    }
}
