//! A playbook that asks somebody to change kube-proxy's mode, on a node of a cluster that nobody has arranged.

use proxyshift::state::kube_proxy::Mode;
use serde_json::{Value, json};

use super::daemonset::marks_of;
use super::moves::{FORWARD, Site, short};
use crate::common::tried::tried;
use crate::control_plane::{Cluster, VERSION, poll};
use crate::machine::AT_SOAK;
use crate::node::Node;

/// What the playbook asks.
const ASK: &str = "somebody moves kube-proxy here";

/// Somebody changes the mode for all nodes, and replaces the pod of this one.
fn set_mode(node: &Node, mode: Mode) {
    let cluster = Cluster::shared();
    let text = cluster.kubectl("get -n kube-system configmap kube-proxy -o json");
    let map: Value = serde_json::from_str(&text).expect("JSON");
    let config = map["data"]["config.conf"].as_str().expect("a configuration");
    let before = config.lines().find(|line| line.starts_with("mode: ")).expect("a mode");
    let config = config.replace(before, &format!("mode: {mode}"));
    let mut data = map["data"].clone();
    data["config.conf"] = json!(config);
    let metadata = json!({"name": "kube-proxy", "namespace": "kube-system"});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
    cluster.apply(&map.to_string());
    let of_node = format!("-l k8s-app=kube-proxy --field-selector spec.nodeName={}", node.name);
    cluster.kubectl(&format!("delete pod -n kube-system {of_node} --wait=false"));
}

impl Site {
    /// Runs the program, and does as it asks once a command on the node prints something.
    fn asked_for(&self, words: &str, once: &str, mode: Mode) {
        let ended = std::thread::scope(|scope| {
            let run = scope.spawn(|| self.node.proxyshift().run(words));
            poll("it asks", || run.is_finished() || !self.node.run(once).is_empty());
            set_mode(&self.node, mode);
            run.join().expect("it ends")
        });
        println!("{}", ended.err);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        ended.reports(&[ASK]);
    }
}

#[test]
#[ignore = "of the cluster"]
fn soak_no_connection_is_lost_when_somebody_is_asked_to_switch() {
    Cluster::with_daemonset();
    let site = Site::of_daemon_set();
    let proxyshift = site.node.proxyshift();
    let switch = "switch: {controller: auto, timeout: 2m}";
    let arranged = "        - kube-proxy.unprepared\n";
    let playbook = short(FORWARD);
    assert!(playbook.contains(switch) && playbook.contains(arranged), "{playbook}");
    let playbook = playbook.replace(arranged, "");
    let asking = playbook.replace(switch, &format!("switch: {{ask: {ASK}, timeout: 1m}}"));
    site.node.write("/run/playbook.yaml", &asking);
    let words = "migrate --to nftables --playbook /run/playbook.yaml --yes";
    let bridge = "nft list tables | grep proxyshift-bridge || true";
    let asks = "grep -s switch-requested /run/store/runs/*/journal.jsonl || true";
    site.unharmed("asked for, and asked back", || {
        site.asked_for(words, asks, Mode::Nftables);
        assert_eq!(site.node.asks("/proxyMode"), "nftables");
        site.asked_for("rollback", bridge, Mode::Iptables);
    });
    site.is_in(Mode::Iptables);
    site.unharmed("nobody does as asked", || {
        let short = asking.replace("timeout: 1m", "timeout: 3s");
        site.node.write("/run/playbook.yaml", &short);
        proxyshift.expect(4, words).reports(&["no other runs 3s after it was asked", ASK]);
    });
    site.is_in(Mode::Iptables);
    assert_eq!(marks_of(&site.node), [None, None]);
    let what = "a DaemonSet that nobody has arranged: somebody is asked, no connection lost";
    tried(&site.node.asks("/metrics"), AT_SOAK, what);
    assert!(site.node.asks("/metrics").contains(VERSION));
    Cluster::with_daemonset();
}
