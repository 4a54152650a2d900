//! The signs of life of owners: what is none, and what permits nothing.

use proxyshift::state::Files;
use serde_json::{Value, json};

use crate::case::Case;

/// The action and the reason of each object of an owner in the plan for `case`.
fn rows(case: &Case, owner: &str) -> Vec<(String, String)> {
    let plan = case.json("plan");
    let objects = plan["objects"].as_array().expect("objects");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let its = objects.iter().filter(|object| object["owner"] == owner);
    its.map(|object| (text(&object["action"]), text(&object["reason"]))).collect()
}

/// Fails unless the plan has objects of the owner, all with that action, each with a reason that
/// contains `why`.
fn all(case: &Case, owner: &str, action: &str, why: &str) {
    let rows = rows(case, owner);
    assert!(!rows.is_empty(), "{}: nothing of {owner}", case.name);
    for (found, reason) in rows {
        assert_eq!(found, action, "{}: {owner}: {reason}", case.name);
        assert!(reason.contains(why), "{}: {owner}: {reason}", case.name);
    }
}

/// What `cni.leftovers` says about the node: its outcome, and its evidence or what it lacks.
fn leftovers(case: &Case) -> (String, String) {
    let check = case.json("check --only cni.leftovers");
    let finding = &check["findings"][0];
    (finding["outcome"].as_str().expect("an outcome").to_owned(), finding.to_string())
}

/// Fails unless `cni.leftovers` has that outcome and says `words`.
fn says(case: &Case, outcome: &str, words: &str) {
    let (found, text) = leftovers(case);
    assert_eq!(found, outcome, "{}: {text}", case.name);
    assert!(text.contains(words), "{}: {text}", case.name);
}

/// Both forms of a case, with changed files.
fn both(name: &str, change: impl Fn(&mut Files)) -> [Case; 2] {
    Case::both(name).map(|case| {
        let mut files = case.files();
        change(&mut files);
        Case::of(&case.name, files)
    })
}

fn put(files: &mut Files, path: &str, text: &str) {
    files.insert(path.to_owned(), text.into());
}

fn replace(files: &mut Files, path: &str, from: &str, to: &str) {
    let text = files[path].replace(from, to);
    assert_ne!(*files[path], *text, "{path} has no `{from}`");
    put(files, path, &text);
}

/// Sets the process of pid 800, or adds it.
fn process(files: &mut Files, name: &str, args: &[&str]) {
    let text = files.get("processes.json").map_or("[]", |text| text);
    let mut all: Vec<Value> = serde_json::from_str(text).expect("a list");
    all.retain(|process| process["pid"] != 800 && process["pid"] != 30_811);
    all.push(json!({"pid": 800, "name": name, "args": args}));
    put(files, "processes.json", &json!(all).to_string());
}

const NODENAME: &str = "files/var/lib/calico/nodename";
const POD: &str = "files/var/log/pods/kube-system_calico-node-x7k2p_0b5c";

#[test]
fn calico_between_two_starts_keeps_its_rules() {
    // What outlives Calico proves neither that it lives nor that it is gone.
    for case in both("a01-calico-restarting", |files| put(files, NODENAME, "")) {
        all(&case, "calico", "suspect", "only /var/lib/calico/nodename");
        says(&case, "found", "no process of calico is left, only /var/lib/calico/nodename");
    }
    // A pod that the kubelet keeps proves that it lives, whatever its container does.
    for pod in [
        POD,
        "files/var/log/pods/kube-system_canal-abcde_1",
        "files/var/log/pods/calico-system_calico-node-abcde_1",
    ] {
        for case in both("a01-calico-restarting", |files| put(files, pod, "")) {
            all(&case, "calico", "keep", "the kubelet keeps its pod ");
            says(&case, "ok", "none");
        }
    }
    // Anybody's pod may have that name, and pods that were not listed may be Calico's.
    for case in both("a01-calico-restarting", |files| {
        put(files, "files/var/log/pods/tenant_calico-node-x7k2p_0b5c", "");
    }) {
        all(&case, "calico", "suspect", "only a pod called calico-node-x7k2p");
    }
    for case in both("a01-calico-restarting", |files| put(files, "files/var/log/pods", "")) {
        all(&case, "calico", "keep", "the pods in /var/log/pods are not known");
    }
    // Nor is anybody gone where the node's processes cannot be seen.
    for case in both("a01-calico-restarting", |files| put(files, "processes.json", "null\n")) {
        all(&case, "calico", "keep", "the processes are not in this state");
    }
    // Nobody deletes the folder of a pod where no kubelet runs; another pod is another's.
    for case in both("a01-calico-restarting", |files| {
        put(files, POD, "");
        replace(files, "processes.json", "\"kubelet\"", "\"other\"");
    }) {
        all(&case, "calico", "remove", "calico is gone");
    }
    for case in both("a01-calico-restarting", |files| {
        put(files, "files/var/log/pods/kube-system_aws-node-x7k2p_0b5c", "");
    }) {
        all(&case, "calico", "remove", "calico is gone");
    }
}

#[test]
fn felix_is_known_by_its_arguments() {
    for case in Case::both("a02-calico-new-process-name") {
        all(&case, "calico", "keep", "process calico-felix (");
        says(&case, "ok", "none");
    }
    let other = |args: &'static [&'static str]| {
        both("a02-calico-new-process-name", move |files| {
            replace(files, "processes.json", "\"name\": \"calico\"", "\"name\": \"other\"");
            process(files, "calico", args);
        })
    };
    for case in other(&["/usr/bin/calico", "--x=1", "component", "felix"]) {
        all(&case, "calico", "keep", "process calico-felix (800) runs");
    }
    // Another part of it, or its CNI plugin, is no felix.
    for args in [&["calico", "component", "confd"][..], &["/opt/cni/bin/calico"]] {
        for case in other(args) {
            all(&case, "calico", "remove", "calico is gone");
        }
    }
    // No answer is not "no".
    for case in other(&["calico", "<masked>", "<masked>"]) {
        all(&case, "calico", "keep", "its arguments are not in this state");
        says(&case, "unknown", "its arguments are not in this state");
    }
}

const LEASE: &str = "files/run/flannel/subnet.env";
const NET: &str = "files/etc/cni/net.d/";

#[test]
fn what_flannel_leaves_is_no_life() {
    for case in Case::both("a06-flannel-subnet-env-left") {
        all(&case, "flannel", "remove", "flannel is gone");
        says(&case, "found", "flannel: 1 chain, 2 rules");
    }
    // A configuration that is not in use, a link, a lease in use, or one that cannot be read.
    let flannel = r#"{"name": "cbr0", "plugins": [{"type": "flannel"}]}"#;
    let case = |change: &dyn Fn(&mut Files)| both("a06-flannel-subnet-env-left", change);
    let link = |files: &mut Files, name: &str, address: &str| {
        let mut links: Vec<Value> = serde_json::from_str(&files["addr.json"]).expect("links");
        let address = json!({"family": "inet", "local": address, "prefixlen": 24});
        let mut link = links[1].clone();
        link["ifname"] = json!(name);
        link["addr_info"] = json!([address]);
        links.push(link);
        let text = json!(links).to_string();
        put(files, "addr.json", &text);
    };
    let leased = |files: &Files| {
        let line = files[LEASE]
            .lines()
            .find(|line| line.starts_with("FLANNEL_SUBNET="))
            .expect("a lease")
            .to_owned();
        line["FLANNEL_SUBNET=".len()..].trim_end_matches("/24").to_owned()
    };
    for (cases, why) in [
        (
            case(&|files| put(files, &format!("{NET}20-flannel.conflist"), flannel)),
            "20-flannel.conflist, not in use",
        ),
        (case(&|files| link(files, "flannel.1", "198.51.100.1")), "the link flannel.1"),
        (
            case(&|files| {
                let own = leased(files);
                link(files, "cni0", &own)
            }),
            "/run/flannel/subnet.env",
        ),
        (case(&|files| put(files, LEASE, "")), "/run/flannel/subnet.env"),
    ] {
        for case in cases {
            all(&case, "flannel", "suspect", why);
            says(&case, "found", why);
        }
    }
    // The configuration in use is a sign, and so is a pod.
    let node = case(&|files| put(files, &format!("{NET}05-flannel.conflist"), flannel));
    for case in node.into_iter().chain(case(&|files| {
        put(files, "files/var/log/pods/kube-flannel_kube-flannel-ds-abcde_1", "")
    })) {
        assert!(rows(&case, "flannel").iter().all(|(action, _)| action == "keep"), "{}", case.name);
        says(&case, "ok", "none");
    }
    // What cannot be read may be anybody's.
    for case in case(&|files| put(files, &format!("{NET}00-x.conflist"), "")) {
        let removed = |(action, _): &(String, String)| action == "remove";
        assert!(!rows(&case, "flannel").iter().any(removed), "{}", case.name);
        says(&case, "unknown", "what it configures is not known");
    }
}

#[test]
fn a_part_that_is_switched_off_does_not_live() {
    let server = |args: &'static [&'static str], settings: &'static str| {
        both("a08-k3s-component-off", move |files| {
            let args: Vec<&str> = [&["/usr/local/bin/k3s", "server"], args].concat();
            process(files, "k3s", &args);
            if !settings.is_empty() {
                put(files, "files/etc/rancher/k3s/config.yaml", settings);
            }
        })
    };
    let off = "flannel-backend: none\ndisable-network-policy: true\n";
    let cases = Case::both("a08-k3s-component-off").into_iter();
    let cases =
        cases.chain(server(&["--flannel-backend", "none", "--disable-network-policy=true"], ""));
    for case in cases.chain(server(&["<masked>"], off)) {
        all(&case, "flannel", "remove", "runs with --flannel-backend=none");
        all(&case, "kube-router", "suspect", "runs with --disable-network-policy");
        says(&case, "found", "flannel: 1 chain, 2 rules");
        says(&case, "found", "kube-router: 3 chains, 3 rules, 1 of them to drop");
    }
    let on = server(&["--flannel-backend=host-gw", "--disable-network-policy=false"], off);
    for case in on.into_iter().chain(server(&[], "flannel-backend: vxlan\n")) {
        let lives = |(action, _): &(String, String)| action == "keep";
        for owner in ["flannel", "kube-router"] {
            assert!(rows(&case, owner).iter().all(lives), "{}: {owner}", case.name);
        }
        says(&case, "ok", "none");
    }
    // The link of a part that is off is left; a flanneld beside it is none.
    for case in both("a08-k3s-component-off", |files| {
        replace(files, "addr.json", "\"eth0\"", "\"flannel.1\"");
    }) {
        all(&case, "flannel", "suspect", "left is the link flannel.1");
    }
    for case in both("a08-k3s-component-off", |files| {
        let text = files["processes.json"].trim_end().trim_end_matches(']').to_owned();
        put(
            files,
            "processes.json",
            &format!("{text}, {{\"pid\": 9, \"name\": \"flanneld\", \"args\": [\"flanneld\"]}}]"),
        );
    }) {
        assert!(rows(&case, "flannel").iter().all(|(action, _)| action == "keep"), "{}", case.name);
    }
    // An agent is told by its server; a title hides the arguments; the rest of k3s is another program.
    for (name, args, action, why) in [
        (
            "k3s",
            &["/usr/local/bin/k3s", "agent", "<masked>"][..],
            "keep",
            "another node tells it that",
        ),
        ("k3s-agent", &["/usr/local/bin/k3s agent"], "keep", "another node tells it that"),
        ("k3s", &["/usr/local/bin/k3s server"], "keep", "its arguments are not in this state"),
        (
            "k3s",
            &["/usr/local/bin/k3s", "<masked>", "<masked>"],
            "keep",
            "its arguments are not in this state",
        ),
        (
            "k3s",
            &["k3s", "kubectl", "get", "pods"],
            "suspect",
            "no process, link or file of kube-router",
        ),
        (
            "rke2",
            &["/usr/local/bin/rke2", "server"],
            "suspect",
            "no process, link or file of kube-router",
        ),
    ] {
        for case in both("a08-k3s-component-off", |files| process(files, name, args)) {
            all(&case, "kube-router", action, why);
        }
    }
    for case in both("a08-k3s-component-off", |files| {
        process(files, "k3s", &["k3s agent"]);
        replace(files, "addr.json", "\"eth0\"", "\"flannel.1\"");
    }) {
        let lives = |(_, why): &(String, String)| !why.contains("not known");
        assert!(rows(&case, "flannel").iter().all(lives), "{}: the link proves it", case.name);
    }
}

#[test]
fn a_life_in_another_backend_is_none() {
    for case in Case::both("a10-calico-left-its-backend") {
        all(
            &case,
            "calico",
            "suspect",
            "seems to have left this backend: it has the table ip calico",
        );
        says(&case, "found", "it has the table ip calico");
    }
    // A table that no packet passes is no life.
    for case in both("a10-calico-left-its-backend", |files| {
        replace(files, "nft.json", "\"hook\": \"forward\", ", "");
    }) {
        all(&case, "calico", "keep", "process calico-node (");
        says(&case, "ok", "none");
    }
    // The same in IPv6, and of others.
    for case in both("a10-calico-left-its-backend", |files| {
        let text = files.remove("iptables-nft.save").expect("rules");
        put(files, "ip6tables-nft.save", &text);
    }) {
        all(&case, "calico", "suspect", "it has the table ip calico");
    }
    let moved =
        |owner: &'static str, program: &'static str, table: &'static str, rules: &'static str| {
            both("a10-calico-left-its-backend", move |files| {
                process(files, program, &[program]);
                replace(files, "nft.json", "\"calico\"", &format!("\"{table}\""));
                put(files, "iptables-nft.save", rules);
                put(files, "ip6tables-legacy.save", "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n");
            })
            .map(|case| (owner, table, case))
        };
    for (owner, table, case) in [
        moved("flannel", "flanneld", "flannel-ipv4", "*filter\n:FORWARD ACCEPT [0:0]\n:FLANNEL-FWD - [0:0]\n-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\nCOMMIT\n"),
        moved("kube-router", "kube-router", "kube-router-filter-ipv4", "*filter\n:FORWARD ACCEPT [0:0]\n:KUBE-ROUTER-FORWARD - [0:0]\n-A FORWARD -m comment --comment \"kube-router netpol - TEMCG2JMHZYE7H7T\" -j KUBE-ROUTER-FORWARD\nCOMMIT\n"),
        moved("docker", "dockerd", "docker-bridges", "*filter\n:FORWARD ACCEPT [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"),
    ]
    .into_iter()
    .flatten()
    {
        all(&case, owner, "suspect", &format!("it has the table ip {table}"));
    }
    // Both backends of iptables: the kubelet's hint tells which is in use, or nobody does.
    let legacy = |files: &mut Files| {
        files.remove("nft.json");
        let rules = files["iptables-nft.save"].to_string();
        put(files, "iptables-legacy.save", &rules);
    };
    for case in both("a10-calico-left-its-backend", legacy) {
        all(&case, "calico", "suspect", "it has chains in legacy and in nft");
        says(&case, "found", "it has chains in legacy and in nft");
    }
    for case in both("a10-calico-left-its-backend", |files| {
        legacy(files);
        let hint = "*mangle\n:PREROUTING ACCEPT [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";
        let rules = format!("{hint}{}", files["iptables-nft.save"]);
        put(files, "iptables-nft.save", &rules);
    }) {
        let plan = case.json("plan");
        for object in plan["objects"].as_array().expect("objects") {
            let left = object.to_string().contains("legacy");
            let expected = if left { "suspect" } else { "keep" };
            assert!(object["owner"] != "calico" || object["action"] == expected, "{object}");
        }
        says(&case, "found", "it has chains in nft too, where KUBE-IPTABLES-HINT is");
    }
}

#[test]
fn a_capture_without_a_list_of_processes_found_none() {
    let listed = both("a11-no-known-process", |files| put(files, "processes.json", "[]"));
    for case in Case::both("a11-no-known-process").into_iter().chain(listed) {
        all(&case, "flannel", "remove", "flannel is gone");
        says(&case, "found", "flannel: 1 chain, 2 rules");
    }
    // A list that was lost is none: not all was captured, or kube-proxy ran.
    let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let lost = both("a11-no-known-process", |files| put(files, "files/c.conf", config));
    let partial = both("a11-no-known-process", |files| drop(files.remove("tools.txt")));
    for case in lost.into_iter().chain(partial) {
        let removed = |(action, _): &(String, String)| action == "remove";
        assert!(!rows(&case, "flannel").iter().any(removed), "{}", case.name);
        says(&case, "unknown", "the processes are not in this state");
    }
}
