//! Rollback to a snapshot that is older than several runs: each run is undone, and foreign changes
//! are kept.

mod common;

use common::node::{Node, Proxyshift, captured};
use common::{in_namespace, run};
use proxyshift::state::Backend;

const FIRST: &str = "POSTROUTING ! -s 192.168.64.0/20 -d 192.168.66.0/24 -j RETURN";
const SECOND: &str = "POSTROUTING ! -s 192.168.64.0/20 -d 192.168.67.0/24 -j RETURN";
const OTHERS: &str = "POSTROUTING -s 10.5.0.0/16 -j MASQUERADE";

#[test]
fn every_run_since_a_snapshot_is_undone_and_foreign_changes_are_kept() {
    if !in_namespace("every_run_since_a_snapshot_is_undone_and_foreign_changes_are_kept") {
        return;
    }
    let node = Node::load("canal-stale-flannel-1.20", Backend::Nft);
    let proxyshift = Proxyshift::new("store");
    let there = |rule: &str| node.rules().lines().filter(|l| *l == format!("-A {rule}")).count();
    let iptables = |rule: &str| run(&format!("{} -t nat -A {rule}", node.program("")));
    let snapshot = proxyshift.expect(0, "snapshot create -o json").json();
    let id = snapshot["snapshot"].as_str().expect("an id").to_owned();
    let back = format!("rollback --to {id} -o json");

    // No run was made since the snapshot yet, so there is nothing to undo.
    let nothing = proxyshift.expect(0, &format!("{back} --yes")).json();
    assert_eq!(nothing["runs"].as_array().map(Vec::len), Some(0), "{nothing}");

    let before = node.rules();
    proxyshift.expect(0, "cleanup --yes");
    iptables(SECOND);
    iptables(OTHERS);
    proxyshift.expect(0, "cleanup --yes");
    assert_eq!([FIRST, SECOND, OTHERS].map(there), [0, 0, 1]);
    let between = proxyshift.expect(0, "snapshot create -o json").json();

    proxyshift.expect(2, &format!("rollback --to {id}")).reports(&["nobody is there to be asked"]);
    assert_eq!([FIRST, SECOND, OTHERS].map(there), [0, 0, 1]);
    let later = format!("rollback --to {} --yes", between["snapshot"].as_str().expect("an id"));
    assert!(proxyshift.expect(0, &later).out.contains("Nothing to undo"));

    let report = proxyshift.expect(0, &format!("{back} --yes")).json();
    assert_eq!(report["runs"].as_array().map(Vec::len), Some(2), "{report}");
    assert_eq!((&report["restored"], &report["snapshot"]), (&2.into(), &id.into()));
    // The rule that the second run removed is restored. That rule is not in the snapshot, so it
    // counts as a foreign change.
    let others = report["others"].as_array().expect("a list").iter().filter_map(|o| o.as_str());
    // Differences of routes are left out, because the kernel itself adds IPv6 addresses, and routes
    // to these addresses, to the links.
    let others: Vec<&str> = others.filter(|other| !other.contains(" route: ")).collect();
    assert!(others.len() == 2 && others.iter().any(|o| o.contains(OTHERS)), "{others:?}");
    let rules = node.rules();
    let left: Vec<&str> = rules
        .lines()
        .filter(|l| ![SECOND, OTHERS].iter().any(|o| *l == format!("-A {o}")))
        .collect();
    assert_eq!(left, before.lines().collect::<Vec<_>>(), "all else is as it was, in its place");

    let bare = format!("rollback --to {} --yes", captured("half-migrated-ipvs-1.20").display());
    proxyshift.expect(3, &bare).reports(&["where and when this was captured is not known"]);
}
