//! iptables → ipvs: what iptables mode left is taken away, and put back.

use super::{servers, sets};
use crate::cluster::Cluster;
use crate::common::node::{Proxyshift, assert_same, without_counters};
use crate::machine::inside;
use crate::traffic::Traffic;

#[test]
#[ignore = "in the machine"]
fn what_iptables_mode_left_goes_and_comes_back_nft() {
    if inside("cases::forward::what_iptables_mode_left_goes_and_comes_back_nft") {
        goes_and_comes_back("nft");
    }
}

#[test]
#[ignore = "in the machine"]
fn what_iptables_mode_left_goes_and_comes_back_legacy() {
    if inside("cases::forward::what_iptables_mode_left_goes_and_comes_back_legacy") {
        goes_and_comes_back("legacy");
    }
}

fn goes_and_comes_back(backend: &'static str) {
    let mut cluster = Cluster::new(backend);
    cluster.kube_proxy("iptables");
    cluster.kube_proxy("ipvs");
    let tables = || without_counters(&(cluster.save("nat") + &cluster.save("filter")));
    let (before, ipvs) = (tables(), (servers(), sets()));
    assert!(before.contains(":KUBE-SVC-") && before.contains(":KUBE-SEP-"), "{before}");

    let proxyshift = Proxyshift::new("store");
    let plan = proxyshift.expect(0, "plan -o json").out;
    assert!(plan.contains("KUBE-SVC-") && !plan.contains("\"action\":\"remove\",\"kind\":\"set\""));

    let traffic = Traffic::start();
    proxyshift.expect(0, "cleanup --yes");
    traffic.stop("cleanup");
    let after = tables();
    for gone in ["KUBE-SVC-", "KUBE-SEP-", "KUBE-FW-", "KUBE-NODEPORTS"] {
        assert!(!after.contains(gone), "{gone} is still there:\n{after}");
    }
    assert_eq!((servers(), sets()), ipvs, "what ipvs mode uses");
    cluster.serves();
    proxyshift.expect(0, "plan").says(&[]);

    let traffic = Traffic::start();
    proxyshift.expect(0, "rollback --yes");
    traffic.stop("rollback");
    assert_same(&sorted(&tables()), &sorted(&before), "after the rollback");
    assert_eq!((servers(), sets()), ipvs, "what ipvs mode uses");
}

/// The lines of a save in an order that does not depend on when a chain was made.
fn sorted(save: &str) -> String {
    let (chains, rules): (Vec<_>, Vec<_>) = save.lines().partition(|l| l.starts_with(':'));
    let mut chains = chains;
    chains.sort_unstable();
    let mut rules = rules;
    rules.sort_by_key(|rule| rule.split(' ').nth(1).map(str::to_owned));
    [chains, rules].concat().join("\n")
}
