//! Feature gates that kube-proxy no longer takes after an upgrade.

use super::{at_least, config_file, instances};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::running::NEWEST_KNOWN;
use crate::state::kube_proxy::{GateFate, gate_fate};

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.feature-gates",
    title: "feature gates that later versions of kube-proxy do not take",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://kubernetes.io/docs/reference/command-line-tools-reference/feature-gates-removed/",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown("what kube-proxy was told is not known".into());
    };
    let faults: Vec<(String, String)> = settings
        .feature_gates
        .iter()
        .filter_map(|(gate, on)| {
            let fate = fault(facts, gate, *on)?;
            let place = position(facts, gate);
            let remedy = format!("take {gate} out before the upgrade: {place}");
            Some((format!("{gate}={on} ({place}): {fate}"), remedy))
        })
        .collect();
    if faults.is_empty() {
        let newest = NEWEST_KNOWN;
        return Verdict::Ok(format!("kube-proxy 1.{newest} takes each gate that is set"));
    }
    let (evidence, remedy) = faults.into_iter().unzip();
    Verdict::Found(Found {
        evidence,
        effect: "kube-proxy ends at its start with a gate that it does not know, or with a value \
                 that a gate no longer takes: after the upgrade no change of a service reaches the \
                 node"
            .into(),
        remedy,
        fix: Vec::new(),
    })
}

/// What is wrong with a gate that is set to `on`; none if the newest known kube-proxy takes it, and
/// the running one heeds it.
fn fault(facts: &Facts<'_>, gate: &str, on: bool) -> Option<String> {
    match gate_fate(gate) {
        GateFate::Free => None,
        GateFate::Gone(minor) => Some(format!("kube-proxy from 1.{minor} on does not know it")),
        GateFate::Unknown => Some(format!("kube-proxy 1.{NEWEST_KNOWN} does not know it")),
        GateFate::Locked { since, value } if value != on => {
            Some(format!("kube-proxy from 1.{since} on takes {value} alone"))
        }
        GateFate::Locked { since, .. } => (at_least(facts, since) == Some(true))
            .then(|| format!("without effect since 1.{since}; a later version will not know it")),
    }
}

/// Where a gate is set: the line of kube-proxy's configuration file, or its command line.
fn position(facts: &Facts<'_>, gate: &str) -> String {
    let Some(path) = config_file(facts) else {
        return match instances(facts)[..] {
            [process] => format!("--feature-gates of process {}", process.pid),
            _ => "featureGates in its configuration".into(),
        };
    };
    let text = facts.now.file(&path).unwrap_or_default();
    match text.lines().position(|line| names(line, gate)) {
        Some(at) => format!("{path}:{}", at + 1),
        None => path,
    }
}

/// Whether a line has `gate` as a whole word.
fn names(line: &str, gate: &str) -> bool {
    line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == gate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, verdict_of};

    const FILE: &str = "files/var/lib/kube-proxy/config.conf";

    fn with(version: &str, gates: &str) -> Verdict {
        let node = Node::captured("docker-iptables-1.30").kube_proxy_version(version);
        verdict_of(&CHECK, &node.append(FILE, gates).state())
    }

    fn evidence(verdict: Verdict) -> Vec<String> {
        let Verdict::Found(found) = verdict else { panic!("{verdict:?}") };
        assert_eq!(found.evidence.len(), found.remedy.len());
        found.evidence
    }

    #[test]
    fn gates_that_go_are_named_with_their_line() {
        let gates =
            "featureGates:\n  IPv6DualStack: true\n  NotAGate: false\n  KubeProxyIPVS: true\n";
        assert_eq!(
            evidence(with("v1.24.17", gates)),
            [
                "IPv6DualStack=true (/var/lib/kube-proxy/config.conf:9): kube-proxy from 1.25 on \
                 does not know it",
                "NotAGate=false (/var/lib/kube-proxy/config.conf:10): kube-proxy 1.37 does not \
                 know it",
            ]
        );
        assert!(matches!(with("v1.24.17", ""), Verdict::Ok(_)));
    }

    #[test]
    fn a_gate_ages() {
        let on = "featureGates: {NFTablesProxyMode: true}\n";
        let off = "featureGates: {NFTablesProxyMode: false}\n";
        for version in ["v1.30.5", "v1.32.9"] {
            assert!(matches!(with(version, on), Verdict::Ok(_)), "{version} needs it");
            assert!(evidence(with(version, off))[0].ends_with("from 1.33 on takes true alone"));
        }
        assert!(evidence(with("v1.33.0", on))[0].contains("without effect since 1.33"));
    }

    #[test]
    fn flags_set_gates_too() {
        let args = ["kube-proxy", "--feature-gates=MountPropagation=true,AllAlpha=false"];
        let node = Node::captured("docker-iptables-1.30");
        let state = node.clone().kube_proxy_args(&args).state();
        let found = evidence(verdict_of(&CHECK, &state));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("(--feature-gates of process "), "{found:?}");
        let state = node.remove(FILE).state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
