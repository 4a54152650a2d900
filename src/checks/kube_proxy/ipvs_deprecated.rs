//! ipvs mode is on its way out (KEP-5495): deprecated in 1.35, behind a gate from 1.37.

use super::ipvs_removed::{gate, is_off, next_mode};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;

pub(crate) const CHECK: Check = Check {
    id: "kube-proxy.ipvs-deprecated",
    title: "ipvs mode, which kube-proxy from 1.35 on deprecates",
    severity: Severity::Warn,
    when: "ipvs mode runs, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    judge,
    reference: "https://kep.k8s.io/5495",
};

fn judge(facts: &Facts<'_>) -> Verdict {
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

#[cfg(test)]
mod tests {
    use super::super::testing::versioned;
    use super::*;
    use crate::checks::testing::{judged, node};

    fn at(version: &str) -> Verdict {
        judged(&CHECK, &versioned("half-migrated-ipvs-1.20", version))
    }

    #[test]
    fn all_three_outcomes() {
        assert!(matches!(at("v1.34.2"), Verdict::Ok(_)));
        let Verdict::Found(found) = at("v1.35.0") else { panic!("not found") };
        assert_eq!(found.evidence, ["kube-proxy 1.35.0"]);
        let Verdict::Found(found) = at("v1.37.1") else { panic!("not found") };
        assert!(found.evidence[1].contains("on by default"), "{found:?}");
        assert!(matches!(at("v1.40.0"), Verdict::Ok(_)));
        let verdict = judged(&CHECK, &node("half-migrated-ipvs-1.20"));
        assert!(matches!(verdict, Verdict::Unknown(_)));
    }
}
