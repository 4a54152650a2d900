//! kube-proxy up to 1.14 removes the objects of the other modes each time it starts.

use super::at_least;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.teardown",
    title: "a kube-proxy that tears other modes down at each start",
    severity: Severity::Warn,
    when: "kube-proxy up to 1.14, or of an unknown version",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/75360",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
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
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    #[test]
    fn all_three_outcomes() {
        assert!(matches!(verdict_of(&CHECK, &node("canal-stale-flannel-1.20")), Verdict::Ok(_)));
        let old = Node::captured("canal-stale-flannel-1.20").kube_proxy_version("v1.14.0").state();
        let Verdict::Found(found) = verdict_of(&CHECK, &old) else { panic!("not found") };
        assert_eq!(found.evidence, ["kube-proxy 1.14.0"]);
        let mut state = node("canal-stale-flannel-1.20");
        state.rulesets.clear();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
