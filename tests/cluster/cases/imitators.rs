//! Pods that imitate kube-proxy: by name, label and program, and by holding its ports.

use serde_json::json;

use super::daemonset::{marks_of, pods_of, prepare};
use super::moves::{FORWARD, short};
use crate::control_plane::{Cluster, poll};
use crate::node::Node;

/// Runs copies of a program under the name kube-proxy at two ports, as soon as these are free. They say that
/// kube-proxy is in ipvs mode, and well.
fn script(ports: [&str; 2]) -> String {
    let [metrics, health] = ports;
    format!(
        "cp /bin/busybox /kube-proxy; echo -n ipvs >/www/proxyMode; echo ok >/www/healthz; \
         serve() {{ while :; do (exec -a busybox /kube-proxy httpd -f -p $1 -h /www) 2>/dev/null; \
         sleep 0.1; done; }}; serve 127.0.0.1:{metrics} & serve {health}"
    )
}

/// A pod in the node's network with the name and the label of kube-proxy's. In kube-system the DaemonSet
/// would adopt it.
fn imitator(node: &Node, name: &str, ports: [&str; 2], capabilities: &[&str]) -> String {
    let container = json!({
        "name": "kube-proxy", "image": "local.test/web:1", "imagePullPolicy": "Never",
        "args": ["-c", script(ports)], "securityContext": {"capabilities": {"add": capabilities}},
    });
    let spec = json!({
        "nodeName": node.name, "hostNetwork": true, "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists"}],
        "containers": [container],
    });
    let metadata = json!({
        "name": name, "namespace": "default", "labels": {"k8s-app": "kube-proxy"},
    });
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}).to_string()
}

/// How many processes of the node have the name.
fn processes(node: &Node) -> usize {
    node.run("cat /proc/[0-9]*/comm 2>/dev/null || true")
        .lines()
        .filter(|c| *c == "kube-proxy")
        .count()
}

#[test]
#[ignore = "of the cluster"]
fn a_pod_that_imitates_kube_proxy_is_named_and_not_believed() {
    let cluster = Cluster::with_daemonset();
    let node = Node::join();
    prepare();
    let proxyshift = node.proxyshift();
    let delete = |name: &str| cluster.kubectl(&format!("delete pod -n default {name} --force"));
    cluster.apply(&imitator(&node, "kube-proxy-imit8", ["10249", "10256"], &[]));
    poll("the imitator tries", || processes(&node) > 1);
    // The true pod is made anew, and comes too late for its port.
    let first = pods_of(&node);
    let of_kube_proxy = "-n kube-system -l k8s-app=kube-proxy --field-selector spec.nodeName";
    cluster.kubectl(&format!("delete pod {of_kube_proxy}={} --wait=false", node.name));
    poll("the imitator answers", || {
        node.run("curl -sf -m 5 http://127.0.0.1:10249/proxyMode || true") == "ipvs"
    });
    let (uid, _) = first.split_once('/').expect("a name");
    poll("another true one serves", || {
        let now = pods_of(&node);
        let is_another = now.matches(';').count() == 1 && !now.contains(uid);
        is_another && processes(&node) == 3 && node.answers()
    });

    let checked = proxyshift.run("check --to nftables");
    for part in ["kube-proxy.lookalikes", "lacks CAP_NET_ADMIN", "serves in iptables mode"] {
        assert!(checked.out.contains(part), "{}{}", checked.out, checked.err);
    }
    let plan = proxyshift.expect(0, "plan --to nftables").out;
    let plan = plan.split_whitespace().collect::<Vec<_>>().join(" ");
    let pair = "kube-system/kube-proxy and kube-proxy-nftables";
    assert!(plan.contains("from iptables to nftables") && plan.contains(pair), "{plan}");
    // The true pod moves. That does not say which mode it has, as it has no port, so it comes back; what
    // the imitator says counts for nothing.
    let playbook = short(FORWARD).replace("timeout: 5m", "timeout: 10s");
    node.write("/run/playbook.yaml", &playbook);
    let words = "migrate --to nftables --playbook /run/playbook.yaml --yes";
    let undone = proxyshift.expect(4, words);
    println!("{}", undone.err);
    undone.reports(&["(pid ", "kube-proxy does not answer to GET /proxyMode"]);
    assert_eq!(marks_of(&node), [None, None]);
    poll("the pod of before", || pods_of(&node).matches(';').count() == 1 && node.answers());

    delete("kube-proxy-imit8");
    poll("it is gone", || processes(&node) == 1);
    // With the right to change rules it may be one: of two, none is moved.
    let pods = pods_of(&node);
    cluster.apply(&imitator(&node, "kube-proxy-imit9", ["20249", "20256"], &["NET_ADMIN"]));
    poll("a second imitator", || processes(&node) == 3);
    let refused = proxyshift.expect(3, words);
    println!("{}", refused.err);
    refused.reports(&["runs 3 times here: pid "]);
    assert_eq!((pods_of(&node), marks_of(&node)), (pods, [None, None]));
    delete("kube-proxy-imit9");
}
