//! The match of iptables that asks for a packet's virtual server.

use super::super::{Check, Facts, Severity, Verdict};
use super::judge_module;
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// The first version that writes rules with it (kubernetes PR 119791).
const FIRST: Version = Version { major: 1, minor: 29, patch: 0 };

pub(in crate::checks) const CHECK: Check = Check {
    id: "kernel.xt-ipvs",
    title: "the match of virtual servers (xt_ipvs)",
    severity: Severity::Warn,
    when: "ipvs mode runs, or is the target, and kube-proxy is 1.29 or later, or unknown",
    applies: |facts| facts.concerns(Mode::Ipvs) && facts.running.version.is_none_or(|v| v >= FIRST),
    judge,
    reference: "https://github.com/kubernetes/kubernetes/pull/119791",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    judge_module(
        facts,
        "xt_ipvs",
        None,
        "kube-proxy 1.29 and later uses it in KUBE-IPVS-OUT-FILTER: once it has such a rule to \
         write, its restore fails as a whole and services stop following their pods",
    )
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, node, with_facts};
    use super::super::testing::judged_with;
    use super::*;

    #[test]
    fn found_ok_and_unknown() {
        let state = node("half-migrated-ipvs-1.20");
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
        let with = |modules: &[&str]| judged_with(&CHECK, &state, Mode::Ipvs, modules, &[]);
        assert!(matches!(with(&[]), Verdict::Found(_)));
        assert!(matches!(with(&["xt_ipvs"]), Verdict::Ok(_)));
    }

    #[test]
    fn older_versions_do_not_need_it() {
        with_facts(&node("half-migrated-ipvs-1.20"), None, |facts| {
            assert!((CHECK.applies)(facts));
            facts.running.version = Version::find("1.28.9");
            assert!(!(CHECK.applies)(facts));
        });
    }
}
