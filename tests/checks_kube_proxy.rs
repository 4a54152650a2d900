//! What the checks of kube-proxy, ipvs and DNS find on each captured node, and what `check
//! --write-config` writes for it.

mod nodes;

use std::fs;
use std::process::Command;

use proxyshift::checks::{self, Facts, Severity, Verdict};
use proxyshift::owners::catalogue::Catalogue;
use proxyshift::owners::matcher::Ownership;
use proxyshift::state::kube_proxy::Mode;

const AREAS: [&str; 3] = ["dns.", "ipvs.", "kube-proxy."];

fn found(node: &str, to: Option<Mode>) -> Vec<(&'static str, Severity)> {
    let state = nodes::state(&nodes::files(node));
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let ownership = Ownership::of(&catalogue, &state);
    let facts = Facts::of(&state, &catalogue, &ownership, to);
    let ours = |id: &str| AREAS.iter().any(|area| id.starts_with(area));
    let findings = checks::run(&facts, &ours);
    assert!(findings.len() > 10, "{node}");
    let mut found: Vec<_> = findings
        .iter()
        .filter(|f| matches!(f.verdict, Verdict::Found(_)))
        .map(|f| (f.id, f.severity))
        .collect();
    found.sort();
    found
}

#[test]
fn each_captured_node_has_its_findings() {
    use Severity::{Info, Warn};
    let ipvs = [
        ("dns.resolver", Warn),
        ("ipvs.conn-reuse-mode", Warn),
        ("ipvs.tcp-timeout", Warn),
        ("ipvs.udp-timeout", Info),
        ("kube-proxy.leftover-reject", Warn),
        ("kube-proxy.leftovers", Info),
    ];
    // These nodes of 1.20 set the gate EndpointSliceProxying, which went in 1.25.
    let old = vec![("dns.resolver", Warn), ("kube-proxy.feature-gates", Warn)];
    let with = |more: &[(&'static str, Severity)]| {
        let mut all: Vec<_> = ipvs.iter().chain(more).copied().collect();
        all.sort();
        all
    };
    for (node, expected) in [
        ("canal-stale-flannel-1.20", old.clone()),
        ("docker-iptables-1.30", vec![("dns.resolver", Warn)]),
        ("docker-legacy-iptables-1.20-no-conntrack", old),
        ("half-migrated-ipvs-1.20", with(&[])),
        ("ipvs-dns-blackhole-1.20", with(&[("dns.endpoints", Warn), ("ipvs.zero-weight", Warn)])),
        (
            "ipvs-with-keepalived-1.20",
            with(&[
                ("dns.endpoints", Warn),
                ("ipvs.foreign-servers-beside", Warn),
                ("ipvs.zero-weight", Warn),
            ]),
        ),
        (
            "nftables-leftovers-1.30",
            vec![("kube-proxy.leftovers", Info), ("kube-proxy.sysctls-left", Info)],
        ),
        ("iptables-1.34", vec![]),
        ("nftables-1.34", vec![]),
        ("iptables-1.37", vec![]),
        ("nftables-1.37", vec![]),
        (
            "half-migrated-ipvs-1.37",
            vec![
                ("ipvs.tcp-timeout", Warn),
                ("ipvs.udp-timeout", Info),
                ("kube-proxy.ipvs-deprecated", Warn),
                ("kube-proxy.leftover-reject", Warn),
                ("kube-proxy.leftovers", Info),
            ],
        ),
        ("ipvs-1.34", vec![("ipvs.tcp-timeout", Warn), ("ipvs.udp-timeout", Info)]),
        (
            "ipvs-1.37",
            vec![
                ("ipvs.tcp-timeout", Warn),
                ("ipvs.udp-timeout", Info),
                ("kube-proxy.ipvs-deprecated", Warn),
            ],
        ),
        (
            "nftables-beside-iptables-1.37",
            vec![
                ("kube-proxy.both-in-force", Warn),
                ("kube-proxy.leftover-reject", Warn),
                ("kube-proxy.leftovers", Info),
                ("kube-proxy.mode", Warn),
                ("kube-proxy.sysctls-left", Info),
            ],
        ),
        (
            "nftables-leftovers-legacy-1.37",
            vec![
                ("kube-proxy.both-in-force", Warn),
                ("kube-proxy.leftover-reject", Warn),
                ("kube-proxy.leftovers", Info),
                ("kube-proxy.sysctls-left", Info),
            ],
        ),
    ] {
        assert_eq!(found(node, None), expected, "{node}");
    }
}

/// On these nodes nothing is found that blocks a migration, except that 1.20 has no nftables mode.
#[test]
fn no_blocker_that_is_not_real() {
    for node in nodes::names() {
        for to in [Mode::Iptables, Mode::Ipvs, Mode::Nftables] {
            let blocking = |(_, severity): &(&str, Severity)| *severity == Severity::Block;
            let blockers = found(&node, Some(to)).into_iter().filter(blocking);
            let expected: &[&str] = match (to, node.as_str()) {
                // Its virtual servers are flushed, as soon as a later kube-proxy has the mode.
                (Mode::Nftables, "ipvs-with-keepalived-1.20") => {
                    &["ipvs.foreign-servers-flushed", "kube-proxy.nftables-available"]
                }
                (Mode::Nftables, node) if node.contains("1.20") => {
                    &["kube-proxy.nftables-available"]
                }
                _ => &[],
            };
            let blockers: Vec<_> = blockers.map(|(id, _)| id).collect();
            assert_eq!(blockers, expected, "{node} to {to}");
        }
    }
    let ids = |to| found("docker-iptables-1.30", Some(to)).into_iter().map(|(id, _)| id);
    assert!(ids(Mode::Nftables).any(|id| id == "kube-proxy.nftables-gap"));
    assert!(!ids(Mode::Ipvs).any(|id| id == "kube-proxy.nftables-gap"));
}

#[test]
fn a_configuration_file_is_written_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut files = nodes::files("docker-iptables-1.30");
    let old = "\"--config=/var/lib/kube-proxy/config.conf\"";
    let new = "\"--proxy-mode=ipvs\", \"--cluster-cidr\", \"10.244.0.0/16\", \"--v=2\"";
    let text = files["processes.json"].replace(old, new);
    assert_ne!(text, &*files["processes.json"]);
    files.insert("processes.json".into(), text.into());
    let node = dir.path().join("node");
    for (name, text) in &files {
        let path = node.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, text.as_bytes()).expect("a file");
    }
    let file = dir.path().join("config.conf");
    let run = || {
        Command::new(env!("CARGO_BIN_EXE_proxyshift"))
            .args(["check", "--write-config"])
            .arg(&file)
            .arg("--snapshot")
            .arg(&node)
            .output()
            .expect("proxyshift runs")
    };
    let first = run();
    let out = String::from_utf8_lossy(&first.stdout).into_owned();
    assert!(first.status.success(), "{out}{}", String::from_utf8_lossy(&first.stderr));
    assert!(out.contains(" --v=2"), "{out}");
    let text = fs::read_to_string(&file).expect("the file");
    assert_eq!(
        text,
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n\
         clusterCIDR: 10.244.0.0/16\n"
    );
    fs::write(&file, "mine\n").expect("written");
    let second = run();
    assert_eq!(second.status.code(), Some(2));
    assert_eq!(fs::read_to_string(&file).expect("the file"), "mine\n");
}
