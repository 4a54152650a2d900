//! What components leave behind: host ports of pods that are gone, rules and sets of a pod network
//! that is gone, and a resolver that is gone.

use proxyshift::state::Files;
use serde_json::{Value, json};

use crate::case::Case;
use crate::report::{finding, has, outcome, texts};

/// Both forms of a case, with changed files.
fn both(name: &str, change: impl Fn(&mut Files)) -> [Case; 2] {
    Case::both(name).map(|case| {
        let mut files = case.files();
        change(&mut files);
        Case::of(&case.name, files)
    })
}

fn replace(files: &mut Files, path: &str, from: &str, to: &str) {
    let text = files[path].replace(from, to);
    assert_ne!(*files[path], *text, "{path} has no `{from}`");
    files.insert(path.to_owned(), text.into());
}

/// The outcome and the evidence of the check `id`.
fn judged(case: &Case, id: &str) -> (String, String) {
    let report = case.json(&format!("check --only {id}"));
    (outcome(&report, id), texts(&finding(&report, id), "evidence"))
}

/// The name of each object of `owner` in the plan, with its action.
fn objects(case: &Case, owner: &str) -> Vec<(String, String)> {
    let plan = case.json("plan");
    let all = plan["objects"].as_array().expect("objects").iter();
    let its = all.filter(|object| object["owner"] == owner);
    its.map(|o| (o["action"].as_str().expect("text").to_owned(), o.to_string())).collect()
}

fn actions(case: &Case, owner: &str) -> Vec<String> {
    objects(case, owner).into_iter().map(|(action, _)| action).collect()
}

const NFT: &str = "iptables-nft.save";
const PORTMAP: &str = "cni.portmap";

#[test]
fn one_port_of_a_list_is_taken() {
    for case in Case::both("a14-portmap-overlap") {
        let (outcome, evidence) = judged(&case, PORTMAP);
        assert_eq!(outcome, "found", "{}", case.name);
        has(&evidence, &["takes its packets to port 80", "--dports 80,443"]);
    }
    let with = |from: &'static str, to: &'static str| {
        both("a14-portmap-overlap", move |files| replace(files, NFT, from, to))
    };
    // A range has the port too.
    for case in with("--dports 80,443", "--dports 79:81,443") {
        assert_eq!(judged(&case, PORTMAP).0, "found", "{}", case.name);
    }
    // Other ports, another protocol, and what is bound to another address are no rivals.
    for case in
        with("--dport 80 -j DNAT --to-destination 10.", "--dport 81 -j DNAT --to-destination 10.")
    {
        assert_eq!(judged(&case, PORTMAP).0, "unknown", "{}", case.name);
    }
    for case in with("--dports 80 -j", "--dports 8080 -j") {
        assert_eq!(judged(&case, PORTMAP).0, "unknown", "{}", case.name);
    }
    for case in
        with("-A CNI-DN-75cbb066bb1e01246e284 -p tcp", "-A CNI-DN-75cbb066bb1e01246e284 -p udp")
    {
        assert_eq!(judged(&case, PORTMAP).0, "unknown", "{}", case.name);
    }
    for case in with(
        "-A CNI-DN-75cbb066bb1e01246e284 -p tcp",
        "-A CNI-DN-75cbb066bb1e01246e284 -d 192.0.2.7/32 -p tcp",
    ) {
        assert_eq!(judged(&case, PORTMAP).0, "unknown", "{}", case.name);
    }
}

#[test]
fn an_empty_chain_takes_nothing() {
    for case in Case::both("a15-portmap-empty-chain") {
        let report = case.json("check --only cni.portmap");
        let found = finding(&report, PORTMAP).to_string();
        assert!(found.contains("holds no rule"), "{found}");
        assert!(!found.contains("takes its packets") && !found.contains("crictl"), "{found}");
        assert_eq!(actions(&case, "cni-portmap").iter().filter(|a| *a == "remove").count(), 2);
    }
}

#[test]
fn without_a_kubelet_no_cri_is_asked() {
    for (kubelet, tool) in [("kubelet", "crictl pods"), ("other", "nerdctl ps")] {
        for case in both("a14-portmap-overlap", |files| {
            let text = files["processes.json"].replace("\"kubelet\"", &format!("\"{kubelet}\""));
            files.insert("processes.json".into(), text.into());
        }) {
            let report = case.json("check --only cni.portmap");
            has(&texts(&finding(&report, PORTMAP), "remedy"), &[tool]);
        }
    }
}

#[test]
fn the_host_ports_of_the_nftables_back_end_are_read() {
    for case in Case::both("a16-portmap-nft") {
        let (outcome, evidence) = judged(&case, PORTMAP);
        assert_eq!(outcome, "found", "{}", case.name);
        has(&evidence, &["handle 5: `bbbb", "takes its packets to port 80"]);
    }
    // The pods of one table in IPv6, and a pod with two rules of its own.
    for case in both("a16-portmap-nft", |files| {
        replace(files, "nft.json", "\"family\": \"ip\"", "\"family\": \"ip6\"");
        for (from, to) in [("9", "9"), ("20", "20")] {
            let text = files["nft.json"].clone();
            let old = text
                .split("\"addr\": \"")
                .find(|t| t.split('"').next().is_some_and(|a| a.ends_with(&format!(".0.{from}"))));
            let old = old.expect("a pod").split('"').next().expect("an address").to_owned();
            replace(files, "nft.json", &format!("\"{old}\""), &format!("\"fd00::{to}\""));
        }
    }) {
        has(&judged(&case, PORTMAP).1, &["table ip6 cni_hostport", "takes its packets to port 80"]);
    }
    for case in both("a16-portmap-nft", |files| {
        replace(files, "nft.json", &"b".repeat(64), &"a".repeat(64));
    }) {
        assert!(!judged(&case, PORTMAP).1.contains("takes"), "{}", case.name);
    }
}

#[test]
fn cilium_has_its_sets() {
    for case in Case::both("a18-cilium-set") {
        assert_eq!(actions(&case, "cilium"), ["keep"], "{}", case.name);
    }
    for case in both("a18-cilium-set", |files| {
        replace(files, "processes.json", "\"cilium-agent\"", "\"other\"");
    }) {
        assert_eq!(actions(&case, "cilium"), ["remove"], "{}", case.name);
        has(&judged(&case, "cni.leftovers").1, &["cilium: 0 chains, 0 rules, 1 ipset;"]);
    }
}

#[test]
fn a_resolver_that_is_gone_is_found() {
    for case in Case::both("a20-nodelocaldns-gone") {
        let (outcome, evidence) = judged(&case, "dns.resolver");
        assert_eq!(outcome, "found", "{}: {evidence}", case.name);
        has(&evidence, &["nothing answers there", "NodeLocal DNS Cache: skip conntrack"]);
        assert_eq!(actions(&case, "nodelocaldns"), ["suspect"], "{}", case.name);
    }
    // While node-cache lives, or its link has the address, nothing is said.
    for case in both("a20-nodelocaldns-gone", |files| {
        files.insert(
            "addr.json".into(),
            json!([{"ifname": "nodelocaldns", "addr_info":
                [{"family": "inet", "local": "169.254.20.10", "prefixlen": 32}]}])
            .to_string()
            .into(),
        );
    }) {
        assert!(!judged(&case, "dns.resolver").1.contains("nothing answers"), "{}", case.name);
        assert!(actions(&case, "nodelocaldns").iter().all(|a| a == "keep"), "{}", case.name);
    }
    // The address at which a cloud answers is on no link of a node.
    for case in both("a20-nodelocaldns-gone", |files| {
        replace(files, "files/etc/resolv.conf", "169.254.20.10", "169.254.169.253");
    }) {
        assert_eq!(judged(&case, "dns.resolver").0, "ok", "{}", case.name);
    }
    // Rules that keep queries to the cluster's DNS untracked take it from its Service.
    for case in both("a20-nodelocaldns-gone", |files| {
        let services = files[NFT].lines().find(|l| l.contains("--dport 53 -j KUBE-SVC"));
        let dns = services.and_then(|l| l.split(' ').nth(3)).expect("the address").to_owned();
        replace(files, NFT, "169.254.20.10/32", &dns);
        replace(files, "files/etc/resolv.conf", "169.254.20.10", "192.0.2.53");
    }) {
        let (outcome, evidence) = judged(&case, "dns.resolver");
        assert_eq!(outcome, "found", "{}: {evidence}", case.name);
        has(&evidence, &["untracked queries meet no Service"]);
    }
}

/// Rules as each pod network or its companion writes them: owner, a process of it, chains, and rules of
/// the filter table; then how many rules, and how many of them drop.
const OTHERS: &[(&str, &str, &str, &str, usize, usize)] = &[
    (
        "weave",
        "weaver",
        ":WEAVE-NPC - [0:0]\n:WEAVE-NPC-EGRESS - [0:0]\n",
        "-A INPUT -i weave -j WEAVE-NPC-EGRESS\n\
         -A FORWARD -o weave -m comment --comment \"NOTE: this must go before '-j KUBE-FORWARD'\" -j WEAVE-NPC\n\
         -A FORWARD -o weave -m state --state NEW -j NFLOG --nflog-group 86\n\
         -A FORWARD -o weave -j DROP\n\
         -A FORWARD -i weave ! -o weave -j ACCEPT\n\
         -A FORWARD -o weave -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A WEAVE-NPC -m state --state RELATED,ESTABLISHED -j ACCEPT\n",
        7,
        1,
    ),
    (
        "azure-npm",
        "azure-npm",
        ":AZURE-NPM - [0:0]\n:AZURE-NPM-INGRESS - [0:0]\n",
        "-A FORWARD -m conntrack --ctstate NEW -j AZURE-NPM\n\
         -A AZURE-NPM -j AZURE-NPM-INGRESS\n\
         -A AZURE-NPM-INGRESS -m mark --mark 0x4000 -j DROP\n",
        3,
        1,
    ),
    (
        "azure-cni",
        "azure-cns",
        ":AZURECNIINPUT - [0:0]\n",
        "-A INPUT -j AZURECNIINPUT\n-A AZURECNIINPUT -p tcp -m tcp --dport 80 -j DROP\n",
        2,
        1,
    ),
    (
        "kube-router",
        "kube-router",
        ":KUBE-ROUTER-FORWARD - [0:0]\n:KUBE-POD-FW-AAAAAAAAAAAAAAAA - [0:0]\n",
        "-A FORWARD -m comment --comment \"kube-router netpol - TEMCG2JMHZYE7H7T\" -j KUBE-ROUTER-FORWARD\n\
         -A KUBE-ROUTER-FORWARD -d 10.7.0.4/32 -j KUBE-POD-FW-AAAAAAAAAAAAAAAA\n\
         -A KUBE-POD-FW-AAAAAAAAAAAAAAAA -m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable\n",
        3,
        1,
    ),
    (
        "antrea",
        "antrea-agent",
        ":ANTREA-FORWARD - [0:0]\n",
        "-A FORWARD -m comment --comment \"Antrea: jump to Antrea forwarding rules\" -j ANTREA-FORWARD\n\
         -A ANTREA-FORWARD -i antrea-gw0 -m comment --comment \"Antrea: accept packets from local Pods\" -j ACCEPT\n",
        2,
        0,
    ),
    (
        "microk8s",
        "kubelite",
        "",
        "-A FORWARD -s 10.1.0.0/16 -m comment --comment \"generated for MicroK8s pods\" -j ACCEPT\n\
         -A FORWARD -d 10.1.0.0/16 -m comment --comment \"generated for MicroK8s pods\" -j ACCEPT\n",
        2,
        0,
    ),
    (
        "aws-vpc-cni",
        "aws-k8s-agent",
        ":AWS-SNAT-CHAIN-0 - [0:0]\n",
        "-A POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0\n\
         -A AWS-SNAT-CHAIN-0 -d 10.8.0.0/16 -m comment --comment \"AWS SNAT CHAIN\" -j RETURN\n",
        2,
        0,
    ),
];

/// The operator's own, in the midst of them.
const OPERATORS: &str = "-A FORWARD -i weave -p tcp -m tcp --dport 22 -j ACCEPT\n\
    -A FORWARD -s 192.0.2.9/32 -j DROP\n";

/// A node with the rules of `owner`, where that process runs, if any.
fn others(case: &str, owner: usize, process: Option<&str>) -> [Case; 2] {
    let (name, _, chains, rules, ..) = OTHERS[owner];
    both(case, |files| {
        let nat = name == "aws-vpc-cni";
        let (table, built_in) = if nat {
            ("nat", ":POSTROUTING ACCEPT [0:0]\n")
        } else {
            ("filter", ":INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n")
        };
        let foreign = if nat { "" } else { OPERATORS };
        let save = format!("*{table}\n{built_in}{chains}{foreign}{rules}COMMIT\n");
        files.insert(NFT.into(), save.into());
        let running = process.map(|name| json!({"pid": 900, "name": name, "args": [name]}));
        let kubelet = json!({"pid": 800, "name": "kubelet", "args": ["kubelet"]});
        let all: Vec<_> = [Some(kubelet), running].into_iter().flatten().collect();
        files.insert("processes.json".into(), json!(all).to_string().into());
    })
}

#[test]
fn each_pod_network_that_is_gone_is_counted_and_goes() {
    for (index, (owner, process, _, _, rules, drops)) in OTHERS.iter().enumerate() {
        for case in others("a21-cni-leftovers-counts", index, None) {
            let (outcome, evidence) = judged(&case, "cni.leftovers");
            assert_eq!(outcome, "found", "{owner}: {}", case.name);
            let left = evidence.lines().find(|l| l.starts_with(&format!("{owner}: ")));
            let left = left.unwrap_or_else(|| panic!("{owner}: {evidence}"));
            let own = if *owner == "weave" { rules + 1 } else { *rules };
            let mut words = vec![format!(", {own} rules")];
            if *drops > 0 {
                words.push(format!(", {drops} of them to drop or reject"));
            }
            has(left, &words.iter().map(String::as_str).collect::<Vec<_>>());
            let removed =
                objects(&case, owner).into_iter().filter(|(action, _)| action == "remove");
            let removed: Vec<String> = removed.map(|(_, text)| text).collect();
            let count = removed.iter().filter(|t| t.contains("\"kind\":\"rule\"")).count();
            // kube-router may be inside of rke2, which shows no sign of it.
            let gone = if *owner == "kube-router" { 0 } else { *rules };
            assert_eq!(count, gone, "{owner}: {removed:#?}");
            let operators =
                removed.iter().any(|t| t.contains("--dport 22") || t.contains("192.0.2.9"));
            assert!(!operators, "{owner}: {removed:#?}");
        }
        // While it lives, or nobody can know, everything stays.
        let alive = others("a21-cni-leftovers-counts", index, Some(process));
        let unknown = others("a21-cni-leftovers-counts", index, None).map(|case| {
            let mut files = case.files();
            files.insert("processes.json".into(), "null\n".into());
            Case::of(&case.name, files)
        });
        for case in alive.into_iter().chain(unknown) {
            let actions = actions(&case, owner);
            assert!(actions.iter().all(|a| a == "keep"), "{owner}: {}: {actions:?}", case.name);
        }
    }
}

/// Links that stay when their pod network has gone are no life: what it left is suspected, and the link
/// is named as the reason.
#[test]
fn links_that_outlive_their_owner_are_no_life() {
    for (owner, links) in [
        ("weave", &["weave", "vethwe-bridge", "vethwe-datapath", "datapath"][..]),
        ("antrea", &["antrea-gw0", "antrea-tun0"]),
        ("azure-cni", &["azure0"]),
        ("kube-router", &["kube-bridge", "kube-dummy-if"]),
        ("cilium", &["cilium_host", "cilium_net", "cilium_vxlan"]),
    ] {
        for link in links {
            let cases = match OTHERS.iter().position(|(name, ..)| *name == owner) {
                Some(index) => others("a21-cni-leftovers-counts", index, None),
                None => Case::both("a21-cni-leftovers-counts"),
            };
            for case in cases {
                let mut files = case.files();
                let mut all: Vec<Value> = serde_json::from_str(&files["addr.json"]).expect("links");
                all.push(json!({"ifindex": 977, "ifname": link, "addr_info": []}));
                files.insert("addr.json".into(), json!(all).to_string().into());
                let case = Case::of(&case.name, files);
                let actions = actions(&case, owner);
                assert!(actions.iter().any(|a| a == "suspect"), "{owner}: {link}: {actions:?}");
                let stays = |a: &String| a == "suspect" || a == "keep";
                assert!(actions.iter().all(stays), "{owner}: {link}: {actions:?}");
                let (outcome, evidence) = judged(&case, "cni.leftovers");
                assert_eq!(outcome, "found", "{owner}: {link}: {evidence}");
                let left = evidence.lines().find(|l| l.starts_with(&format!("{owner}: ")));
                let why = format!("only the link {link}");
                assert!(left.is_some_and(|l| l.contains(&why)), "{owner}: {link}: {evidence}");
            }
        }
    }
}

/// A native table of an owner that is gone is counted and goes, if the catalogue says what it consists
/// of and it holds nothing else. While the owner lives, it stays.
#[test]
fn native_tables_of_owners_that_are_gone_are_counted_and_go() {
    let table = |name: &str, chain: &str, statement: Value| {
        let [family, name] = name.split(' ').collect::<Vec<_>>()[..] else { panic!("{name}") };
        json!({"nftables": [
            {"table": {"family": family, "name": name, "handle": 1}},
            {"chain": {"family": family, "table": name, "name": chain, "handle": 2}},
            {"rule": {"family": family, "table": name, "chain": chain, "handle": 3,
                "expr": [statement]}},
        ]})
        .to_string()
    };
    let drop = || json!({"drop": null});
    for (owner, process, name, chain, statement, action) in [
        ("calico", "calico-node", "ip calico", "filter-cali-FORWARD", drop(), "remove"),
        (
            "calico",
            "calico-node",
            "ip6 calico",
            "nat-POSTROUTING",
            json!({"masquerade": null}),
            "remove",
        ),
        // A part that Calico does not write.
        ("calico", "calico-node", "ip calico", "mine", drop(), "suspect"),
        ("calico", "calico-node", "ip calico", "filter-cali-x", json!({"queue": null}), "suspect"),
        // What it consists of is not known.
        ("antrea", "antrea-agent", "inet antrea", "any", drop(), "suspect"),
    ] {
        let with = |process: Option<&str>| {
            both("a21-cni-leftovers-counts", |files| {
                files.insert("nft.json".into(), table(name, chain, statement.clone()).into());
                let running = process.map(|p| json!({"pid": 900, "name": p, "args": [p]}));
                let kubelet = json!({"pid": 800, "name": "kubelet", "args": ["kubelet"]});
                let all: Vec<_> = [Some(kubelet), running].into_iter().flatten().collect();
                files.insert("processes.json".into(), json!(all).to_string().into());
            })
        };
        for case in with(None) {
            let found = actions(&case, owner);
            assert_eq!(found, [action], "{owner}: {name} {chain}: {}", case.name);
            let (outcome, evidence) = judged(&case, "cni.leftovers");
            assert_eq!(outcome, "found", "{owner}: {evidence}");
            let left = evidence.lines().find(|l| l.starts_with(&format!("{owner}: ")));
            has(left.expect("a line"), &[", 1 native table;"]);
        }
        for case in with(Some(process)) {
            let found = actions(&case, owner);
            assert!(found.iter().all(|a| a == "keep"), "{owner}: {name}: {found:?}");
        }
    }
}

#[test]
fn cilium_is_counted_with_its_jump_and_goes() {
    for case in Case::both("a21-cni-leftovers-counts") {
        let report = case.json("check --only cni.leftovers");
        let found = finding(&report, "cni.leftovers");
        has(&texts(&found, "evidence"), &["cilium: 1 chain, 2 rules, 0 ipsets;"]);
        has(&texts(&found, "remedy"), &["proxyshift cleanup --owner cilium"]);
        assert_eq!(actions(&case, "cilium"), ["remove"; 3], "{}", case.name);
    }
}
