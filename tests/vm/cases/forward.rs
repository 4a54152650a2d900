//! iptables → ipvs: the leftovers of iptables mode are named, removed, and restored by a rollback.

use super::{names, removals, servers, sets, succeeds};
use crate::cluster::Cluster;
use crate::common::node::{Proxyshift, assert_same, without_counters};
use crate::kube_proxy;
use crate::machine::inside;
use crate::traffic::Traffic;

#[test]
#[ignore = "in the machine"]
fn soak_what_iptables_mode_left_goes_and_comes_back() {
    if inside("cases::forward::soak_what_iptables_mode_left_goes_and_comes_back") {
        goes_and_comes_back("nft");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_what_iptables_mode_left_goes_and_comes_back_in_legacy_tables() {
    if inside("cases::forward::soak_what_iptables_mode_left_goes_and_comes_back_in_legacy_tables") {
        goes_and_comes_back("legacy");
    }
}

fn goes_and_comes_back(backend: &'static str) {
    let mut cluster = Cluster::new(backend);
    let proxyshift = Proxyshift::new("store");
    cluster.kube_proxy("iptables");
    cluster.serves();
    // The mode that runs has no leftovers. What the node lacks for ipvs mode is found by `check`.
    assert!(removals(&proxyshift).is_empty());
    proxyshift.expect(0, "check --to ipvs --only kube-proxy.mode,kernel.ip-vs");

    cluster.kube_proxy("ipvs");
    let (before, ipvs) = (tables(&cluster), (servers(), sets()));
    let plan = removals(&proxyshift);
    assert!(names(&plan, "chain").iter().any(|name| name.starts_with("KUBE-SEP-")), "{plan:#?}");
    for kind in ["set", "virtual-server", "link"] {
        assert!(names(&plan, kind).is_empty(), "{kind}: {plan:#?}");
    }

    let traffic = Traffic::start();
    succeeds(&proxyshift, "cleanup --yes");
    traffic.stop("cleanup");
    let after = tables(&cluster);
    // Renamed in 1.24.
    let external = if kube_proxy::is_old() { "KUBE-XLB-" } else { "KUBE-EXT-" };
    for gone in ["KUBE-SVC-", "KUBE-SEP-", "KUBE-FW-", external, "KUBE-NODEPORTS"] {
        assert!(before.contains(gone) && !after.contains(gone), "{gone} is still there:\n{after}");
    }
    assert_eq!((servers(), sets()), ipvs, "what ipvs mode uses");
    assert!(removals(&proxyshift).is_empty());
    cluster.serves();

    let traffic = Traffic::start();
    succeeds(&proxyshift, "rollback --yes");
    traffic.stop("rollback");
    assert_same(&tables(&cluster), &before, "after the rollback");
    assert_eq!((servers(), sets()), ipvs, "what ipvs mode uses");
}

/// The tables nat and filter without counters, sorted, because the order of chains depends on when
/// each was made.
fn tables(cluster: &Cluster) -> String {
    let table = |name| {
        let save = without_counters(&cluster.save(name));
        let (mut chains, mut rules): (Vec<_>, Vec<_>) =
            save.lines().partition(|l| l.starts_with(':'));
        chains.sort_unstable();
        rules.sort_by_key(|rule| rule.split(' ').nth(1).map(str::to_owned));
        [chains, rules].concat().join("\n")
    };
    table("nat") + &table("filter")
}
