//! The two ways in that are not the verb: the wizard, and Ansible from the host outside.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;

use super::{Case, PLAYBOOK};
use crate::kube_proxy::kubeconfig;
use crate::machine::inside;
use crate::pty::Session;
use crate::site::{Site, cached, sshd};

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
    for (question, keys) in [
        ("To do", &*format!("{DOWN}\r")),
        ("Your playbook", &format!("{PLAYBOOK}\r")),
        ("The node's name", &format!("{name}\r")),
        ("Keep it?", &format!("{DOWN}\r")),
    ] {
        wizard.answer(question, keys);
    }
    wizard.ends(0);
    let said = wizard.text();
    println!("{said}");
    let same =
        format!("proxyshift migrate --to ipvs --playbook {PLAYBOOK} --yes; proxyshift confirm");
    for part in ["kube-proxy goes from iptables to ipvs", "serves in ipvs mode", &same] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    case.proxyshift.expect(0, "status");
    case.is_in("ipvs");
}

#[test]
#[ignore = "in the machine"]
fn ansible_takes_the_node_over_and_back() {
    if !inside("cases::migrate::ways_in::ansible_takes_the_node_over_and_back") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    let site = Site::new();
    let _sshd = sshd(site.keys());
    site.inventory(&[("node".into(), "192.168.100.1".into())]);
    // Where kubectl, which drains the node, finds the API; and a pod that is to go for it.
    let api = &case.cluster.api;
    std::fs::create_dir(site.path(".kube")).expect("a folder");
    let address = SocketAddr::from(([192, 168, 100, 1], api.address.port()));
    site.write(".kube/config", &kubeconfig(address));
    api.apply(json!({
        "apiVersion": "v1", "kind": "Pod", "spec": {"nodeName": "node"},
        "metadata": {"name": "web", "namespace": "default", "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "web",
            "controller": true}]},
    }));
    let bin: PathBuf = cached("newest/bin");
    let play = |playbook: &str, more: &[&str]| {
        let played = site.play(&["ip", "netns", "exec", "outside"], &bin, playbook, more);
        println!("{}", played.said);
        played.well()
    };
    let to_ipvs = ["-e", "proxyshift_to=ipvs", "-e", &format!("proxyshift_playbook={PLAYBOOK}")];
    let drained = [&to_ipvs[..], &["-e", "proxyshift_drain=true"]].concat();
    let played = play("migrate", &drained);
    assert_eq!(played.count("node", "changed"), 4, "drained, migrated, confirmed and uncordoned");
    assert_eq!(api.history("Pod", "web").last().map(|(what, _)| *what), Some("DELETED"));
    let node = api.history("Node", "node");
    let closed = node.iter().map(|(_, node)| node["spec"]["unschedulable"] == true);
    assert_eq!(closed.collect::<Vec<_>>(), [false, true, false], "{node:?}");
    case.is_in("ipvs");
    assert_eq!(case.last_run()["state"], "done");
    let played = play("migrate", &to_ipvs);
    assert_eq!(played.count("node", "changed"), 0, "a second time");
    let played = play("rollback", &[]);
    assert_eq!(played.count("node", "changed"), 1);
    case.is_in("iptables");
}
