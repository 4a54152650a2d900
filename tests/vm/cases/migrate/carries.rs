//! Migrations that succeed under traffic. The traffic would notice a failure.

use std::fs;
use std::time::Duration;

use super::super::patiently;
use super::Case;
use crate::cluster::Cluster;
use crate::common::node::captured;
use crate::common::schemas::Schemas;
use crate::common::tried::tried;
use crate::common::{run, run_with};
use crate::kube_proxy;
use crate::machine::{inside, place};
use crate::network;
use crate::traffic::Traffic;

/// Migrates from one mode to the other and confirms; no new connection may fail meanwhile.
fn carries_over(backend: &'static str, from: &str, to: &str) -> Case {
    let case = Case::new(backend, from);
    case.playbook(from, to, |text| text);
    // A stream through ipvs would count as a failure, because the stream ends when its virtual
    // server is removed. So only a migration to ipvs has a stream.
    let traffic = if to == "ipvs" { Traffic::dense() } else { Traffic::start() };
    let ended = patiently(|| case.migrate(to, "-o json"));
    let mut schemas = Schemas::load();
    schemas.hold(&ended.json(), "migrate");
    case.proxyshift.expect(6, "status");
    case.proxyshift.expect(0, "confirm");
    let report = case.proxyshift.expect(0, "report -o json").json();
    schemas.hold(&report, "report");
    assert_eq!(report["modes"]["to"], to, "{report}");
    println!("{}", case.proxyshift.expect(0, "report").out);
    traffic.stop(&format!("{from} to {to}, {backend}"));
    case.is_in(to);
    case.proxyshift.expect(0, "status");
    let family = if network::is_ipv6() { ", IPv6" } else { "" };
    let what = format!("{from} to {to} mode on {backend}{family}: no connection failed");
    tried(&kube_proxy::metrics(), place(), &what);
    case
}

#[test]
#[ignore = "in the machine"]
fn iptables_to_ipvs_breaks_nothing() {
    if inside("cases::migrate::carries::iptables_to_ipvs_breaks_nothing") {
        carries_over("nft", "iptables", "ipvs");
    }
}

#[test]
#[ignore = "in the machine"]
fn ipvs_to_iptables_breaks_nothing() {
    if inside("cases::migrate::carries::ipvs_to_iptables_breaks_nothing") {
        let case = carries_over("nft", "ipvs", "iptables");
        let traffic = Traffic::start();
        case.proxyshift.expect(0, "rollback");
        traffic.stop("back from iptables to ipvs, nft");
        case.is_in("ipvs");
        let what = "rolled back from iptables to ipvs mode on nft: no connection failed";
        tried(&kube_proxy::metrics(), place(), what);
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_iptables_to_ipvs_breaks_nothing_in_legacy() {
    if inside("cases::migrate::carries::soak_iptables_to_ipvs_breaks_nothing_in_legacy") {
        carries_over("legacy", "iptables", "ipvs");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_ipvs_to_iptables_breaks_nothing_in_legacy() {
    if inside("cases::migrate::carries::soak_ipvs_to_iptables_breaks_nothing_in_legacy") {
        carries_over("legacy", "ipvs", "iptables");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_iptables_to_ipvs_breaks_nothing_in_ipv6() {
    if inside("cases::migrate::carries::soak_iptables_to_ipvs_breaks_nothing_in_ipv6") {
        network::use_ipv6();
        carries_over("nft", "iptables", "ipvs");
        assert!(run("ipset list -n").contains("KUBE-6-CLUSTER-IP"));
    }
}

/// For comparison, what operators did before: they ran kube-proxy's own clean-up, and then started
/// the new mode.
#[test]
#[ignore = "in the machine"]
fn cleaning_up_first_breaks_what_a_migration_does_not() {
    if !inside("cases::migrate::carries::cleaning_up_first_breaks_what_a_migration_does_not") {
        return;
    }
    let mut cluster = Cluster::new("nft");
    cluster.kube_proxy("iptables");
    cluster.serves();
    let traffic = Traffic::dense();
    std::thread::sleep(Duration::from_secs(5));
    cluster.stop();
    let program = kube_proxy::program().display().to_string();
    run_with("", &["env", "PATH=/run/bin:/usr/sbin:/usr/bin", &program, "--cleanup"]);
    cluster.kube_proxy("ipvs");
    cluster.serves();
    let failed = traffic.failures("kube-proxy --cleanup first");
    for kind in ["ClusterIP from a pod", "ClusterIP from the node", "NodePort from outside"] {
        assert!(failed.iter().any(|f| f.starts_with(kind)), "{kind}: the traffic notices nothing");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_a_half_migrated_node_is_finished_from_where_it_stands() {
    if !inside(
        "cases::migrate::carries::soak_a_half_migrated_node_is_finished_from_where_it_stands",
    ) {
        return;
    }
    // The leftovers of iptables mode, from a captured real node. kube-proxy starts in ipvs mode
    // beside them.
    let case = Case::prepared("nft", "ipvs", |_| {
        let node = captured("half-migrated-ipvs-1.20");
        let read = |name: &str| fs::read_to_string(node.join(name)).expect(name);
        run_with(&read("ipset.save"), &["ipset", "restore"]);
        run_with(&read("iptables-nft.save"), &["iptables-nft-restore", "--noflush"]);
    });
    let left = super::super::removals(&case.proxyshift);
    assert!(left.len() > 50, "{left:#?}");
    case.playbook("iptables", "ipvs", |text| text);
    let traffic = Traffic::start();
    let ended = case.migrate("ipvs", "");
    assert_eq!(ended.code, Some(0));
    ended.reports(&["it runs in that mode already"]);
    case.proxyshift.expect(0, "confirm");
    traffic.stop("half migrated");
    case.is_in("ipvs");
    // The rollback need not restore the leftovers.
    case.proxyshift.expect(0, "rollback");
    case.cluster.serves();
    assert_eq!(super::super::removals(&case.proxyshift), left);
}
