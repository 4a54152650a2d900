//! Entries are deleted one by one.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proxyshift::apply::conntrack::{delete, find_stale};
use proxyshift::kube_proxy::services::{ServiceKey, ServicePort, Services};
use proxyshift::kube_proxy::stale_entries::ServiceDestinations;
use proxyshift::node::conntrack::ConntrackSocket;
use proxyshift::state::conntrack::ConntrackEntry;
use proxyshift::state::ipvs::{Protocol, VirtualServers};

use crate::common::{in_namespace, run};

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Creates a conntrack entry for a connection from `client` to `service`, which `backend` answers.
fn flow(protocol: &str, client: &str, service: &str, backend: &str) {
    let [client, service, backend] = [client, service, backend].map(at);
    let state = if protocol == "tcp" { "--state ESTABLISHED" } else { "" };
    let nat = if backend == service { String::new() } else { format!("--dst-nat {backend}") };
    run(&format!(
        "conntrack -I -p {protocol} -t 100 -s {} -d {} --sport {} --dport {} {nat} {state}",
        client.ip(),
        service.ip(),
        client.port(),
        service.port(),
    ));
}

/// Services of UDP, each with its endpoints.
fn services(all: &[(&str, &[&str])]) -> Services {
    let service = |(address, endpoints): &(&str, &[&str])| {
        let backends = endpoints.iter().map(|text| at(text)).collect();
        let key = ServiceKey::at(at(address), Protocol::Udp);
        (key, ServicePort { backends, ..ServicePort::default() })
    };
    all.iter().map(service).collect()
}

fn stale(conntrack: &mut ConntrackSocket, services: &Services) -> Vec<ConntrackEntry> {
    find_stale(conntrack, &ServiceDestinations::new(services, &[], &VirtualServers::default()))
        .unwrap()
}

#[test]
fn only_stale_entries_are_removed() {
    if !in_namespace("delete::only_stale_entries_are_removed") {
        return;
    }
    let services = services(&[
        ("10.96.0.10:53", &["10.244.0.5:5353"]),
        ("[fd00:96::a]:53", &["[fd00:244::5]:5353"]),
    ]);
    let mut conntrack = ConntrackSocket::open().unwrap();
    assert_eq!(stale(&mut conntrack, &services), []);

    flow("udp", "10.0.0.1:4000", "10.96.0.10:53", "10.244.0.5:5353");
    flow("udp", "10.0.0.1:4001", "10.96.0.10:53", "10.244.0.6:5353");
    flow("udp", "10.0.0.1:4002", "10.96.0.10:53", "10.96.0.10:53");
    flow("udp", "10.0.0.1:4003", "10.96.0.10:54", "10.244.0.6:5353");
    flow("udp", "10.0.0.1:4004", "9.9.9.9:53", "9.9.9.9:53");
    flow("tcp", "10.0.0.1:4005", "10.96.0.10:53", "10.244.0.6:5353");
    flow("udp", "[fd00::1]:4006", "[fd00:96::a]:53", "[fd00:244::5]:5353");
    flow("udp", "[fd00::1]:4007", "[fd00:96::a]:53", "[fd00:244::6]:5353");
    run("conntrack -I -w 7 -p udp -t 100 -s 10.0.0.1 -d 10.96.0.10 --sport 4008 --dport 53");

    let found = stale(&mut conntrack, &services);
    let ports: BTreeSet<u16> = found.iter().map(|entry| entry.client.port()).collect();
    assert_eq!(ports, BTreeSet::from([4001, 4002, 4007, 4008]));
    for entry in &found {
        assert!(delete(&mut conntrack, entry).unwrap(), "{entry}");
        assert!(!delete(&mut conntrack, entry).unwrap(), "it is gone: {entry}");
    }
    assert_eq!(stale(&mut conntrack, &services), []);
    let left = run("conntrack -L -f ipv4") + &run("conntrack -L -f ipv6");
    let left: BTreeSet<&str> = left
        .lines()
        .filter_map(|line| line.split(' ').find_map(|word| word.strip_prefix("sport=")))
        .collect();
    assert_eq!(left, BTreeSet::from(["4000", "4003", "4004", "4005", "4006"]));
}

#[test]
fn an_entry_that_was_made_anew_is_kept() {
    if !in_namespace("delete::an_entry_that_was_made_anew_is_kept") {
        return;
    }
    let services = services(&[("10.96.0.10:53", &[])]);
    let mut conntrack = ConntrackSocket::open().unwrap();
    let make = || flow("udp", "10.0.0.1:4000", "10.96.0.10:53", "10.244.0.6:5353");
    make();
    let old = stale(&mut conntrack, &services);
    run("conntrack -F");
    make();
    let new = stale(&mut conntrack, &services);
    // The kernel derives the id of an entry from the entry's memory address, so the new entry
    // rarely has the same id.
    if new != old {
        assert!(!delete(&mut conntrack, &old[0]).unwrap());
        assert_eq!(stale(&mut conntrack, &services), new);
    }
}
