//! What is captured of kubeadm's DaemonSet, and what the checks find of it, on a node that moves nowhere.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::daemonset::{prepare, signal};
use crate::control_plane::Cluster;
use crate::node::Node;

/// How much longer a capture may take whose API server does not answer, with what a snapshot takes
/// anyhow.
const WITHOUT_API: Duration = Duration::from_secs(15);

/// A file of the latest snapshot.
fn of_snapshot(node: &Node, file: &str) -> String {
    node.run(&format!("cat $(ls -d /run/store/snapshots/* | tail -1)/{file}"))
}

/// What the API server has, by these words of `kubectl get`.
fn uid(words: &str) -> Value {
    json!(Cluster::shared().kubectl(&format!("get {words} -o jsonpath={{.metadata.uid}}")))
}

/// What the latest snapshot has of a cluster as kubeadm makes it: a node may read the ConfigMap that its
/// pod mounts, and no DaemonSet.
fn has_the_pod(node: &Node) {
    let facts: Value = serde_json::from_str(&of_snapshot(node, "cluster.json")).expect("JSON");
    let objects = &facts["kube_proxy"]["objects"];
    let pod = &objects["pods"][0];
    let named = format!("-n kube-system pod {}", pod["name"].as_str().expect("a name"));
    let own = json!({"name": node.name, "uid": uid(&format!("node {}", node.name))});
    assert_eq!(objects["node"], own, "{facts:#}");
    assert_eq!((&pod["uid"], &pod["config_map"]), (&uid(&named), &json!("kube-proxy")));
    let made_by = json!({"name": "kube-proxy", "uid": uid("-n kube-system daemonset kube-proxy")});
    assert_eq!(pod["daemon_set"], made_by, "{facts:#}");
    assert_eq!(objects["config_maps"][0]["mode"], "iptables", "{facts:#}");
    assert!(objects["unread"][0]["why"].to_string().contains("403"), "{facts:#}");
    assert_eq!(facts["servers"].as_array().map(Vec::len), Some(2), "{facts:#}");
    let given = of_snapshot(node, "files/var/lib/kube-proxy/config.conf");
    assert!(given.contains("mode: iptables"), "{given}");
}

/// What the latest snapshot has of a cluster that is prepared: both DaemonSets, and both modes.
fn has_both_daemon_sets(node: &Node) {
    let facts: Value = serde_json::from_str(&of_snapshot(node, "cluster.json")).expect("JSON");
    let objects = &facts["kube_proxy"]["objects"];
    let all = |list: &str, field: &str| -> Vec<Value> {
        let list = objects[list].as_array().expect("a list").iter();
        list.map(|object| object[field].clone()).collect()
    };
    let uids = ["kube-proxy", "kube-proxy-nftables"]
        .map(|name| uid(&format!("-n kube-system daemonset {name}")));
    assert_eq!(all("daemon_sets", "uid"), uids, "{facts:#}");
    assert_eq!(all("config_maps", "mode"), ["iptables", "nftables"], "{facts:#}");
    assert_eq!(
        (&objects["unread"], &objects["differ_by"]),
        (&json!([]), &Value::Null),
        "{facts:#}"
    );
}

/// A capture waits for an API server that does not answer, and not long.
fn waits_for_no_api(node: &Node) {
    for words in ["snapshot create", "check --to nftables --only kube-proxy.next-start"] {
        signal("STOP", "kube-apiserver");
        let began = Instant::now();
        let ended = node.proxyshift().run(words);
        let took = began.elapsed();
        signal("CONT", "kube-apiserver");
        assert_eq!(ended.code, Some(0), "{words}: {}", ended.err);
        ended.reports(&["kube-proxy is not captured", "does not answer in time"]);
        println!("{words} took {:.1} s", took.as_secs_f64());
        assert!(took < WITHOUT_API, "{words}: {took:?}");
    }
}

/// The kubelet's kubeconfig.
const KUBELET: &str = "/etc/kubernetes/kubelet.conf";

/// The checks of a DaemonSet's kube-proxy.
const IDS: [&str; 6] = [
    "kube-proxy.unprepared",
    "kube-proxy.prepared-stale",
    "kube-proxy.managed",
    "kube-proxy.half-upgraded",
    "kube-proxy.next-start",
    "kube-proxy.api-server",
];

/// Fails unless the checks of a move to nftables mode find these, on the node and in a snapshot of it.
fn find(node: &Node, when: &str, wanted: &[&str]) {
    node.proxyshift().expect(0, "snapshot create");
    for words in ["", " --snapshot latest"] {
        let only = IDS.join(",");
        let words = format!("check --to nftables --only {only} -o json{words}");
        let ended = node.proxyshift().run(&words);
        let document = ended.json();
        let findings = document["findings"].as_array().expect("findings").iter();
        let of = |outcome: &str| -> Vec<&str> {
            let of = findings.clone().filter(|finding| finding["outcome"] == outcome);
            of.map(|finding| finding["id"].as_str().expect("an id")).collect()
        };
        assert_eq!(of("found"), wanted, "{when}: {words}: {document:#}");
        assert_eq!(of("unknown"), [""; 0], "{when}: {words}: {document:#}");
        let is_blocked = findings
            .clone()
            .any(|finding| finding["outcome"] == "found" && finding["severity"] == "block");
        assert_eq!(ended.code, Some(if is_blocked { 3 } else { 0 }), "{when}: {words}");
    }
}

/// Replaces the text of kube-proxy's configuration in kubeadm's ConfigMap.
fn edit_config(from: &str, to: &str) {
    let cluster = Cluster::shared();
    let text = cluster.kubectl("get -n kube-system configmap kube-proxy -o json");
    let mut map: Value = serde_json::from_str(&text).expect("JSON");
    map["metadata"] = json!({"name": "kube-proxy", "namespace": "kube-system"});
    let text = map.to_string();
    assert!(text.contains(from), "{text}");
    cluster.apply(&text.replace(from, to));
}

#[test]
#[ignore = "of the cluster"]
fn what_is_not_as_prepared_is_found_on_the_node_and_in_a_snapshot() {
    const SET: &str = "-n kube-system daemonset kube-proxy";
    let cluster = Cluster::with_daemonset();
    let node = Node::join();
    find(&node, "as kubeadm makes it", &["kube-proxy.unprepared"]);
    has_the_pod(&node);
    prepare();
    find(&node, "prepared", &[]);
    has_both_daemon_sets(&node);
    waits_for_no_api(&node);
    cluster.kubectl(&format!("annotate {SET} argocd.argoproj.io/tracking-id=x"));
    find(&node, "managed", &["kube-proxy.managed"]);
    cluster.kubectl(&format!("annotate {SET} argocd.argoproj.io/tracking-id-"));
    // The kubelet that runs has read it before.
    let reach = |from: &str, to: &str| node.run(&format!("sed -i s,{from},{to}, {KUBELET}"));
    reach("10.20.0.1:6443", "10.96.0.1:443");
    find(&node, "reached by a Service", &["kube-proxy.api-server"]);
    reach("10.96.0.1:443", "10.20.0.1:6443");
    // Nothing restarts by it, so nobody notices.
    edit_config("mode: iptables", "mode: ipvs");
    find(&node, "the ConfigMap has another mode", &["kube-proxy.next-start"]);
    edit_config("mode: ipvs", "mode: iptables");
    edit_config("clusterCIDR: 10", "clusterCIDR: 11");
    find(&node, "the ConfigMap has another network", &["kube-proxy.prepared-stale"]);
    edit_config("clusterCIDR: 11", "clusterCIDR: 10");
    find(&node, "as prepared", &[]);
    let patch = |path: &str, value: &str| {
        let patch = format!(r#"[{{"op":"replace","path":"{path}","value":{value}}}]"#);
        cluster.kubectl(&format!("patch {SET} --type json -p {patch}"));
    };
    const IMAGE: &str = "/spec/template/spec/containers/0/image";
    patch(IMAGE, r#""local.test/k8s/kube-proxy:v1.37.3""#);
    find(&node, "half upgraded", &["kube-proxy.half-upgraded", "kube-proxy.prepared-stale"]);
    patch(IMAGE, r#""local.test/k8s/kube-proxy:v1.37.2""#);
    // Under OnDelete it reaches no pod that is there.
    patch("/spec/template/spec/affinity", "{}");
    find(&node, "without our term", &["kube-proxy.prepared-stale"]);
    Cluster::with_daemonset();
}
