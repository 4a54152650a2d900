//! kube-ipvs0 is a dummy link.

use super::super::{Check, Facts, Severity, Verdict};
use super::judge_module;
use crate::state::kube_proxy::Mode;

pub(in crate::checks) const CHECK: Check = Check {
    id: "kernel.dummy",
    title: "dummy links (dummy)",
    severity: Severity::Block,
    when: "ipvs mode runs, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    judge,
    reference: "https://github.com/kubernetes/kubernetes/blob/v1.30.0/pkg/proxy/ipvs/README.md",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let mut dummies = facts.now.links.iter().filter(|l| l.kind.as_deref() == Some("dummy"));
    let there = dummies.next().map(|l| format!("the link {} is one", l.name));
    judge_module(
        facts,
        "dummy",
        there,
        "kube-proxy cannot make kube-ipvs0: service addresses are not this node's, and their \
         traffic leaves it by the default route",
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
        assert!(matches!(judged_to(&CHECK, &state, Some(Mode::Ipvs)), Verdict::Unknown(_)));
        let verdict = judged(&CHECK, &node("half-migrated-ipvs-1.20"));
        assert!(matches!(verdict, Verdict::Ok(link) if link.starts_with("the link ")));
    }
}
