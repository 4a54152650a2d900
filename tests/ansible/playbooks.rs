//! Each playbook over ssh, with the newest Ansible and with Debian's.

use std::path::Path;

use crate::common::in_machine;
use crate::common::node::assert_same;
use crate::hosts::{Fleet, served};
use crate::site::cached;

const STALE: &str =
    "iptables-nft nat -A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.66.0/24 -j RETURN";

/// Check, clean-up under check mode, clean-up, once more, and back.
fn there_and_back(test: &str, bin: &Path) {
    if served() || !in_machine(test) {
        return;
    }
    let fleet = Fleet::new(test, 1);
    let host = &fleet.hosts[0];
    let before = host.rules();
    let changed = |playbook: &str, more: &[&str]| {
        let played = fleet.play(bin, playbook, more).well();
        (played.count("h1", "changed"), played.said)
    };

    let (count, said) = changed("check", &[]);
    assert_eq!(count, 0, "{said}");
    let (count, said) = changed("cleanup", &["--check", "--diff"]);
    assert_eq!(count, 1, "{said}");
    assert!(said.contains(&format!("-{STALE}")), "{said}");
    assert_same(&host.rules(), &before, "check mode");
    assert!(!host.sees("/run/store").exists(), "check mode made a store");

    let (count, said) = changed("cleanup", &["--diff"]);
    assert_eq!(count, 2, "cleaned and confirmed: {said}");
    assert!(said.contains(&format!("-{STALE}")), "{said}");
    assert!(!host.rules().contains("192.168.66.0/24 -j RETURN"));
    let (count, said) = changed("cleanup", &[]);
    assert_eq!(count, 0, "a second time: {said}");
    let (count, said) = changed("rollback", &["--diff"]);
    assert_eq!(count, 1, "{said}");
    assert!(said.contains(&format!("+{STALE}")), "{said}");
    assert_same(&host.rules(), &before, "rolled back");
}

#[test]
fn there_and_back_with_the_newest_ansible() {
    let test = "playbooks::there_and_back_with_the_newest_ansible";
    there_and_back(test, &cached("newest/bin"));
}

#[test]
fn there_and_back_with_debians_ansible() {
    there_and_back("playbooks::there_and_back_with_debians_ansible", Path::new("/usr/bin"));
}
