//! kube-proxy up to 1.14 tears the other modes down at each start.

use super::at_least;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};

pub(crate) const CHECK: Check = Check {
    id: "kube-proxy.teardown",
    title: "a kube-proxy that tears other modes down at each start",
    severity: Severity::Warn,
    when: "kube-proxy up to 1.14, or of an unknown version",
    applies: always,
    judge,
    reference: "https://github.com/kubernetes/kubernetes/issues/75360",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    match at_least(facts, 15) {
        Some(true) => {
            Verdict::Ok("kube-proxy is 1.15 or later: it leaves other modes alone".into())
        }
        None => Verdict::Unknown("the version of kube-proxy is not known".into()),
        Some(false) => Verdict::Found(Found {
            evidence: facts.running.version.iter().map(|v| format!("kube-proxy {v}")).collect(),
            effect: "each start removes the rules of the other modes and flushes every ipvs \
                     virtual server on the node, whoever made it, before the first sync"
                .into(),
            remedy: vec![
                "upgrade kube-proxy to 1.15 or later before its mode is changed".into(),
                "--cleanup-ipvs=false   # until then, where other programs use ipvs".into(),
            ],
            fix: Vec::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::versioned;
    use super::*;
    use crate::checks::testing::{judged, node};

    #[test]
    fn all_three_outcomes() {
        assert!(matches!(judged(&CHECK, &node("canal-stale-flannel-1.20")), Verdict::Ok(_)));
        let old = versioned("canal-stale-flannel-1.20", "v1.14.0");
        let Verdict::Found(found) = judged(&CHECK, &old) else { panic!("not found") };
        assert_eq!(found.evidence, ["kube-proxy 1.14.0"]);
        let mut state = node("canal-stale-flannel-1.20");
        state.rulesets.clear();
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }
}
