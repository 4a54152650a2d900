//! What every check finds on every captured node, as one table, so that any change of a finding is
//! seen.
//!
//! After an intended change, run `INSTA_UPDATE=always cargo test --test checks_table`.

mod nodes;

use std::fmt::Write;

use proxyshift::checks::{self, Facts, Finding, Severity, Verdict};
use proxyshift::owners::catalogue::Catalogue;
use proxyshift::owners::matcher::Ownership;
use proxyshift::state::kube_proxy::Mode;

/// The outcomes of all checks on a captured node, without or with a target mode.
fn findings(node: &str, to: Option<Mode>) -> Vec<Finding> {
    let state = nodes::state(&nodes::files(node));
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let ownership = Ownership::of(&catalogue, &state);
    checks::run(&Facts::of(&state, &catalogue, &ownership, to), &|_| true)
}

/// Only those outcomes that found something, with their evidence.
fn found(findings: &[Finding]) -> impl Iterator<Item = (&Finding, &checks::Found)> {
    findings.iter().filter_map(|f| match &f.verdict {
        Verdict::Found(found) => Some((f, found)),
        _ => None,
    })
}

#[test]
fn table_of_nodes_and_checks() {
    let mut table = String::new();
    for node in nodes::names() {
        for to in [None, Some(Mode::Ipvs), Some(Mode::Nftables)] {
            let findings = findings(&node, to);
            let target = to.map_or(String::new(), |to| format!(" → {to}"));
            // Writing to a String cannot fail, so the result is ignored.
            let _ = writeln!(table, "{node}{target}");
            for finding in &findings {
                let (outcome, message) = match &finding.verdict {
                    // A target mode changes few outcomes, so those that are ok are left out of the
                    // table.
                    Verdict::Ok(_) if to.is_some() => continue,
                    Verdict::Ok(_) => ("ok", ""),
                    Verdict::Unknown(_) if to.is_some() => ("unknown", ""),
                    Verdict::Unknown(missing) => ("unknown", missing.as_str()),
                    Verdict::Found(f) => ("FOUND", f.evidence.first().map_or("", |e| e)),
                };
                let severity = format!("{:?}", finding.severity).to_lowercase();
                let line = format!("  {outcome:<7} {severity:<5} {:<30} {message}", finding.id);
                let _ = writeln!(table, "{}", line.trim_end());
            }
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn every_finding_says_what_it_does_and_what_to_do() {
    for node in nodes::names() {
        for to in [None, Some(Mode::Ipvs), Some(Mode::Nftables), Some(Mode::Iptables)] {
            for (finding, found) in found(&findings(&node, to)) {
                let id = finding.id;
                assert!(!found.evidence.is_empty(), "{id} has no evidence");
                assert!(!found.effect.is_empty(), "{id} has no effect");
                assert!(!found.remedy.is_empty(), "{id} has no remedy");
            }
        }
    }
}

/// The findings that `snapshots/README.md` requires: the node, the beginning of the check's id, and
/// a part of the evidence.
const EXPECTED: &[(&str, &str, &str)] = &[
    ("canal-stale-flannel-1.20", "cni", "! -s 192.168.64.0/20 -d 192.168.66.0/24 -j RETURN"),
    ("canal-stale-flannel-1.20", "invalid", "773 packets"),
    ("canal-stale-flannel-1.20", "invalid", "cali-tw-cali02fca994756"),
    ("canal-stale-flannel-1.20", "conntrack", "nf_conntrack_tcp_loose = 0"),
    ("docker-legacy-iptables-1.20-no-conntrack", "tools", "conntrack: not installed"),
    ("docker-legacy-iptables-1.20-no-conntrack", "tools", "executable file not found"),
    ("half-migrated-ipvs-1.20", "kube-proxy", "KUBE-EXTERNAL-SERVICES"),
    ("half-migrated-ipvs-1.20", "kube-proxy", "iptables-nft nat: "),
    ("half-migrated-ipvs-1.20", "kube-proxy", "REJECT"),
    ("ipvs-dns-blackhole-1.20", "ipvs", "10.96.0.10:53/udp -> 192.168.66.5:53: weight 0"),
    ("ipvs-with-keepalived-1.20", "ipvs", "10.9.0.100:8443"),
    ("nftables-leftovers-1.30", "kube-proxy", "KUBE-PROXY-CANARY"),
];

#[test]
fn each_node_shows_what_its_readme_lists() {
    for (node, area, evidence) in EXPECTED {
        let in_area = |id: &str| id.split('.').next() == Some(area);
        let findings = findings(node, None);
        let shown = found(&findings)
            .any(|(f, found)| in_area(f.id) && found.evidence.iter().any(|e| e.contains(evidence)));
        assert!(shown, "no {area} check finds `{evidence}` on {node}");
    }
}

#[test]
fn nothing_blocks_that_is_not_real() {
    for node in nodes::names() {
        for to in [None, Some(Mode::Iptables), Some(Mode::Ipvs), Some(Mode::Nftables)] {
            let findings = findings(&node, to);
            let mut blockers: Vec<&str> =
                findings.iter().filter(|f| f.blocks()).map(|f| f.id).collect();
            blockers.sort_unstable();
            let mut expected = Vec::new();
            if to == Some(Mode::Nftables) && node.contains("-1.20") {
                // Kubernetes 1.20 has no nftables mode.
                expected.push("kube-proxy.nftables-available");
            }
            if to == Some(Mode::Nftables) && node.contains("keepalived") {
                expected.insert(0, "ipvs.foreign-servers-flushed");
            }
            if to == Some(Mode::Nftables) && node.ends_with("no-conntrack") {
                // Docker closes FORWARD there, and nobody but kube-proxy accepts in it.
                expected.push("nftables.forward-closed");
            }
            if node.ends_with("no-conntrack") {
                expected.push("tools.conntrack");
            }
            assert_eq!(blockers, expected, "{node} to {to:?}");
        }
    }
}

#[test]
fn the_clean_node_is_clean() {
    let findings = findings("docker-iptables-1.30", None);
    let serious = found(&findings).filter(|(f, _)| f.severity != Severity::Info);
    let ids: Vec<&str> = serious.map(|(f, _)| f.id).collect();
    // The rules of this node are clean, but its resolv.conf names only the cluster's DNS.
    assert_eq!(ids, ["dns.resolver"]);
}
