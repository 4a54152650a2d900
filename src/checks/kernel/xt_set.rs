//! The match of iptables that asks an ipset.

use super::super::{Check, Facts, Severity, Verdict};
use super::judge_module;
use crate::kube_proxy::mode;
use crate::state::kube_proxy::Mode;

pub(in crate::checks) const CHECK: Check = Check {
    id: "kernel.xt-set",
    title: "the match of ipsets (xt_set)",
    severity: Severity::Block,
    when: "ipvs mode runs, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    judge,
    reference: "https://github.com/kubernetes/kubernetes/blob/v1.30.0/pkg/proxy/ipvs/README.md",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    // The evidence of ipvs mode is a rule that matches a set.
    let runs = facts.running.mode.is_some_and(|mode| mode::of(mode).uses_ipsets());
    judge_module(
        facts,
        "xt_set",
        runs.then(|| facts.running.evidence.clone()),
        "kube-proxy's one restore of rules fails as a whole in ipvs mode: no masquerading, no \
         NodePorts, no source ranges",
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, judged_to, node};
    use super::super::testing::judged_with;
    use super::*;

    #[test]
    fn found_ok_and_unknown() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(judged_with(&CHECK, &state, Mode::Ipvs, &[], &[]), Verdict::Found(_)));
        let verdict = judged_with(&CHECK, &state, Mode::Ipvs, &["xt_set"], &[]);
        assert!(matches!(verdict, Verdict::Ok(_)));
        assert!(matches!(judged_to(&CHECK, &state, Some(Mode::Ipvs)), Verdict::Unknown(_)));
        let Verdict::Ok(shown) = judged(&CHECK, &node("half-migrated-ipvs-1.20")) else {
            panic!("not ok");
        };
        assert!(shown.contains("KUBE-CLUSTER-IP"), "{shown}");
    }
}
