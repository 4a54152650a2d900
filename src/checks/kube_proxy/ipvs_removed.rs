//! ipvs mode is off from 1.40 on, and gone in 1.43 (KEP-5495, as planned).

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

pub(crate) const CHECK: Check = Check {
    id: "kube-proxy.ipvs-removed",
    title: "ipvs mode, which this kube-proxy does not start in",
    severity: Severity::Block,
    when: "ipvs mode runs, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    judge,
    reference: "https://kep.k8s.io/5495",
};

/// The first kernel whose nf_tables kube-proxy takes (kubernetes PR 124152).
const NFTABLES: Version = Version { major: 5, minor: 13, patch: 0 };

/// How the gate of ipvs mode is set, if it is.
pub(super) fn gate(facts: &Facts<'_>) -> Option<bool> {
    facts.settings.as_ref()?.feature_gates.get("KubeProxyIPVS").copied()
}

/// True if this kube-proxy does not start in ipvs mode.
pub(super) fn is_off(facts: &Facts<'_>) -> bool {
    let minor = facts.running.version.map(|v| (v.major, v.minor));
    let asked = gate(facts);
    minor.is_some_and(|v| {
        v >= (1, 43) || v >= (1, 40) && asked != Some(true) || v >= (1, 37) && asked == Some(false)
    })
}

/// The mode to go to: nftables, where the kernel has it.
pub(super) fn next_mode(facts: &Facts<'_>) -> String {
    let kernel = facts.now.tools.as_ref().and_then(|t| t.kernel_version());
    match kernel {
        Some(kernel) if kernel < NFTABLES => {
            format!("proxyshift check --to iptables   # kernel {kernel} is too old for nftables")
        }
        _ => "proxyshift check --to nftables   # the mode that takes the place of ipvs".into(),
    }
}

fn judge(facts: &Facts<'_>) -> Verdict {
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
        remedy.push(super::setting(facts, line, "--feature-gates=KubeProxyIPVS=true"));
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
    use super::super::testing::versioned;
    use super::*;
    use crate::checks::testing::{judged, judged_to, node, with_facts};

    #[test]
    fn all_three_outcomes() {
        let at = |version| {
            let state = versioned("docker-iptables-1.30", version);
            judged_to(&CHECK, &state, Some(Mode::Ipvs))
        };
        assert!(matches!(at("v1.39.9"), Verdict::Ok(_)));
        let Verdict::Found(found) = at("v1.40.0") else { panic!("not found") };
        assert!(found.remedy[0].starts_with("proxyshift check --to nftables"), "{found:?}");
        assert_eq!(found.remedy.len(), 2);
        let Verdict::Found(found) = at("v1.43.0") else { panic!("not found") };
        assert_eq!(found.remedy.len(), 1);
        let verdict = judged(&CHECK, &node("half-migrated-ipvs-1.20"));
        assert!(matches!(verdict, Verdict::Unknown(_)));
    }

    #[test]
    fn the_gate_counts_while_there_is_one() {
        let judge_with = |version, on| {
            let state = versioned("half-migrated-ipvs-1.20", version);
            with_facts(&state, None, |facts| {
                let settings = facts.settings.as_mut().expect("settings");
                settings.feature_gates.insert("KubeProxyIPVS".into(), on);
                judge(facts)
            })
        };
        assert!(matches!(judge_with("v1.41.0", true), Verdict::Ok(_)));
        assert!(matches!(judge_with("v1.43.0", true), Verdict::Found(_)));
        assert!(matches!(judge_with("v1.38.0", false), Verdict::Found(_)));
    }

    #[test]
    fn it_does_not_apply_without_ipvs() {
        let state = node("docker-iptables-1.30");
        assert!(!with_facts(&state, None, |facts| (CHECK.applies)(facts)));
    }
}
