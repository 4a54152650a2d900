//! kube-proxy as kubeadm's DaemonSet: a node moves, and brings itself back, by its own label.

use std::collections::BTreeSet;
use std::time::Duration;

use proxyshift::state::kube_proxy::Mode;
use proxyshift::state::kubernetes::{MODE_LABEL, NoteState, RUN_ANNOTATION, RunNote};
use serde_json::{Value, json};

use super::moves::{AROUND, FORWARD, Site, short, there_and_back};
use crate::audit::{self, Audited, Object};
use crate::common::node::{Proxyshift, assert_same};
use crate::common::run;
use crate::control_plane::{ADMIN, Cluster, poll};
use crate::node::Node;

/// The mode that the cluster is arranged for.
const TO: &str = "nftables";

/// Arranges the cluster as an administrator does. No pod restarts.
pub(super) fn prepare() {
    let words = format!("cluster prepare --to {TO} --yes --kubeconfig {ADMIN}");
    Proxyshift::new("administrator").expect(0, &words);
}

/// The names, uids and starts of the node's kube-proxy pods.
pub(super) fn pods_of(node: &Node) -> String {
    Cluster::shared().kubectl(&format!(
        "get pods -n kube-system --field-selector spec.nodeName={} -o \
         jsonpath={{range.items[*]}}{{.metadata.name}}/{{.metadata.uid}}/{{.status.startTime}}/\
         {{.status.containerStatuses[0].restartCount}};{{end}}",
        node.name
    ))
}

/// The node's label and the annotation of its pending run.
pub(super) fn marks_of(node: &Node) -> [Option<String>; 2] {
    let text = Cluster::shared().kubectl(&format!("get node {} -o json", node.name));
    let node: Value = serde_json::from_str(&text).expect("JSON");
    let of = |part: &str, key: &str| node["metadata"][part][key].as_str().map(str::to_owned);
    [of("labels", MODE_LABEL), of("annotations", RUN_ANNOTATION)]
}

/// Sends a signal to a program of the control plane.
pub fn signal(signal: &str, program: &str) {
    run(&format!("pkill -{signal} -x {program}"));
}

/// The words of a move to nftables mode, by a playbook that waits for kube-proxy for 20 s only.
const FORTH: &str = "migrate --to nftables --playbook /run/playbook.yaml --yes";

impl Site {
    /// A node that can move by its label, and writes the playbook of [`FORTH`].
    fn that_is_arranged() -> Site {
        Cluster::with_daemonset();
        let site = Site::of_daemon_set();
        prepare();
        let playbook = short(FORWARD);
        assert!(playbook.contains("timeout: 2m"), "{playbook}");
        site.node.write("/run/playbook.yaml", &playbook.replace("timeout: 2m", "timeout: 20s"));
        site
    }

    /// Fails unless the node is as before any move.
    fn is_back(&self) {
        self.is_in(Mode::Iptables);
        assert_eq!(marks_of(&self.node), [None, None]);
    }
}

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_by_a_daemon_set_there_and_back() {
    Cluster::with_daemonset();
    let other = Node::join();
    let site = Site::of_daemon_set();
    prepare();
    let (own, others) = (pods_of(&site.node), pods_of(&other));
    let begin = audit::now();
    there_and_back(&site, "a DaemonSet: from iptables", AROUND);
    is_audited(&site.node, begin);
    assert_eq!(pods_of(&other), others);
    assert_ne!(pods_of(&site.node), own);
    assert_eq!(marks_of(&site.node), [None, None]);
    let events = Cluster::shared().kubectl(&format!(
        "get events --field-selector involvedObject.name={},reason=KubeProxyMode -o \
         jsonpath={{range.items[*]}}{{.message}};{{end}}",
        site.node.name
    ));
    for said in ["moves from iptables to nftables mode", "has moved from nftables to iptables mode"]
    {
        assert!(events.contains(said), "{events}");
    }
}

/// The API server's own log shows that the node has moved itself, by the rights that are documented.
fn is_audited(node: &Node, begin: u64) {
    let all = audit::since(begin);
    let user = format!("system:node:{}", node.name);
    let own: Vec<&Audited> = all.iter().filter(|request| request.is_of_proxyshift()).collect();
    for request in &own {
        assert_eq!(request.user.username, user, "{request:?}");
        let is_of_another =
            request.object_ref.resource == "nodes" && request.object_ref.name != node.name;
        assert!(!is_of_another, "{request:?}");
    }
    let used: BTreeSet<String> = own.iter().map(|request| request.right()).collect();
    println!("the node's rights: {used:?}");
    assert_eq!(used, audit::documented());
    // What others wrote of it are the controllers, which follow the label and say how far they are.
    let is_of_the_move = |request: &&Audited| {
        let Object { resource, name, .. } = &request.object_ref;
        let kinds = ["daemonsets", "configmaps", "pods"];
        resource == "nodes" && *name == node.name
            || kinds.contains(&resource.as_str()) && name.starts_with("kube-proxy")
    };
    let others = all.iter().filter(|r| r.is_write() && !r.is_of_proxyshift());
    for request in others.filter(is_of_the_move) {
        let who = request.user.username.as_str();
        let is_controller =
            who.starts_with("system:serviceaccount:kube-system:") || who == "system:kube-scheduler";
        // Nodes write their status; the kubelet deletes the pod whose process has ended.
        let is_kubelet = who.starts_with("system:node:")
            && (!request.object_ref.subresource.is_empty() || request.verb == "delete");
        assert!(is_controller || is_kubelet, "{request:?}");
        let labels = request.object_ref.resource == "nodes" && !is_kubelet;
        assert!(!labels || request.user.username.contains("controller"), "{request:?}");
    }
}

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_when_the_move_of_a_daemon_set_is_undone() {
    let site = Site::that_is_arranged();
    let proxyshift = site.node.proxyshift();
    let undone = || poll("it is undone", || proxyshift.run("status").code == Some(0));
    site.unharmed("moved and undone by hand", || {
        proxyshift.expect(0, FORTH);
        let [label, note] = marks_of(&site.node);
        assert_eq!(label.as_deref(), Some(TO));
        let note = note.and_then(|text| RunNote::parse(&text)).expect("a note");
        assert_eq!((note.state, note.to), (NoteState::Unconfirmed, Mode::Nftables));
        assert!(note.deadline.is_some(), "{note:?}");
        println!("{}", proxyshift.expect(0, "rollback").err);
    });
    site.is_back();
    site.unharmed("nobody confirms", || {
        proxyshift.expect(0, &format!("{FORTH} --confirm-within 5s"));
        undone();
    });
    site.is_back();
    site.unharmed("killed, and nobody is there", || {
        proxyshift.killed(FORTH, "before:switch:done");
        undone();
    });
    site.is_back();
    site.unharmed("killed before the label is set, and resumed", || {
        proxyshift.killed(FORTH, "after:switch:intent");
        proxyshift.expect(0, "resume");
        assert_eq!(marks_of(&site.node)[0].as_deref(), Some(TO));
        proxyshift.expect(0, "rollback");
    });
    site.is_back();
}

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_while_programs_of_the_control_plane_stand_still() {
    let site = Site::that_is_arranged();
    let proxyshift = site.node.proxyshift();
    let long = site.node.run("cat /run/playbook.yaml");
    let short = format!("{}\n", long.replace("timeout: 20s", "timeout: 3s"));
    site.node.write("/run/playbook.yaml", &short);
    site.unharmed("the scheduler stands still", || {
        signal("STOP", "kube-scheduler");
        let ended = std::thread::scope(|scope| {
            let run = scope.spawn(|| proxyshift.run(FORTH));
            poll("the label is set", || marks_of(&site.node)[0].is_some());
            poll("the label is taken back", || marks_of(&site.node)[0].is_none());
            signal("CONT", "kube-scheduler");
            run.join().expect("it ends")
        });
        println!("{}", ended.err);
        assert_eq!(ended.code, Some(4), "{}", ended.err);
        ended.reports(&["has no pod on Node"]);
    });
    site.is_back();
    site.node.write("/run/playbook.yaml", &format!("{long}\n"));
    site.unharmed("the API server stands still", || {
        let ended = std::thread::scope(|scope| {
            let run = scope.spawn(|| proxyshift.run(FORTH));
            poll("the label is set", || marks_of(&site.node)[0].is_some());
            signal("STOP", "kube-apiserver");
            std::thread::sleep(AWAY);
            signal("CONT", "kube-apiserver");
            run.join().expect("it ends")
        });
        println!("{}", ended.err);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        proxyshift.expect(0, "rollback");
    });
    site.is_back();
    site.node.write("/run/playbook.yaml", &short);
    site.unharmed("the API server is away for longer than the switch may take", || {
        signal("STOP", "kube-scheduler");
        let ended = std::thread::scope(|scope| {
            let run = scope.spawn(|| proxyshift.run(FORTH));
            poll("the label is set", || marks_of(&site.node)[0].is_some());
            signal("STOP", "kube-apiserver");
            std::thread::sleep(LONGER);
            signal("CONT", "kube-apiserver");
            poll("the label is taken back", || marks_of(&site.node)[0].is_none());
            signal("CONT", "kube-scheduler");
            run.join().expect("it ends")
        });
        println!("{}", ended.err);
        assert_eq!(ended.code, Some(4), "{}", ended.err);
        ended.reports(&["no kube-proxy of it runs 3s later: ", "the API server does not answer"]);
    });
    site.is_back();
    // Without an API server nothing begins.
    signal("STOP", "kube-apiserver");
    let ended = proxyshift.run(FORTH);
    signal("CONT", "kube-apiserver");
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    ended.reports(&["the API server"]);
    site.is_back();
}

/// How long the API server stands still: less than the switch may take, and more.
const AWAY: Duration = Duration::from_secs(8);
const LONGER: Duration = Duration::from_secs(20);

#[test]
#[ignore = "of the cluster"]
fn what_is_not_arranged_is_refused_by_name() {
    const NEXT: &str = "proxyshift cluster prepare";
    let cluster = Cluster::with_daemonset();
    let node = Node::join();
    let proxyshift = node.proxyshift();
    let (pods, rules) = (pods_of(&node), node.foreign_rules());
    let is_refused = |parts: &[&str]| {
        let ended = proxyshift.expect(3, "migrate --to nftables --yes");
        println!("{}", ended.err);
        ended.reports(parts);
        assert_eq!(pods_of(&node), pods);
        assert_same(&node.foreign_rules(), &rules, "refused");
        assert_eq!(marks_of(&node), [None, None]);
    };
    is_refused(&["DaemonSet kube-system/kube-proxy", "403", NEXT]);
    prepare();
    // Somebody edits the ConfigMap that the pods of the one DaemonSet mount.
    let text = cluster.kubectl("get -n kube-system configmap kube-proxy -o json");
    let mut map: Value = serde_json::from_str(&text).expect("JSON");
    map["metadata"] = json!({"name": "kube-proxy", "namespace": "kube-system"});
    let text = map.to_string();
    assert!(text.contains("clusterCIDR: 10"), "{text}");
    cluster.apply(&text.replace("clusterCIDR: 10", "clusterCIDR: 11"));
    is_refused(&["`clusterCIDR` is not as in ConfigMap kube-system/kube-proxy", NEXT]);
    cluster.kubectl(&format!("label node {} {MODE_LABEL}=ipvs", node.name));
    proxyshift.expect(3, "migrate --to nftables --yes").reports(&[MODE_LABEL]);
    cluster.kubectl(&format!("label node {} {MODE_LABEL}-", node.name));
    assert_eq!(pods_of(&node), pods);
    cluster.apply(&text);
    // By this the pods get the template that OnDelete has held back.
    let patch = json!({"spec": {"updateStrategy": {"type": "RollingUpdate"}}});
    cluster.kubectl(&format!("patch -n kube-system daemonset kube-proxy --type merge -p {patch}"));
    poll("it is refused while pods are replaced, and then by its strategy", || {
        let ended = proxyshift.expect(3, "migrate --to nftables --yes");
        ended.err.contains("OnDelete") && ended.err.contains(NEXT)
    });
}

#[test]
#[ignore = "of the cluster"]
fn what_kubeadm_writes_over_is_named_and_the_node_comes_back() {
    let site = Site::that_is_arranged();
    let proxyshift = site.node.proxyshift();
    proxyshift.expect(0, FORTH);
    Cluster::shared().overwrite_kube_proxy();
    poll("a second kube-proxy", || site.node.run("pidof kube-proxy").split(' ').count() == 2);
    let checked = proxyshift.run("check --only kube-proxy.instances");
    assert!(checked.out.contains("kube-proxy.instances"), "{}{}", checked.out, checked.err);
    let undone = proxyshift.run("rollback");
    println!("{}", undone.err);
    assert_eq!(undone.code, Some(0), "{}", undone.err);
    assert!(!undone.err.contains("not followed"), "{}", undone.err);
    // Of two kube-proxies the second has no port until the first is gone, and tries again.
    let mode = "curl -sf -m 5 http://127.0.0.1:10249/proxyMode || true";
    poll("it has its port", || site.node.run(mode) == "iptables");
    site.is_back();
    let refused = proxyshift.expect(3, "migrate --to nftables --yes");
    refused.reports(&["does not pass over Nodes by the label", "proxyshift cluster prepare"]);
    prepare();
    proxyshift.expect(0, FORTH);
    proxyshift.expect(0, "rollback");
    site.is_back();
    // The nodes of other cases have static pods, which kubeadm's DaemonSet knows nothing of.
    Cluster::with_daemonset();
}
