//! Whether kube-proxy has nftables mode. The mode exists from 1.29 on, behind a feature gate that
//! is off by default until 1.31.

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::startup::{NFTABLES_GATE as GATE, has_nftables};
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.nftables-available",
    title: "a kube-proxy that has no nftables mode, or keeps it off",
    severity: Severity::Block,
    when: "nftables mode is the target",
    applies: |facts| facts.to == Some(Mode::Nftables),
    evaluate,
    reference: "https://kep.k8s.io/3866",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.running.mode == facts.to {
        return Verdict::Ok("nftables mode runs already".into());
    }
    let settings = facts.settings.as_ref();
    let gate = settings.and_then(|s| s.feature_gates.get(GATE).copied());
    let Some(version) = facts.running.version else {
        return match (super::at_least(facts, 29), super::at_least(facts, 31)) {
            (Some(false), _) => found(
                "kube-proxy is older than 1.29, by the chains it writes".into(),
                "upgrade kube-proxy to 1.31 or later before the switch".into(),
            ),
            (_, Some(true)) if settings.is_some() && gate != Some(false) => {
                Verdict::Ok("kube-proxy is 1.31 or later, by the rules it writes".into())
            }
            _ => Verdict::Unknown("the version of kube-proxy is not known".into()),
        };
    };
    match has_nftables(version, settings) {
        Some(true) => Verdict::Ok(format!("kube-proxy {version} has it, and it is on")),
        None => Verdict::Unknown(format!(
            "kube-proxy {version} has it behind the gate {GATE}; what it was told is not known"
        )),
        Some(false) if (version.major, version.minor) < (1, 29) => found(
            format!("kube-proxy {version} has no nftables mode"),
            "upgrade kube-proxy to 1.31 or later before the switch".into(),
        ),
        Some(false) => {
            let state = if gate == Some(false) { "set to false" } else { "off by default" };
            let line = format!("featureGates: {{{GATE}: true}}");
            let flag = format!("--feature-gates={GATE}=true");
            found(
                format!("kube-proxy {version}: the feature gate {GATE} is {state}"),
                super::setting(facts, &line, &flag),
            )
        }
    }
}

fn found(evidence: String, remedy: String) -> Verdict {
    Verdict::Found(Found {
        evidence: vec![evidence],
        effect: "kube-proxy does not start in nftables mode, and no change of a service reaches \
                 the node any more"
            .into(),
        remedy: vec![remedy],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};

    const TO: Option<Mode> = Some(Mode::Nftables);

    fn at(version: &str, gate: Option<bool>) -> Verdict {
        let state = Node::captured("docker-iptables-1.30").kube_proxy_version(version).state();
        given(&state).to(TO).facts(|facts| {
            let gates = &mut facts.settings.as_mut().expect("settings").feature_gates;
            gates.extend(gate.map(|on| (GATE.to_owned(), on)));
            evaluate(facts)
        })
    }

    #[test]
    fn the_version_and_the_gate_decide() {
        for (version, gate, fine) in [
            ("v1.28.9", Some(true), false),
            ("v1.30.5", None, false),
            ("v1.30.5", Some(true), true),
            ("v1.31.0", None, true),
            ("v1.32.0", Some(false), false),
            ("v1.33.0", Some(false), true),
        ] {
            let verdict = at(version, gate);
            assert_eq!(matches!(verdict, Verdict::Ok(_)), fine, "{version} {gate:?}: {verdict:?}");
            assert_eq!(matches!(verdict, Verdict::Found(_)), !fine, "{version} {gate:?}");
        }
    }

    #[test]
    fn without_a_version_chains_decide_or_nothing_does() {
        let old = given(&node("canal-stale-flannel-1.20")).to(TO).verdict(&CHECK);
        assert!(matches!(old, Verdict::Found(_)), "{old:?}");
        let new = given(&node("docker-iptables-1.30")).to(TO).verdict(&CHECK);
        assert!(matches!(new, Verdict::Unknown(_)), "{new:?}");
        let by_rules = given(&node("iptables-1.37")).to(TO).verdict(&CHECK);
        assert!(matches!(by_rules, Verdict::Ok(_)), "{by_rules:?}");
        let there = given(&node("nftables-leftovers-1.30")).to(TO).verdict(&CHECK);
        assert!(matches!(there, Verdict::Ok(_)), "{there:?}");
    }
}
