//! An administrator arranges kubeadm's DaemonSet: what is written, what is refused, and that no pod
//! restarts.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::node::{Ended, Proxyshift};
use crate::common::schemas::Schemas;
use crate::control_plane::{ADMIN, Cluster, poll};
use crate::node::Node;

const PREPARE: &str = "cluster prepare --to nftables";

/// What `cluster` prints, run from the control plane, where no node is.
fn run(words: &str) -> Ended {
    Proxyshift::new("administrator").run(&format!("{words} --kubeconfig {ADMIN}"))
}

fn expect(code: i32, words: &str) -> Ended {
    let ended = run(words);
    assert_eq!(ended.code, Some(code), "proxyshift {words}\n{}{}", ended.out, ended.err);
    ended
}

/// The document that `cluster` prints, which its schema allows.
fn document(code: i32, words: &str) -> Value {
    let document = expect(code, &format!("{words} -o json")).json();
    Schemas::load().hold(&document, words);
    document
}

fn get(cluster: &Cluster, words: &str) -> Value {
    let text = cluster.kubectl(&format!("get {words} -o json"));
    serde_json::from_str(&text).expect("JSON")
}

/// Everything of kube-proxy and of proxyshift, without what the server counts.
fn objects(cluster: &Cluster) -> Vec<Value> {
    let kinds = "daemonset,configmap,role,rolebinding";
    let of_kube_system = get(cluster, &format!("-n kube-system {kinds}"));
    let of_cluster = get(cluster, "clusterrole,clusterrolebinding");
    let items = |list: &Value| list["items"].as_array().expect("a list").clone();
    let mut all = [items(&of_kube_system), items(&of_cluster)].concat();
    all.retain(|object| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        name.contains("kube-proxy") || name.contains("proxyshift")
    });
    for object in &mut all {
        let object = object.as_object_mut().expect("an object");
        object.remove("status");
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        for key in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"] {
            metadata.remove(key);
        }
        let annotations = metadata.get_mut("annotations").and_then(Value::as_object_mut);
        annotations.map(|all| all.remove("deprecated.daemonset.template.generation"));
        // What it was has a uid, which is another after each time that the DaemonSet is made.
        if let Some(text) = object.get("data").and_then(|data| data.get("original.json")) {
            let mut original: Value =
                serde_json::from_str(text.as_str().expect("text")).expect("JSON");
            original.as_object_mut().expect("an object").remove("uid");
            object["data"]["original.json"] = original;
        }
    }
    all
}

/// The uid, the start and the restarts of kube-proxy's pods on a node.
fn pods(cluster: &Cluster, node: &Node) -> String {
    let fields = "{range.items[*]}{.metadata.uid},{.status.startTime},\
                  {.status.containerStatuses[0].restartCount};{end}";
    let which = format!("-l k8s-app=kube-proxy --field-selector spec.nodeName={}", node.name);
    cluster.kubectl(&format!("get pods -n kube-system {which} -o jsonpath={fields}"))
}

#[test]
#[ignore = "of the cluster"]
fn a_daemonset_is_prepared_and_no_pod_restarts() {
    let cluster = Cluster::with_daemonset();
    let node = Node::join();
    let (before, running) = (objects(cluster), pods(cluster, &node));
    assert_eq!(running.matches(';').count(), 1, "{running}");

    let planned = document(0, &format!("{PREPARE} --dry-run"));
    assert_eq!((&planned["state"], &planned["from"]), (&json!("planned"), &json!("iptables")));
    assert_eq!(planned["admission"], json!([]), "{planned:#}");
    let text = expect(0, &format!("{PREPARE} --dry-run")).out;
    assert!(text.contains("NotIn") && text.contains("- type: RollingUpdate"), "{text}");
    let folder = "/run/rendered";
    let rendered = document(0, &format!("{PREPARE} --render {folder}"));
    assert_eq!(rendered["files"].as_array().map(Vec::len), Some(8), "{rendered:#}");
    expect(2, &format!("{PREPARE} --render {folder}")).reports(&["is there already"]);
    assert_eq!(objects(cluster), before, "looking changed something");
    expect(2, PREPARE).reports(&["nobody is there to be asked"]);

    let prepared = document(0, &format!("{PREPARE} --yes"));
    let written: Vec<String> = prepared["writes"]
        .as_array()
        .expect("writes")
        .iter()
        .map(|w| format!("{} {}", w["action"].as_str().expect("text"), w["object"]["name"]))
        .collect();
    println!("{written:#?}");
    assert_eq!(prepared["state"], "prepared");
    let after = objects(cluster);
    let again = document(0, &format!("{PREPARE} --yes"));
    assert_eq!((&again["state"], &again["writes"]), (&json!("nothing-to-do"), &json!([])));
    assert_eq!(objects(cluster), after, "twice is not as once");
    assert_eq!(pods(cluster, &node), running, "a pod was replaced");
    holds(cluster);

    // What was rendered is what is there.
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if !path.display().to_string().contains(".patch.") {
            let difference = cluster.try_kubectl(&format!("diff -f {}", path.display()));
            let is_record = path.display().to_string().contains("configmap-proxyshift");
            assert!(difference.is_some() || is_record, "{}", path.display());
        }
    }
    let status = document(0, "cluster status");
    assert_eq!(status["prepared"], json!(["nftables"]), "{status:#}");
    assert_eq!(status["drift"], json!([]), "{status:#}");
    let row = &status["nodes"][0];
    assert_eq!((&row["node"], &row["label"]), (&json!(node.name), &Value::Null));
    assert_eq!(row["pods"][0]["version"], "v1.37.2", "{row:#}");
    println!("{}", expect(0, "cluster status").out);

    is_moved_by_its_label(cluster, &node);
    is_undone_by_kubeadm_and_prepared_again(cluster, &node);
}

/// The arrangement is as it was designed.
fn holds(cluster: &Cluster) {
    let original = get(cluster, "-n kube-system daemonset kube-proxy");
    let ours = get(cluster, "-n kube-system daemonset kube-proxy-nftables");
    let at = "/spec/template/spec/affinity/nodeAffinity\
              /requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions/1";
    let term = |operator: &str| json!({"key": "proxyshift.dev/mode", "operator": operator, "values": ["nftables"]});
    assert_eq!(original.pointer(at), Some(&term("NotIn")), "{original:#}");
    assert_eq!(ours.pointer(at), Some(&term("In")), "{ours:#}");
    for daemon_set in [&original, &ours] {
        assert_eq!(daemon_set["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
    }
    let of = |daemon_set: &Value, at: &str| daemon_set["spec"]["template"]["spec"][at].clone();
    for same in ["containers", "serviceAccountName", "tolerations", "hostNetwork", "nodeSelector"] {
        assert_eq!(of(&original, same), of(&ours, same), "{same}");
    }
    let name = ours["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"].clone();
    let name = name.as_str().expect("a name");
    assert!(name.starts_with("kube-proxy-nftables-"), "{name}");
    let config = get(cluster, &format!("-n kube-system configmap {name}"));
    assert_eq!(config["immutable"], true);
    let text = config["data"]["config.conf"].as_str().expect("text").to_owned();
    let before = get(cluster, "-n kube-system configmap kube-proxy")["data"]["config.conf"].clone();
    let before = before.as_str().expect("text");
    assert_eq!(text, before.replace("mode: iptables", "mode: nftables"));
    // A node may read what it verifies, and write none of it.
    let may = |verb: &str, what: &str| {
        let words = format!(
            "auth can-i {verb} {what} --as system:node:any --as-group system:nodes \
             --as-group system:authenticated -n kube-system"
        );
        cluster.try_kubectl(&words).is_some()
    };
    let objects = ["daemonset/kube-proxy", "daemonset/kube-proxy-nftables", "configmap/kube-proxy"];
    for object in objects.into_iter().chain([format!("configmap/{name}").as_str()]) {
        assert!(may("get", object) && !may("patch", object) && !may("delete", object), "{object}");
    }
    assert!(may("list", "endpointslices") && !may("get", "configmap/other"));
}

/// The node gets the other DaemonSet's pod by its label, and the first one's without it.
fn is_moved_by_its_label(cluster: &Cluster, node: &Node) {
    cluster.kubectl(&format!("label node {} proxyshift.dev/mode=nftables", node.name));
    let of = |name: &str| {
        let status = document(0, "cluster status");
        let row = &status["nodes"][0];
        row["pods"].as_array().is_some_and(|pods| {
            pods.len() == 1 && pods[0]["daemonset"] == name && pods[0]["ready"] == true
        }) && status["drift"] == json!([])
    };
    poll("the pod in the other mode", || of("kube-proxy-nftables"));
    let mode = "curl -s -m 5 http://127.0.0.1:10249/proxyMode || true";
    poll("it serves", || node.run(mode) == "nftables" && node.answers());
    let run = r#"{"id":"20261201T000000Z-000001","from":"iptables","to":"nftables","state":"unconfirmed"}"#;
    cluster.kubectl(&format!("annotate node {} proxyshift.dev/run={run}", node.name));
    let status = document(6, "cluster status");
    assert_eq!(status["nodes"][0]["run"]["state"], "unconfirmed", "{status:#}");
    println!("{}", expect(6, "cluster status").out);
    cluster.kubectl(&format!("annotate node {} proxyshift.dev/run-", node.name));
    // It has moved, so its label is no reason to refuse.
    assert_eq!(document(0, &format!("{PREPARE} --yes"))["state"], "nothing-to-do");
}

/// `kubeadm upgrade` and its addon phase overwrite the original, and a second kube-proxy comes to nodes
/// that have moved: it is named, and the command that is named mends it.
fn is_undone_by_kubeadm_and_prepared_again(cluster: &Cluster, node: &Node) {
    cluster.overwrite_kube_proxy();
    let codes = |status: &Value| -> Vec<String> {
        let drift = status["drift"].as_array().expect("a list").iter();
        drift.map(|drift| drift["code"].as_str().expect("a code").to_owned()).collect()
    };
    poll("two kube-proxies", || {
        codes(&document(0, "cluster status")).contains(&"two-pods".to_owned())
    });
    let status = document(0, "cluster status");
    assert!(codes(&status).contains(&"arrangement".to_owned()), "{status:#}");
    assert!(status.to_string().contains("kubeadm upgrade"), "{status:#}");
    println!("{}", expect(0, "cluster status").out);
    assert_eq!(document(0, &format!("{PREPARE} --yes"))["state"], "prepared");
    poll("one kube-proxy again", || document(0, "cluster status")["drift"] == json!([]));
    let row = document(0, "cluster status")["nodes"][0].clone();
    assert_eq!(row["pods"][0]["daemonset"], "kube-proxy-nftables", "{row:#}");
    cluster.kubectl(&format!("label node {} proxyshift.dev/mode-", node.name));
    poll("the first DaemonSet's pod", || {
        let status = document(0, "cluster status");
        status["nodes"][0]["pods"][0]["daemonset"] == "kube-proxy"
    });
    // Another version in the template reaches no pod, and is named.
    let image = r#"[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"local.test/k8s/kube-proxy:v1.37.2-other"}]"#;
    cluster.kubectl(&format!("patch -n kube-system daemonset kube-proxy --type json -p {image}"));
    expect(3, &format!("{PREPARE} --yes")).reports(&["kube-proxy:v1.37.2-other", "the pod on"]);
    // The nodes of other cases are to find the image.
    Cluster::with_daemonset();
}

#[test]
#[ignore = "of the cluster"]
fn preparing_goes_on_wherever_it_was_killed() {
    let cluster = Cluster::with_daemonset();
    expect(0, &format!("{PREPARE} --yes"));
    let whole = objects(cluster);
    let points = (1..=8).map(|n| format!("after:write:{n}"));
    for point in std::iter::once("before:write:1".to_owned()).chain(points) {
        Cluster::with_daemonset();
        let words = format!("{PREPARE} --yes --kubeconfig {ADMIN}");
        Proxyshift::new("administrator").killed(&words, &point);
        assert_eq!(objects(cluster) == whole, point == "after:write:8", "{point}");
        assert!(cluster.try_kubectl("get lease -n kube-system proxyshift").is_some(), "{point}");
        expect(0, &format!("{PREPARE} --yes"));
        assert_eq!(objects(cluster), whole, "{point}");
    }
}

/// A Node without a machine.
fn node_object(name: &str, labels: Value) -> Value {
    let mut labels = labels;
    labels["proxyshift.test/static"] = json!("");
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
}

#[test]
#[ignore = "of the cluster"]
fn what_must_not_be_prepared_is_refused_by_name() {
    let cluster = Cluster::with_daemonset();
    let before = objects(cluster);
    let refused = |reason: &str| {
        expect(3, &format!("{PREPARE} --yes")).reports(&[reason]);
        assert_eq!(objects(cluster), before, "{reason}");
    };
    let daemon_set = "-n kube-system daemonset kube-proxy";

    cluster.kubectl(&format!("annotate {daemon_set} argocd.argoproj.io/tracking-id=x"));
    expect(3, &format!("{PREPARE} --yes")).reports(&["Argo CD manages it", "--render DIR"]);
    document(0, &format!("{PREPARE} --render /run/rendered-managed"));
    cluster.kubectl(&format!("annotate {daemon_set} argocd.argoproj.io/tracking-id-"));
    assert_eq!(objects(cluster), before);

    expect(3, "cluster prepare --to iptables --yes").reports(&["its mode is iptables already"]);
    expect(3, &format!("{PREPARE} --yes --daemonset default/none"))
        .reports(&["404", "default/none"]);
    expect(3, &format!("{PREPARE} --yes --context none")).reports(&["no context of that name"]);

    let arm = json!({"kubernetes.io/arch": "arm64", "proxyshift.dev/mode": "nftables"});
    cluster.apply(&node_object("arm", arm).to_string());
    refused("have not moved, so their kube-proxy would end at once: arm");
    cluster.kubectl("delete node arm");
    let windows = json!({"kubernetes.io/os": "windows", "proxyshift.dev/mode": "nftables"});
    cluster.apply(&node_object("windows", windows).to_string());
    assert_eq!(document(0, &format!("{PREPARE} --dry-run"))["state"], "planned");
    cluster.kubectl("delete node windows");

    cluster.kubectl("create role -n kube-system proxyshift:kube-proxy --verb=get --resource=pods");
    expect(3, &format!("{PREPARE} --yes")).reports(&["Role kube-system/proxyshift:kube-proxy"]);
    cluster.kubectl("delete role -n kube-system proxyshift:kube-proxy");

    let kubeadm = cluster.kubectl("get configmap -n kube-system kubeadm-config -o yaml");
    cluster.apply(&kubeadm.replace("kubernetesVersion: v1.37.2", "kubernetesVersion: v1.37.3"));
    refused("an upgrade is half done");
    cluster.apply(
        &kubeadm
            .lines()
            .filter(|l| !l.contains("resourceVersion"))
            .map(|l| format!("{l}\n"))
            .collect::<String>(),
    );

    let stop = is_held_by_another(cluster);
    expect(3, &format!("{PREPARE} --yes")).reports(&["another administrator is at it: other/1"]);
    stop();
    cluster.kubectl("delete lease -n kube-system proxyshift");
    assert_eq!(objects(cluster), before);

    expect(0, &format!("{PREPARE} --yes"));
    expect(3, "cluster prepare --to ipvs --yes")
        .reports(&["the cluster is prepared for nftables mode"]);
    Cluster::with_daemonset();
}

/// Another administrator's Lease, which is renewed until the function that is returned is called.
fn is_held_by_another(cluster: &'static Cluster) -> impl FnOnce() {
    let lease = |n: u32| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "proxyshift", "namespace": "kube-system"},
            "spec": {"holderIdentity": "other/1", "leaseDurationSeconds": 45,
                     "renewTime": format!("2026-12-01T00:00:{n:02}.000000Z")}})
    };
    cluster.apply(&lease(0).to_string());
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let renewing = thread::spawn(move || {
        for n in 1..60 {
            if stopped.recv_timeout(Duration::from_secs(1)).is_ok() {
                return;
            }
            cluster.apply(&lease(n).to_string());
        }
    });
    move || {
        stop.send(()).expect("it renews");
        renewing.join().expect("it ends");
    }
}

/// A policy of `kind` for DaemonSets, with its binding, of which the spec has `rest`.
fn policy(kind: &str, name: &str, rest: Value, binding: Value) -> String {
    let mut spec = json!({
        "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
            "operations": ["CREATE", "UPDATE"], "resources": ["daemonsets"]}]},
    });
    spec.as_object_mut().expect("made above").extend(rest.as_object().expect("a spec").clone());
    let mut bound = json!({"policyName": name});
    bound.as_object_mut().expect("made above").extend(binding.as_object().expect("one").clone());
    let of = |kind: String, spec: Value| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": name}, "spec": spec})
        .to_string()
    };
    format!("{}\n---\n{}\n", of(kind.to_owned(), spec), of(format!("{kind}Binding"), bound))
}

#[test]
#[ignore = "of the cluster"]
fn what_admission_denies_or_changes_is_named_before_anything_is_written() {
    let cluster = Cluster::with_daemonset();
    let before = objects(cluster);
    let denies = policy(
        "ValidatingAdmissionPolicy",
        "no-second-proxy",
        json!({"validations": [{"expression": "object.metadata.name != 'kube-proxy-nftables'",
                                "message": "one kube-proxy is enough"}]}),
        json!({"validationActions": ["Deny"]}),
    );
    cluster.apply(&denies);
    poll("the policy counts", || run(&format!("{PREPARE} --dry-run")).code == Some(3));
    expect(3, &format!("{PREPARE} --yes")).reports(&[
        "no-second-proxy",
        "one kube-proxy is enough",
        "DaemonSet kube-system/kube-proxy-nftables",
    ]);
    assert_eq!(objects(cluster), before);
    let kinds = "policy,validatingadmissionpolicybinding";
    cluster.kubectl(&format!("delete validatingadmission{kinds} no-second-proxy"));
    poll("the policy counts no more", || run(&format!("{PREPARE} --dry-run")).code == Some(0));

    let mutates = |expression: &str| {
        policy(
            "MutatingAdmissionPolicy",
            "adds",
            json!({
                "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
            }),
            json!({}),
        )
    };
    cluster.apply(&mutates(
        "[JSONPatch{op: 'add', path: '/spec/template/metadata/labels/team', value: 'net'}]",
    ));
    let planned = || document(0, &format!("{PREPARE} --dry-run"));
    poll("the policy counts", || planned()["admission"] != json!([]));
    let changes = planned()["admission"].clone();
    assert!(
        changes.as_array().expect("a list").iter().any(|change| {
            change["path"] == "/spec/template/metadata/labels/team" && change["returned"] == "net"
        }),
        "{changes:#}"
    );
    println!("{}", expect(0, &format!("{PREPARE} --dry-run")).out);
    // A change that leaves the arrangement whole is shown, and written; twice is as once.
    expect(0, &format!("{PREPARE} --yes"));
    assert_eq!(document(0, &format!("{PREPARE} --yes"))["state"], "nothing-to-do");

    Cluster::with_daemonset();
    cluster.apply(&mutates(
        "[JSONPatch{op: 'replace', path: '/spec/updateStrategy', value: \
         Object.spec.updateStrategy{type: 'RollingUpdate'}}]",
    ));
    poll("the other policy counts", || run(&format!("{PREPARE} --dry-run")).code == Some(3));
    expect(3, &format!("{PREPARE} --yes")).reports(&["admission changes what must hold"]);
    cluster.kubectl("delete mutatingadmissionpolicy,mutatingadmissionpolicybinding adds");
    Cluster::with_daemonset();
}

#[test]
#[ignore = "of the cluster"]
fn a_daemonset_of_another_name_and_namespace_is_prepared_too() {
    let cluster = Cluster::with_daemonset();
    cluster.kubectl("create namespace proxies");
    cluster.kubectl("create serviceaccount -n proxies kube-proxy");
    for (kind, name) in [("configmap", "kube-proxy"), ("daemonset", "kube-proxy")] {
        let mut object = get(cluster, &format!("-n kube-system {kind} {name}"));
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        metadata.retain(|key, _| ["name", "labels"].contains(&key.as_str()));
        metadata.insert("namespace".into(), json!("proxies"));
        if kind == "daemonset" {
            metadata.insert("name".into(), json!("proxy"));
            // Two terms, and on no node.
            object["spec"]["template"]["spec"]["affinity"] = json!({"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]},
            ]}}});
        }
        cluster.apply(&object.to_string());
    }
    expect(3, &format!("{PREPARE} --yes")).reports(&[
        "several DaemonSets",
        "proxies/proxy",
        "kube-system/kube-proxy",
    ]);
    let named = format!("{PREPARE} --daemonset proxies/proxy --yes");
    expect(0, &named);
    assert_eq!(document(0, &named)["state"], "nothing-to-do");
    for (name, operator) in [("proxy", "NotIn"), ("proxy-nftables", "In")] {
        let found = get(cluster, &format!("-n proxies daemonset {name}"));
        let terms = &found["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            ["nodeSelectorTerms"];
        let terms = terms.as_array().expect("terms");
        let ours = |term: &Value| {
            let all = term["matchExpressions"].as_array().expect("expressions");
            all.iter().any(|e| e["key"] == "proxyshift.dev/mode" && e["operator"] == operator)
        };
        assert!(terms.len() == 2 && terms.iter().all(ours), "{found:#}");
    }
    cluster.kubectl("delete -n proxies daemonset --all");
    cluster.kubectl("delete namespace proxies --wait=false");
    cluster.kubectl("delete clusterrole,clusterrolebinding proxyshift:proxy:endpoints");
}

#[test]
#[ignore = "of the cluster"]
fn an_operator_needs_the_documented_rights_and_no_others() {
    let cluster = Cluster::with_daemonset();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cluster.md");
    let docs = fs::read_to_string(docs).expect("docs/cluster.md");
    let (_, rest) = docs.split_once("```yaml\napiVersion: rbac").expect("the rights");
    let (rights, _) = rest.split_once("```").expect("their end");
    let before = objects(cluster);
    cluster.kubectl("create serviceaccount -n kube-system kube-proxy-operator");
    let token = cluster.kubectl("create token -n kube-system kube-proxy-operator");
    let admin = fs::read_to_string(ADMIN).expect("a kubeconfig");
    let (head, _) = admin.split_once("users:").expect("users");
    let user = admin.split_once("user: ").expect("a user").1.lines().next().expect("a line");
    let file = "/run/operator.conf";
    let text = format!("{head}users:\n- name: {user}\n  user: {{token: {}}}\n", token.trim());
    fs::write(file, text).expect("a file");
    let run =
        |words: &str| Proxyshift::new("administrator").run(&format!("{words} --kubeconfig {file}"));
    let denied = run(&format!("{PREPARE} --yes"));
    assert_eq!(denied.code, Some(3), "{}", denied.err);
    denied.reports(&["403", "/run/operator.conf", "docs/cluster.md"]);
    assert_eq!(objects(cluster), before);
    cluster.apply(&format!("apiVersion: rbac{rights}"));
    poll("the rights count", || run("cluster status").code == Some(0));
    let prepared = run(&format!("{PREPARE} --yes"));
    assert_eq!(prepared.code, Some(0), "{}{}", prepared.out, prepared.err);
    let again = run(&format!("{PREPARE} --yes"));
    assert!(again.code == Some(0) && again.out.contains("Nothing to do"), "{}", again.err);
}
