//! Each playbook of the collection over ssh, with the newest Ansible and with Debian's.

use std::path::Path;

use crate::common::in_machine;
use crate::common::node::assert_same;
use crate::hosts::{Fleet, served};
use crate::site::cached;

const STALE: &str =
    "iptables-nft nat -A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.66.0/24 -j RETURN";

/// Runs the check, the clean-up in check mode, the clean-up twice, and the rollback.
fn there_and_back(test: &str, bin: &Path) {
    if served() || !in_machine(test) {
        return;
    }
    let fleet = Fleet::new(test, 1);
    let host = &fleet.hosts[0];
    let before = host.rules();
    let changed = |playbook: &str, more: &[&str]| {
        let played = fleet.play(bin, playbook, more).well();
        (played.count("h1", "changed"), played.output)
    };

    let (count, output) = changed("check", &[]);
    assert_eq!(count, 0, "{output}");
    let (count, output) = changed("cleanup", &["--check", "--diff"]);
    assert_eq!(count, 1, "{output}");
    assert!(output.contains(&format!("-{STALE}")), "{output}");
    assert_same(&host.rules(), &before, "check mode");
    assert!(!host.sees("/run/store").exists(), "check mode made a store");

    let (count, output) = changed("cleanup", &["--diff"]);
    assert_eq!(count, 2, "cleaned and confirmed: {output}");
    assert!(output.contains(&format!("-{STALE}")), "{output}");
    assert!(!host.rules().contains("192.168.66.0/24 -j RETURN"));
    let (count, output) = changed("cleanup", &[]);
    assert_eq!(count, 0, "a second time: {output}");
    let (count, output) = changed("rollback", &["--diff"]);
    assert_eq!(count, 1, "{output}");
    assert!(output.contains(&format!("+{STALE}")), "{output}");
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
