//! What a migration changes besides rules: sysctls, and files for the next boot.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{in_namespace, run};
use proxyshift::apply::files::persist;
use proxyshift::apply::{modules, sysctl};
use proxyshift::error::Kind;
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
