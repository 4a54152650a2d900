//! What a migration changes besides rules: sysctls, files for the next boot, and entries of
//! conntrack.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use common::{in_namespace, run};
use proxyshift::apply::conntrack::delete;
use proxyshift::apply::files::persist;
use proxyshift::apply::{modules, sysctl};
use proxyshift::error::Kind;
use proxyshift::node::conntrack::{ConntrackSocket, UdpServices};
use proxyshift::node::files::read;
use proxyshift::node::sysctls::value_of;

#[test]
fn sysctls_are_set_and_restored() {
    if !in_namespace("sysctls_are_set_and_restored") {
        return;
    }
    run("ip link add br0 type bridge");
    run("ip link set br0 name br0.7");
    for (name, value) in [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.br0/7.rp_filter", "2"),
        ("net.ipv4.ip_local_port_range", "20000 30000"),
    ] {
        let old = value_of(name).unwrap().unwrap();
        sysctl::set(name, value).unwrap();
        let now = value_of(name).unwrap().unwrap();
        assert_eq!(now.replace('\t', " "), value, "{name}");
        assert_ne!(now, old);
        sysctl::set(name, &old).unwrap();
        assert_eq!(value_of(name).unwrap(), Some(old));
    }
    assert_eq!(value_of("net.ipv4.no_such_value").unwrap(), None);
    for (name, value) in [("net.ipv4.no_such_value", "1"), ("net.ipv4.ip_forward", "much")] {
        let error = sysctl::set(name, value).unwrap_err();
        assert_eq!(error.kind, Kind::Kernel, "{error}");
        assert!(error.object.contains(name), "{error}");
    }
}

#[test]
fn boot_settings_are_written_and_removed() {
    if !in_namespace("boot_settings_are_written_and_removed") {
        return;
    }
    run("mount -t tmpfs proxyshift /etc");
    let file = Path::new(sysctl::BOOT_FILE);
    let values = BTreeMap::from([("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
    let text = sysctl::boot_text(&values);
    assert_eq!(read(file).unwrap(), None);
    persist(file, None, Some(&text)).unwrap();
    // `sysctl` can read the boot file, and sets the values that it names.
    run(&format!("sysctl -q -p {}", sysctl::BOOT_FILE));
    assert_eq!(value_of("net.ipv4.ip_forward").unwrap().as_deref(), Some("1"));
    persist(file, Some(&text), None).unwrap();
    assert_eq!(read(file).unwrap(), None);

    let file = Path::new(modules::BOOT_FILE);
    let text = modules::boot_text(["ip_vs"]);
    persist(file, None, Some(&text)).unwrap();
    fs::write(file, "# an operator's\nip_vs\n").unwrap();
    let error = persist(file, Some(&text), None).unwrap_err();
    assert_eq!(error.kind, Kind::LostRace);
    assert!(file.exists(), "what someone else wrote stays");
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Creates a conntrack entry for a connection from `client` to `service`, which `backend` answers.
fn flow(protocol: &str, client: &str, service: &str, backend: &str) {
    let [client, service, backend] = [client, service, backend].map(at);
    let state = if protocol == "tcp" { "--state ESTABLISHED" } else { "" };
    run(&format!(
        "conntrack -I -p {protocol} -t 100 -s {} -d {} --sport {} --dport {} -r {} -q {} \
         --reply-port-src {} --reply-port-dst {} {state}",
        client.ip(),
        service.ip(),
        client.port(),
        service.port(),
        backend.ip(),
        client.ip(),
        backend.port(),
        client.port(),
    ));
}

#[test]
fn only_stale_entries_are_removed() {
    if !in_namespace("only_stale_entries_are_removed") {
        return;
    }
    let services = UdpServices::from([
        (at("10.96.0.10:53"), BTreeSet::from([at("10.244.0.5:5353")])),
        (at("[fd00:96::a]:53"), BTreeSet::from([at("[fd00:244::5]:5353")])),
    ]);
    let mut conntrack = ConntrackSocket::open().unwrap();
    assert_eq!(conntrack.stale(&services).unwrap(), []);

    flow("udp", "10.0.0.1:4000", "10.96.0.10:53", "10.244.0.5:5353");
    flow("udp", "10.0.0.1:4001", "10.96.0.10:53", "10.244.0.6:5353");
    flow("udp", "10.0.0.1:4002", "10.96.0.10:53", "10.96.0.10:53");
    flow("udp", "10.0.0.1:4003", "10.96.0.10:54", "10.244.0.6:5353");
    flow("udp", "10.0.0.1:4004", "9.9.9.9:53", "9.9.9.9:53");
    flow("tcp", "10.0.0.1:4005", "10.96.0.10:53", "10.244.0.6:5353");
    flow("udp", "[fd00::1]:4006", "[fd00:96::a]:53", "[fd00:244::5]:5353");
    flow("udp", "[fd00::1]:4007", "[fd00:96::a]:53", "[fd00:244::6]:5353");

    let stale = conntrack.stale(&services).unwrap();
    let ports: BTreeSet<u16> = stale.iter().map(|entry| entry.client.port()).collect();
    assert_eq!(ports, BTreeSet::from([4001, 4002, 4007]));
    for entry in &stale {
        assert!(delete(&mut conntrack, entry).unwrap(), "{entry}");
        assert!(!delete(&mut conntrack, entry).unwrap(), "it is gone: {entry}");
    }
    assert_eq!(conntrack.stale(&services).unwrap(), []);
    let left = run("conntrack -L -f ipv4") + &run("conntrack -L -f ipv6");
    let left: BTreeSet<&str> = left
        .lines()
        .filter_map(|line| line.split(' ').find_map(|word| word.strip_prefix("sport=")))
        .collect();
    assert_eq!(left, BTreeSet::from(["4000", "4003", "4004", "4005", "4006"]));
}

#[test]
fn an_entry_that_was_made_anew_is_kept() {
    if !in_namespace("an_entry_that_was_made_anew_is_kept") {
        return;
    }
    let services = UdpServices::from([(at("10.96.0.10:53"), BTreeSet::new())]);
    let mut conntrack = ConntrackSocket::open().unwrap();
    let make = || flow("udp", "10.0.0.1:4000", "10.96.0.10:53", "10.244.0.6:5353");
    make();
    let old = conntrack.stale(&services).unwrap();
    run("conntrack -F");
    make();
    let new = conntrack.stale(&services).unwrap();
    // The kernel derives the id of an entry from the entry's memory address, so the new entry
    // rarely has the same id.
    if new != old {
        assert!(!delete(&mut conntrack, &old[0]).unwrap());
        assert_eq!(conntrack.stale(&services).unwrap(), new);
    }
}
