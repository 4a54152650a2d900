//! Nodes on the way to nftables mode, and firewalls that a change of mode meets.

use serde_json::{Value, json};

use crate::case::Case;
use crate::nodes;
use crate::report::{finding, has, outcome, texts, with_processes};

const IPTABLES_NFT: &str = "iptables-nft.save";
const TOOLS: &str = "tools.txt";
const MODULES: &str = "modules.txt";
const CONFIG: &str = "files/var/lib/kube-proxy/config.conf";

/// A copy of the case `name` in which each file that is named has a part replaced.
fn changed(name: &str, changes: &[(&str, &str, &str)]) -> Case {
    let [case, _] = Case::both(name);
    let mut files = case.files();
    for (file, from, to) in changes {
        nodes::replace(&mut files, file, from, to);
    }
    Case::of(&format!("{name} with {changes:?}"), files)
}

/// A copy of the case `name` with these further files.
fn with(name: &str, more: &[(&str, &str)]) -> Case {
    let [case, _] = Case::both(name);
    let mut files = case.files();
    files.extend(more.iter().map(|(file, text)| ((*file).to_owned(), (*text).into())));
    Case::of(&format!("{name} with {more:?}"), files)
}

/// The evidence, effect and remedy of a finding, as one text.
fn whole(finding: &Value) -> String {
    ["evidence", "effect", "remedy"].map(|field| texts(finding, field)).join("\n")
}

#[test]
fn a_drop_that_is_real_is_told_from_a_save_that_lost_a_match() {
    let real = |case: &Case, also: &str| {
        let report = case.json("check");
        let found = finding(&report, "backends.lost-match");
        assert_eq!((&found["outcome"], &found["severity"]), (&json!("found"), &json!("block")));
        has(&texts(&found, "effect"), &["the kernel drops everything"]);
        has(&texts(&found, "remedy"), &["-D KUBE-FIREWALL -m comment", "1.8.8"]);
        has(&texts(&found, "evidence"), &[also]);
        assert_eq!(outcome(&report, "backends.garbled"), "ok", "{}", case.name);
        assert!(!case.text("check").contains("still does what was meant"), "{}", case.name);
    };
    for case in Case::both("b06-firewall-drop-is-real") {
        real(&case, "it has counted 4711 packets");
    }
    let name = "b06-firewall-drop-is-real";
    let uncounted = (IPTABLES_NFT, "[4711:398231] -A", "[0:0] -A");
    real(&changed(name, &[uncounted]), "iptables v1.8.8 (nf_tables) would show it");
    real(&changed(name, &[uncounted, (TOOLS, "v1.8.8", "v1.8.11")]), "would show it");
    real(&changed(name, &[(TOOLS, "v1.8.8", "v1.8.7")]), "it has counted 4711 packets");
    // An older save that has counted nothing may have lost what the kernel has.
    let report = changed(name, &[uncounted, (TOOLS, "v1.8.8", "v1.8.7")]).json("check");
    assert_eq!(outcome(&report, "backends.lost-match"), "unknown");
    let found = finding(&report, "backends.garbled");
    has(&whole(&found), &["it lost its match and drops everything", "kernel still does"]);
    // Of IPv6, and of a rule that accepts.
    let [case, _] = Case::both(name);
    let mut files = case.files();
    let save = files.remove(IPTABLES_NFT).expect("the rules");
    files.insert("ip6tables-nft.save".into(), save);
    let found = finding(&Case::of("of IPv6", files).json("check"), "backends.lost-match");
    has(&texts(&found, "remedy"), &["ip6tables-nft -t filter -D KUBE-FIREWALL"]);
    let accept = " -m mark --mark 0x4000/0x4000 -j ACCEPT";
    let found = finding(
        &changed(name, &[(IPTABLES_NFT, accept, " -j ACCEPT")]).json("check"),
        "backends.lost-match",
    );
    has(&texts(&found, "effect"), &["the kernel accepts everything that is forwarded"]);
}

#[test]
fn the_kernels_parts_of_nftables_mode_are_asked_for() {
    let parts = ["nft_ct", "nft_fib_ipv4", "nft_fib_ipv6", "nft_masq", "nft_numgen", "nft_nat"];
    for case in Case::both("b07-nftables-kernel-parts") {
        let report = case.json("check --to nftables");
        let found = finding(&report, "kernel.nftables-parts");
        assert_eq!(found["outcome"], "unknown", "{}: {found}", case.name);
        has(&texts(&found, "evidence"), &parts);
        has(&texts(&found, "evidence"), &["a live node alone"]);
        assert_eq!(outcome(&report, "nftables.expressions"), "unknown", "{}", case.name);
        let found = finding(&report, "kernel.nf-conntrack");
        assert_eq!((&found["outcome"], &found["severity"]), (&json!("found"), &json!("block")));
        has(&whole(&found), &["conntrack.maxPerCore", "kube-proxy ends at its start"]);
        has(&texts(&found, "remedy"), &["modprobe nf_conntrack", "maxPerCore: 0"]);
        let text = report.to_string();
        assert!(!text.contains("tools.iptables"), "{}: {text}", case.name);
        // The modes that need iptables still ask for it.
        let report = case.json("check --to ipvs");
        assert_ne!(outcome(&report, "tools.iptables"), "ok", "{}", case.name);
    }
    let name = "b07-nftables-kernel-parts";
    let loaded =
        "nft_ct 1 0 - Live 0x0\nnft_fib_ipv4 1 0 - Live 0x0\nnf_conntrack 1 0 - Live 0x0\n";
    let report = with(name, &[(MODULES, loaded)]).json("check --to nftables");
    let unknown = texts(&finding(&report, "kernel.nftables-parts"), "evidence");
    assert!(!unknown.contains("nft_ct,") && !unknown.contains("nft_fib_ipv4"), "{unknown}");
    has(&unknown, &["nft_fib_ipv6"]);
    assert_eq!(outcome(&report, "kernel.nf-conntrack"), "ok");
    // A configuration that sets nothing of conntrack needs none of it.
    let zeros = "conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, \
                 tcpCloseWaitTimeout: 0s}\n";
    let report = with(name, &[(CONFIG, zeros)]).json("check --to nftables");
    assert_eq!(outcome(&report, "kernel.nf-conntrack"), "ok");
    let report = with(name, &[(CONFIG, "mode: nftables\n")]).json("check");
    assert_eq!(outcome(&report, "kernel.nf-conntrack"), "found");
    assert!(!report.to_string().contains("tools.iptables"), "{report}");
}

#[test]
fn sets_of_a_newer_nft_crash_that_of_kube_proxy() {
    let judged = |case: &Case, words: &str| finding(&case.json(words), "tools.nft-newer");
    for case in Case::both("b08-nft-segfault") {
        let found = judged(&case, "check --to nftables");
        assert_eq!((&found["outcome"], &found["severity"]), (&json!("found"), &json!("warn")));
        has(
            &texts(&found, "evidence"),
            &["nftables v1.1.3", "table inet test_table (set test_set)", "kube-proxy 1.34.1"],
        );
        has(&whole(&found), &["no sync succeeds", "1.34.7"]);
    }
    let name = "b08-nft-segfault";
    let runs = changed(name, &[(CONFIG, "mode: iptables", "mode: nftables")]);
    assert_eq!(judged(&runs, "check")["outcome"], "found", "where it is configured");
    for (changes, expected) in [
        (&[(TOOLS, "v1.1.3", "v1.1.6")][..], "found"),
        (&[(TOOLS, "v1.1.3", "v1.0.9")], "ok"),
        (&[("processes.json", "v1.34.1", "v1.34.7")], "ok"),
        (&[("processes.json", "v1.34.1", "v1.36.2-eks-3")], "ok"),
        (&[("processes.json", "v1.34.1", "v1.31.0")], "found"),
        (&[("processes.json", "\"version\"", "\"was\"")], "unknown"),
        (&[("nft.json", "\"set\"", "\"map\"")], "found"),
        (&[("nft.json", "\"set\"", "\"counter\"")], "ok"),
    ] {
        let found = judged(&changed(name, changes), "check --to nftables");
        assert_eq!(found["outcome"], expected, "{changes:?}: {found}");
    }
    let old = changed(name, &[(TOOLS, "v1.1.3", "v0.9.3")]).json("check --to nftables");
    assert_eq!(outcome(&old, "tools.nft-old"), "found");
}

#[test]
fn a_closed_firewall_loses_what_kube_proxy_opened() {
    let name = "b09-nftables-closed-firewall";
    for case in Case::both(name) {
        let report = case.json("check --to nftables");
        let forward = finding(&report, "nftables.forward-closed");
        assert_eq!((&forward["outcome"], &forward["severity"]), (&json!("found"), &json!("block")));
        has(
            &texts(&forward, "evidence"),
            &[
                "the policy of FORWARD is DROP, which dropped 5121 packets",
                "[88123 packets] -A KUBE-FORWARD",
                "0x4000/0x4000 -j ACCEPT",
            ],
        );
        has(&texts(&forward, "effect"), &["nftables mode opens nothing", "NodePort"]);
        has(&texts(&forward, "remedy"), &["iptables-nft -I FORWARD -d ", "-P FORWARD ACCEPT"]);
        let input = finding(&report, "nftables.input-closed");
        has(&texts(&input, "evidence"), &["[311 packets] -A KUBE-NODEPORTS", "--dport 30999"]);
        has(&texts(&input, "remedy"), &["iptables-nft -I INPUT -p tcp --dport 30999 -j ACCEPT"]);
        let ports = finding(&report, "nftables.node-port-addresses");
        has(&whole(&ports), &["[primary]", "30080/tcp", "a second address, a VIP"]);
        has(&texts(&ports, "remedy"), &["nodePortAddresses: [0.0.0.0/0, '::/0']"]);
        // Without a move nothing of this is said.
        let report = case.json("check");
        assert!(!report.to_string().contains("nftables.forward-closed"), "{}", case.name);
    }
    let outcomes = |case: &Case| {
        let report = case.json("check --to nftables");
        [outcome(&report, "nftables.forward-closed"), outcome(&report, "nftables.input-closed")]
    };
    let rule = "[0:0] -A OUTPUT -j KUBE-FIREWALL";
    let rules = |more: &str| changed(name, &[(IPTABLES_NFT, rule, &format!("{rule}\n{more}"))]);
    let pods = "-A FORWARD -s 192.168.64.0/20 -j ACCEPT\n-A FORWARD -d 192.168.64.0/20 -j ACCEPT\n";
    let range = "-A INPUT -p tcp -m multiport --dports 30000:32767 -j ACCEPT";
    assert_eq!(outcomes(&rules(&format!("{pods}{range}"))), ["ok", "ok"]);
    // What docker accepts is not the traffic of pods.
    let docker = "-A FORWARD -i docker0 -j ACCEPT\n-A INPUT -p tcp --dport 22 -j ACCEPT";
    assert_eq!(outcomes(&rules(docker)), ["found", "found"]);
    let open = [
        (IPTABLES_NFT, ":FORWARD DROP [5121:430164]", ":FORWARD ACCEPT [0:0]"),
        (IPTABLES_NFT, ":INPUT DROP", ":INPUT ACCEPT"),
    ];
    assert_eq!(outcomes(&changed(name, &open)), ["ok", "ok"]);
    let reject = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n-A INPUT -j DROP";
    let mut closed = open.to_vec();
    let last = format!("{rule}\n{reject}");
    closed.push((IPTABLES_NFT, rule, &last));
    assert_eq!(outcomes(&changed(name, &closed)), ["found", "found"]);
    // The same firewall of the backend legacy, where kube-proxy writes too.
    let [case, _] = Case::both(name);
    let mut files = case.files();
    let save = files.remove(IPTABLES_NFT).expect("the rules");
    files.insert("iptables-legacy.save".into(), save);
    let legacy = Case::of("of legacy", files);
    assert_eq!(outcomes(&legacy), ["found", "found"]);
    let found = finding(&legacy.json("check --to nftables"), "nftables.forward-closed");
    has(&texts(&found, "remedy"), &["iptables-legacy -I FORWARD -d "]);
    let addresses = changed(name, &[(CONFIG, "mode:", "nodePortAddresses: [primary]\nmode:")]);
    let report = addresses.json("check --to nftables");
    assert_eq!(outcome(&report, "nftables.node-port-addresses"), "ok");
}

#[test]
fn a_closed_input_is_opened_for_what_ipvs_takes_there() {
    let name = "b10-ipvs-nodeport-input";
    for case in Case::both(name) {
        let found = finding(&case.json("check --to ipvs"), "ipvs.host-firewall");
        assert_eq!(found["outcome"], "found", "{}", case.name);
        has(&texts(&found, "effect"), &["NodePort", "health check NodePort", "load balancer"]);
        has(
            &texts(&found, "remedy"),
            &[
                "iptables-nft -I INPUT -s ",
                "iptables-nft -I INPUT -p tcp -m multiport --dports 30080,30999 -j ACCEPT",
            ],
        );
    }
    let remedy = |case: &Case| {
        texts(&finding(&case.json("check --to ipvs"), "ipvs.host-firewall"), "remedy")
    };
    let port = [(IPTABLES_NFT, "--dport 30080", "--dport 31234")];
    has(&remedy(&changed(name, &port)), &["--dports 30999,31234"]);
    let udp = [(
        IPTABLES_NFT,
        "-A KUBE-NODEPORTS -p tcp -m comment --comment \"shop/web:http\" -m tcp",
        "-A KUBE-NODEPORTS -p udp -m comment --comment \"shop/web:http\" -m udp",
    )];
    has(&remedy(&changed(name, &udp)), &["-p tcp --dport 30999", "-p udp --dport 30080"]);
    // An address of a load balancer, and of IPv6.
    let cluster =
        "-A KUBE-SERVICES -d 10.96.1.1/32 -p tcp -m comment --comment \"shop/web:http cluster IP\"";
    let balancer = "-A KUBE-SERVICES -d 203.0.113.9/32 -p tcp -m comment --comment \"shop/web:http loadbalancer IP\" \
                    -m tcp --dport 80 -j KUBE-EXT-67NZLRHBNDSAWJRO";
    let both = format!("{balancer}\n[0:0] {cluster}");
    let case = changed(name, &[(IPTABLES_NFT, cluster, &both)]);
    has(&remedy(&case), &["iptables-nft -I INPUT -d 203.0.113.9 -p tcp --dport 80 -j ACCEPT"]);
    let firewalld =
        with_processes(name, json!([{"pid": 7, "name": "firewalld", "args": ["firewalld"]}]));
    has(&remedy(&firewalld), &["firewall-cmd --permanent --add-port=30080/tcp"]);
    let native = r#"{"nftables": [{"table": {"family": "inet", "name": "f"}},
        {"chain": {"family": "inet", "table": "f", "name": "in", "hook": "input",
        "type": "filter", "prio": 0, "policy": "drop"}}]}"#;
    let open = changed(name, &[(IPTABLES_NFT, ":INPUT DROP", ":INPUT ACCEPT")]);
    let mut files = open.files();
    files.insert("nft.json".into(), native.into());
    has(&remedy(&Case::of("native", files)), &["30080/tcp, 30999/tcp, in that chain"]);
    // What is accepted already is not asked for.
    let rule = "[0:0] -A OUTPUT -j KUBE-FIREWALL";
    let accepted = format!("{rule}\n-A INPUT -p tcp -m tcp --dport 30000:32767 -j ACCEPT");
    let left = remedy(&changed(name, &[(IPTABLES_NFT, rule, &accepted)]));
    assert!(!left.contains("dport"), "{left}");
}
