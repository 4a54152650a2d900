//! What is captured of kubeadm's DaemonSet on a node that moves nowhere.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::daemonset::{prepare, signal};
use crate::control_plane::Cluster;
use crate::node::Node;

/// How much longer a capture may take whose API server does not answer, with what a snapshot takes
/// anyhow.
const WITHOUT_API: Duration = Duration::from_secs(15);

/// A file of a new snapshot.
fn snapshot(node: &Node, file: &str) -> String {
    node.proxyshift().expect(0, "snapshot create");
    node.run(&format!("cat $(ls -d /run/store/snapshots/* | tail -1)/{file}"))
}

/// What a new snapshot has of the cluster.
fn captured(node: &Node) -> Value {
    serde_json::from_str(&snapshot(node, "cluster.json")).expect("JSON")
}

/// What the API server has, by these words of `kubectl get`.
fn uid(words: &str) -> Value {
    json!(Cluster::shared().kubectl(&format!("get {words} -o jsonpath={{.metadata.uid}}")))
}

#[test]
#[ignore = "of the cluster"]
fn a_snapshot_has_what_the_api_says_and_waits_for_none() {
    Cluster::with_daemonset();
    let node = Node::join();
    let facts = captured(&node);
    let objects = &facts["kube_proxy"]["objects"];
    let pod = &objects["pods"][0];
    let named = format!("-n kube-system pod {}", pod["name"].as_str().expect("a name"));
    assert_eq!(
        objects["node"],
        json!({"name": node.name, "uid": uid(&format!("node {}", node.name))})
    );
    assert_eq!(
        (&pod["uid"], &pod["config_map"]),
        (&uid(&named), &json!("kube-proxy")),
        "{facts:#}"
    );
    let made_by = json!({"name": "kube-proxy", "uid": uid("-n kube-system daemonset kube-proxy")});
    assert_eq!(pod["daemon_set"], made_by);
    // A node may read the ConfigMap that its pod mounts, and no DaemonSet.
    assert_eq!(objects["config_maps"][0]["mode"], "iptables", "{facts:#}");
    assert!(
        objects["unread"][0]["why"].as_str().is_some_and(|why| why.contains("403")),
        "{facts:#}"
    );
    assert_eq!(facts["servers"].as_array().map(Vec::len), Some(2), "{facts:#}");
    let given = snapshot(&node, "files/var/lib/kube-proxy/config.conf");
    assert!(given.contains("mode: iptables"), "{given}");

    prepare();
    let facts = captured(&node);
    let objects = &facts["kube_proxy"]["objects"];
    let sets = objects["daemon_sets"].as_array().expect("a list");
    let uids: Vec<&Value> = sets.iter().map(|set| &set["uid"]).collect();
    let other = uid("-n kube-system daemonset kube-proxy-nftables");
    assert_eq!(uids, [&made_by["uid"], &other], "{facts:#}");
    let modes: Vec<&Value> =
        objects["config_maps"].as_array().expect("a list").iter().map(|map| &map["mode"]).collect();
    assert_eq!(modes, ["iptables", "nftables"], "{facts:#}");
    assert_eq!(
        (&objects["unread"], &objects["differ_by"]),
        (&json!([]), &Value::Null),
        "{facts:#}"
    );

    for words in ["snapshot create", "check"] {
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
    Cluster::with_daemonset();
}
