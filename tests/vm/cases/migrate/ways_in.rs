//! A migration through the other two front ends: the wizard, and Ansible from a host outside.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;

use super::{Case, PLAYBOOK};
use crate::kube_proxy::kubeconfig;
use crate::machine::inside;
use crate::pty::Session;
use crate::site::{Site, Sshd, cached, sshd};

const DOWN: &str = "\x1b[B";

#[test]
#[ignore = "in the machine"]
fn soak_the_wizard_takes_the_node_over() {
    if !inside("cases::migrate::ways_in::soak_the_wizard_takes_the_node_over") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut wizard = Session::start(&case.proxyshift.command(""), 60, 100);
    wizard.answer("To do", &format!("{DOWN}\r"));
    wizard.type_line("Your playbook", PLAYBOOK);
    wizard.type_line("The node's name", &name);
    wizard.answer("Keep it?", &format!("{DOWN}\r"));
    wizard.ends(0);
    let output = wizard.text();
    println!("{output}");
    let same =
        format!("proxyshift migrate --to ipvs --playbook {PLAYBOOK} --yes; proxyshift confirm");
    for part in ["kube-proxy goes from iptables to ipvs", "serves in ipvs mode", &same] {
        assert!(output.contains(part), "{part:?} is not in:\n{output}");
    }
    case.proxyshift.expect(0, "status");
    case.is_in("ipvs");
}

/// A host outside from which Ansible reaches the node by ssh.
struct Outside {
    site: Site,
    _sshd: Sshd,
}

impl Outside {
    fn new() -> Outside {
        let site = Site::new();
        let _sshd = sshd(site.keys());
        site.inventory(&[("node".into(), "192.168.100.1".into())]);
        Outside { site, _sshd }
    }

    /// Runs a playbook of the collection, which must succeed. Returns how many tasks changed the
    /// node.
    fn play(&self, playbook: &str, more: &[&str]) -> u32 {
        let bin: PathBuf = cached("newest/bin");
        let played = self.site.play(&["ip", "netns", "exec", "outside"], &bin, playbook, more);
        println!("{}", played.output);
        played.well().count("node", "changed")
    }
}

/// The Ansible variables that ask for a migration to ipvs mode.
fn to_ipvs() -> String {
    format!("proxyshift_to=ipvs proxyshift_playbook={PLAYBOOK}")
}

#[test]
#[ignore = "in the machine"]
fn soak_ansible_takes_the_node_over() {
    if !inside("cases::migrate::ways_in::soak_ansible_takes_the_node_over") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    let outside = Outside::new();
    // The API's kubeconfig is for kubectl, which drains the node. The pod is there to be evicted.
    let api = &case.cluster.api;
    std::fs::create_dir(outside.site.path(".kube")).expect("a folder");
    let address = SocketAddr::from(([192, 168, 100, 1], api.address.port()));
    outside.site.write(".kube/config", &kubeconfig(address));
    api.apply(json!({
        "apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": "node"},
        "metadata": {"name": "web", "namespace": "default", "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "web",
            "controller": true}]},
    }));
    let changed = outside.play("migrate", &["-e", &to_ipvs(), "-e", "proxyshift_drain=true"]);
    assert_eq!(changed, 4, "drained, migrated, confirmed and uncordoned");
    assert_eq!(api.history("Pod", "web").last().map(|(what, _)| *what), Some("DELETED"));
    let node = api.history("Node", "node");
    let closed = node.iter().map(|(_, node)| node["spec"]["unschedulable"] == true);
    assert_eq!(closed.collect::<Vec<_>>(), [false, true, false], "{node:?}");
    case.is_in("ipvs");
    assert_eq!(case.last_run()["state"], "done");
}

#[test]
#[ignore = "in the machine"]
fn soak_ansible_leaves_the_node_that_is_there_and_brings_it_back() {
    if !inside(
        "cases::migrate::ways_in::soak_ansible_leaves_the_node_that_is_there_and_brings_it_back",
    ) {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    assert_eq!(case.migrate("ipvs", "").code, Some(0));
    case.proxyshift.expect(0, "confirm");
    let outside = Outside::new();
    assert_eq!(outside.play("migrate", &["-e", &to_ipvs()]), 0, "it is there");
    assert_eq!(outside.play("rollback", &[]), 1);
    case.is_in("iptables");
}
