//! Another version of kube-proxy in kubeadm's DaemonSet, which its strategy OnDelete holds back: each node
//! lets it in by itself.

use proxyshift::state::kube_proxy::Mode;
use serde_json::json;

use super::OLD;
use super::daemonset::{marks_of, pods_of, prepare};
use super::moves::Site;
use crate::common::tried::tried;
use crate::control_plane::{Cluster, VERSION, poll};
use crate::machine::AT_SOAK;

/// The words of an upgrade by the playbook that [`write_playbook`] writes.
const UPGRADE: &str = "migrate --to iptables --playbook /run/upgrade.yaml --yes";

/// The built-in playbook of an upgrade, by the node itself, which waits for kube-proxy for 20 s only.
fn write_playbook(site: &Site) {
    let text = include_str!("../../../playbooks/upgrade.yaml");
    let ask = text.lines().find(|l| l.trim_start().starts_with("ask: ")).expect("it asks");
    let text = text.replace(ask, "      controller: auto").replace("timeout: 30m", "timeout: 20s");
    site.node.write("/run/upgrade.yaml", &text);
}

/// An administrator changes the image of a DaemonSet.
fn set_image(version: &str) {
    let image = format!("kube-proxy=local.test/k8s/kube-proxy:v{version}");
    Cluster::shared().kubectl(&format!("set image -n kube-system daemonset/kube-proxy {image}"));
}

#[test]
#[ignore = "of the cluster"]
fn soak_a_daemon_set_s_node_lets_another_version_in_and_none_that_does_not_start() {
    let cluster = Cluster::with_daemonset();
    let site = Site::of_daemon_set();
    prepare();
    write_playbook(&site);
    let (node, proxyshift) = (&site.node, site.node.proxyshift());
    node.import(OLD);
    let first = pods_of(node);
    let refused = |parts: &[&str]| {
        let ended = proxyshift.expect(3, UPGRADE);
        println!("{}", ended.err);
        ended.reports(parts);
        assert_eq!(pods_of(node), first);
    };
    refused(&["DaemonSet kube-system/kube-proxy", "there is nothing to do", VERSION]);

    set_image(OLD);
    let change = format!("kube-proxy:v{VERSION} → local.test/k8s/kube-proxy:v{OLD}");
    let plan = proxyshift.expect(0, "plan --to iptables --playbook /run/upgrade.yaml").out;
    let plan = plan.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(plan.contains(&change) && plan.contains("deletes pod kube-proxy-"), "{plan}");
    assert_eq!(pods_of(node), first, "OnDelete holds it back");
    site.unharmed("upgraded by itself", || println!("{}", proxyshift.expect(0, UPGRADE).err));
    site.is_in(Mode::Iptables);
    let version = || node.asks("/metrics").contains(&format!("git_version=\"v{OLD}\""));
    assert!(version() && pods_of(node) != first);
    proxyshift.expect(0, "confirm");

    // Killed once the pod is deleted, and resumed.
    set_image(VERSION);
    site.unharmed("killed and resumed", || {
        proxyshift.killed(UPGRADE, "before:upgrade:done");
        println!("{}", proxyshift.expect(0, "resume").err);
    });
    site.is_in(Mode::Iptables);
    assert!(!version());
    proxyshift.expect(0, "confirm");
    tried(
        &node.asks("/metrics"),
        AT_SOAK,
        &format!("a DaemonSet: upgraded from {OLD} by the node"),
    );

    set_image("0.0.1");
    site.unharmed("no such image, and back", || {
        let failed = proxyshift.expect(5, UPGRADE);
        println!("{}", failed.err);
        failed.reports(&["kube-proxy:v0.0.1", "its template has other images", "ErrImage"]);
        // Without it, its rules serve on.
        set_image(VERSION);
        println!("{}", proxyshift.expect(0, "rollback").err);
    });
    site.is_in(Mode::Iptables);
    assert!(!version());
    assert_eq!(marks_of(node), [None, None]);

    let patch = json!({"spec": {"updateStrategy": {"type": "RollingUpdate"}}});
    cluster.kubectl(&format!("patch -n kube-system daemonset kube-proxy --type merge -p {patch}"));
    poll("it is refused while pods are replaced, and then by the strategy", || {
        proxyshift.expect(3, UPGRADE).err.contains("the update strategy RollingUpdate")
    });
    // The nodes of other cases are to find the DaemonSet as kubeadm makes it.
    Cluster::with_daemonset();
}
