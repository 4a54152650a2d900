//! ipvs itself.

use super::super::{Check, Facts, Severity, Verdict};
use super::judge_module;
use crate::state::kube_proxy::Mode;

pub(in crate::checks) const CHECK: Check = Check {
    id: "kernel.ip-vs",
    title: "ipvs in the kernel (ip_vs)",
    severity: Severity::Block,
    when: "ipvs mode runs, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    judge,
    reference: "https://github.com/kubernetes/kubernetes/blob/v1.30.0/pkg/proxy/ipvs/README.md",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let servers = facts.now.ipvs.servers.len();
    let there = (servers > 0).then(|| format!("it has {servers} virtual servers"));
    judge_module(
        facts,
        "ip_vs",
        there,
        "kube-proxy refuses ipvs mode: up to 1.26 it falls back to iptables without a word, later \
         it ends, and services stop following their pods",
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, judged_to, node};
    use super::super::testing::judged_with;
    use super::*;

    #[test]
    fn found_where_no_place_has_it() {
        let state = node("docker-iptables-1.30");
        let Verdict::Found(found) = judged_with(&CHECK, &state, Mode::Ipvs, &["ip_set"], &[])
        else {
            panic!("not found");
        };
        assert!(found.evidence[0].starts_with("ip_vs: not in /proc/modules"), "{found:?}");
        assert!(found.remedy[0].contains("linux-modules-extra-6.18.44"), "{found:?}");
    }

    #[test]
    fn ok_where_it_serves_or_can_be_loaded_and_unknown_in_a_snapshot() {
        assert!(matches!(judged(&CHECK, &node("half-migrated-ipvs-1.20")), Verdict::Ok(_)));
        let state = node("docker-iptables-1.30");
        let verdict = judged_with(&CHECK, &state, Mode::Ipvs, &["ip_vs"], &[]);
        assert_eq!(verdict, Verdict::Ok("ip_vs can be loaded (modules.dep)".into()));
        assert!(matches!(judged_to(&CHECK, &state, Some(Mode::Ipvs)), Verdict::Unknown(_)));
    }
}
