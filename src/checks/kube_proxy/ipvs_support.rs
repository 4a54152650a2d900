//! The end of ipvs mode in kube-proxy, as KEP-5495 plans it: deprecated in 1.35, behind a feature
//! gate from 1.37, off by default from 1.40, removed in 1.43.

use super::setting;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

pub(super) const DEPRECATED: Check = Check {
    id: "kube-proxy.ipvs-deprecated",
    title: "ipvs mode, which kube-proxy from 1.35 on deprecates",
    severity: Severity::Warn,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate: deprecated,
    reference: "https://kep.k8s.io/5495",
};

fn deprecated(facts: &Facts<'_>) -> Verdict {
    let Some(version) = facts.running.version else {
        return Verdict::Unknown("the version of kube-proxy is not known".into());
    };
    let minor = (version.major, version.minor);
    if minor < (1, 35) {
        return Verdict::Ok(format!("kube-proxy {version} does not deprecate it yet"));
    }
    if is_off(facts) {
        return Verdict::Ok(format!(
            "more than deprecated in {version}: see kube-proxy.ipvs-removed"
        ));
    }
    let mut evidence = vec![format!("kube-proxy {version}")];
    if minor >= (1, 37) {
        evidence.push(match gate(facts) {
            Some(on) => format!("the feature gate KubeProxyIPVS is set to {on}"),
            None => "the feature gate KubeProxyIPVS, on by default until 1.39".into(),
        });
    }
    Verdict::Found(Found {
        evidence,
        effect:
            "it works, and kube-proxy logs IPVSDeprecation; as planned, 1.40 does not start in \
                 ipvs mode by default, and 1.43 has no ipvs mode"
                .into(),
        remedy: vec![next_mode(facts)],
        fix: Vec::new(),
    })
}

pub(super) const REMOVED: Check = Check {
    id: "kube-proxy.ipvs-removed",
    title: "ipvs mode, which this kube-proxy does not start in",
    severity: Severity::Block,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate: removed,
    reference: "https://kep.k8s.io/5495",
};

/// The oldest kernel that nftables mode supports (kubernetes PR 124152).
const NFTABLES: Version = Version { major: 5, minor: 13, patch: 0 };

/// The value of ipvs mode's feature gate in the configuration, if it is set.
fn gate(facts: &Facts<'_>) -> Option<bool> {
    facts.settings.as_ref()?.feature_gates.get("KubeProxyIPVS").copied()
}

/// True if this version of kube-proxy does not start in ipvs mode with the feature gate as
/// configured.
fn is_off(facts: &Facts<'_>) -> bool {
    let minor = facts.running.version.map(|v| (v.major, v.minor));
    let gate = gate(facts);
    minor.is_some_and(|v| {
        v >= (1, 43) || v >= (1, 40) && gate != Some(true) || v >= (1, 37) && gate == Some(false)
    })
}

/// The command that checks a move to the next mode: to nftables, unless the kernel is too old for
/// nftables mode; otherwise to iptables.
fn next_mode(facts: &Facts<'_>) -> String {
    let kernel = facts.now.tools.as_ref().and_then(|t| t.kernel_version());
    match kernel {
        Some(kernel) if kernel < NFTABLES => {
            format!("proxyshift check --to iptables   # kernel {kernel} is too old for nftables")
        }
        _ => "proxyshift check --to nftables   # the mode that takes the place of ipvs".into(),
    }
}

fn removed(facts: &Facts<'_>) -> Verdict {
    let Some(version) = facts.running.version else {
        return Verdict::Unknown("the version of kube-proxy is not known".into());
    };
    if !is_off(facts) {
        return Verdict::Ok(format!("kube-proxy {version} starts in ipvs mode"));
    }
    let gone = (version.major, version.minor) >= (1, 43);
    let gate = match gate(facts) {
        _ if gone => "ipvs mode is gone in 1.43".into(),
        Some(on) => format!("the feature gate KubeProxyIPVS is set to {on}"),
        None => "the feature gate KubeProxyIPVS is off by default from 1.40 on".into(),
    };
    let mut remedy = vec![next_mode(facts)];
    if !gone {
        let line = "featureGates: {KubeProxyIPVS: true}";
        remedy.push(setting(facts, line, "--feature-gates=KubeProxyIPVS=true"));
    }
    Verdict::Found(Found {
        evidence: vec![format!("kube-proxy {version}"), gate],
        effect: "in ipvs mode this kube-proxy does not start, and no change of a service reaches \
                 the node any more"
            .into(),
        remedy,
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};

    fn at(version: &str) -> Verdict {
        verdict_of(
            &DEPRECATED,
            &Node::captured("half-migrated-ipvs-1.20").kube_proxy_version(version).state(),
        )
    }

    #[test]
    fn deprecated_has_all_three_outcomes() {
        assert!(matches!(at("v1.34.2"), Verdict::Ok(_)));
        let Verdict::Found(found) = at("v1.35.0") else { panic!("not found") };
        assert_eq!(found.evidence, ["kube-proxy 1.35.0"]);
        let Verdict::Found(found) = at("v1.37.1") else { panic!("not found") };
        assert!(found.evidence[1].contains("on by default"), "{found:?}");
        assert!(matches!(at("v1.40.0"), Verdict::Ok(_)));
        let verdict = verdict_of(&DEPRECATED, &node("half-migrated-ipvs-1.20"));
        assert!(matches!(verdict, Verdict::Unknown(_)));
    }

    #[test]
    fn removed_has_all_three_outcomes() {
        let at = |version| {
            let state = Node::captured("docker-iptables-1.30").kube_proxy_version(version).state();
            given(&state).to(Mode::Ipvs).verdict(&REMOVED)
        };
        assert!(matches!(at("v1.39.9"), Verdict::Ok(_)));
        let Verdict::Found(found) = at("v1.40.0") else { panic!("not found") };
        assert!(found.remedy[0].starts_with("proxyshift check --to nftables"), "{found:?}");
        assert_eq!(found.remedy.len(), 2);
        let Verdict::Found(found) = at("v1.43.0") else { panic!("not found") };
        assert_eq!(found.remedy.len(), 1);
        let verdict = verdict_of(&REMOVED, &node("half-migrated-ipvs-1.20"));
        assert!(matches!(verdict, Verdict::Unknown(_)));
    }

    #[test]
    fn the_gate_counts_while_there_is_one() {
        let with_gate = |version, on| {
            let state =
                Node::captured("half-migrated-ipvs-1.20").kube_proxy_version(version).state();
            given(&state).facts(|facts| {
                let settings = facts.settings.as_mut().expect("settings");
                settings.feature_gates.insert("KubeProxyIPVS".into(), on);
                removed(facts)
            })
        };
        assert!(matches!(with_gate("v1.41.0", true), Verdict::Ok(_)));
        assert!(matches!(with_gate("v1.43.0", true), Verdict::Found(_)));
        assert!(matches!(with_gate("v1.38.0", false), Verdict::Found(_)));
    }

    #[test]
    fn it_does_not_apply_without_ipvs() {
        let state = node("docker-iptables-1.30");
        assert!(!given(&state).facts(|facts| (REMOVED.applies)(facts)));
    }
}
