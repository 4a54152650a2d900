//! What operators do on a node of today.

mod affinity;
mod bridge;
mod daemonset;
mod daemonset_checks;
mod daemonset_upgrade;
mod failing_moves;
mod follows;
mod imitators;
mod moves;
mod prepare;
mod requested_switch;
mod services;
mod thousands;
mod upgrades;

use crate::common::node::{assert_same, without_counters};
use crate::common::tried::tried;
use crate::control_plane::VERSION;
use crate::machine::AT;
use crate::node::{MANIFEST, Node, manifest};

/// The oldest version of kube-proxy that is built for every run.
const OLD: &str = "1.34.4";

/// What a flannel of an earlier cluster left: a chain, and the rule that leads to it.
const LEFT_BY_FLANNEL: &str = "*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.99.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.99.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
COMMIT
";

impl Node {
    /// The node's IPv4 rules that are not kube-proxy's, without counters. kube-proxy's follow the
    /// Services of other cases.
    fn foreign_rules(&self) -> String {
        let rules = without_counters(&self.run("iptables-nft-save"));
        rules.lines().filter(|l| !l.contains("KUBE-")).map(|l| format!("{l}\n")).collect()
    }
}

#[test]
#[ignore = "of the cluster"]
fn a_node_is_captured_checked_cleaned_and_rolled_back() {
    let node = Node::join();
    node.run(&format!("iptables-nft-restore --noflush <<'EOF'\n{LEFT_BY_FLANNEL}EOF"));
    // Who asked for the Service before kube-proxy served is found too, and rightly.
    node.run("conntrack -F");
    let (proxyshift, before) = (node.proxyshift(), node.foreign_rules());
    let rules = node.run("iptables-nft-save");
    assert!(rules.contains("--nfacct-name"), "{rules}");

    let checked = proxyshift.expect(0, "check -o json").json();
    let of = |outcome: &str| -> Vec<&str> {
        let findings = checked["findings"].as_array().expect("findings").iter();
        let found = findings.filter(|f| f["outcome"] == outcome);
        found.map(|f| f["id"].as_str().expect("an id")).collect()
    };
    assert_eq!(of("found"), ["cni.leftovers"], "{checked:#}");
    for id in ["kube-proxy.instances", "kube-proxy.mode", "tools.conntrack", "backends.hint"] {
        assert!(of("ok").contains(&id), "{id}: {checked:#}");
    }
    let plan = proxyshift.expect(0, "plan -o json").json();
    let objects = plan["objects"].as_array().expect("objects");
    let removed: Vec<&str> = objects
        .iter()
        .filter(|o| o["action"] == "remove")
        .map(|o| o["owner"].as_str().expect("an owner"))
        .collect();
    assert_eq!(removed, ["flannel"; 4], "{plan:#}");
    proxyshift.expect(0, "snapshot create");
    proxyshift.expect(0, "snapshot verify");
    proxyshift.expect(0, "rehearse");

    proxyshift.expect(0, "cleanup --yes");
    let clean = node.foreign_rules();
    let wanted: String =
        before.lines().filter(|l| !l.contains("FLANNEL-FWD")).map(|l| format!("{l}\n")).collect();
    assert_same(&clean, &wanted, "cleaned");
    assert!(node.answers());
    proxyshift.expect(0, "rollback");
    assert_same(&node.foreign_rules(), &before, "rolled back");
    assert!(node.answers());
    // Its settings are those of every node, so nothing of them is edited here.
    proxyshift.expect(3, "migrate --to ipvs --yes").reports(&["DaemonSet"]);
    assert_same(&node.foreign_rules(), &before, "refused");
    tried(
        &node.asks("/metrics"),
        AT,
        "iptables mode: check, snapshot, rehearse, cleanup, rollback",
    );
}

/// The built-in playbook of an upgrade, with a command in place of a person.
fn upgraded_by(command: &[&str]) -> String {
    let text = include_str!("../../playbooks/upgrade.yaml");
    let ask = text.lines().find(|l| l.trim_start().starts_with("ask: ")).expect("it asks");
    text.replace(ask, &format!("      run: {}", serde_json::json!(command)))
}

/// Writes a playbook that upgrades a static pod in `mode` to the version of today. Returns the words
/// that run it.
fn upgrades_to_today(node: &Node, mode: &str) -> String {
    node.import(VERSION);
    node.write("/run/manifest", &manifest(VERSION));
    node.write("/run/upgrade.yaml", &upgraded_by(&["cp", "/run/manifest", MANIFEST]));
    format!("migrate --to {mode} --playbook /run/upgrade.yaml --yes")
}

/// Upgrades kube-proxy in `mode` to the version of today, and confirms.
fn is_upgraded(mode: &str) {
    let node = Node::with_static_pod(OLD, mode);
    let (proxyshift, words) = (node.proxyshift(), upgrades_to_today(&node, mode));
    let before = node.asks("/metrics");
    assert!(before.contains(&format!("git_version=\"v{OLD}\"")), "{before}");
    println!("{}", proxyshift.expect(0, &words).err);
    assert!(node.answers());
    proxyshift.expect(0, "confirm");
    let plan = proxyshift.expect(0, "plan -o json").json();
    let objects = plan["objects"].as_array().expect("objects").iter();
    assert_eq!(objects.filter(|o| o["action"] == "remove").count(), 0, "{plan:#}");
    assert_eq!(node.asks("/proxyMode"), mode);
    tried(&node.asks("/metrics"), AT, &format!("a static pod in {mode} mode: upgraded from {OLD}"));
}

#[test]
#[ignore = "of the cluster"]
fn a_static_pod_is_upgraded_in_iptables_mode() {
    is_upgraded("iptables");
}

#[test]
#[ignore = "of the cluster"]
fn a_static_pod_is_upgraded_in_nftables_mode() {
    is_upgraded("nftables");
}
