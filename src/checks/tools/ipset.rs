//! ipvs mode keeps what its rules match in ipsets, and looks for `ipset` 6.0 when it starts.

use super::super::{Check, Facts, Severity, Verdict};
use super::at_least;
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// What kube-proxy asks for at its start.
const NEEDED: Version = Version { major: 6, minor: 0, patch: 0 };

pub(in crate::checks) const CHECK: Check = Check {
    id: "tools.ipset",
    title: "the ipset binary that kube-proxy runs",
    severity: Severity::Block,
    when: "ipvs mode runs, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    judge,
    reference: "https://github.com/rancher/rke2/issues/645",
};

const EFFECT: &str = "kube-proxy refuses ipvs mode: up to 1.26 it falls back to iptables without \
                      a word, later it ends, and services stop following their pods";

fn judge(facts: &Facts<'_>) -> Verdict {
    at_least(facts, "ipset", "ipset", NEEDED, EFFECT)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, judged_to, node};
    use super::*;
    use crate::state::tools::Tool;

    #[test]
    fn found_where_it_is_missing_or_old() {
        let mut state = node("docker-iptables-1.30");
        for (tool, evidence) in [
            (Tool::missing("ipset"), "ipset: not installed"),
            (Tool::found("ipset", "/sbin/ipset", "ipset v4.5"), "older than 6.0.0"),
        ] {
            state.tools.as_mut().unwrap().tools = vec![tool];
            let Verdict::Found(found) = judged_to(&CHECK, &state, Some(Mode::Ipvs)) else {
                panic!("not found");
            };
            assert!(found.evidence[0].contains(evidence), "{:?}", found.evidence);
        }
    }

    #[test]
    fn ok_where_it_is_there_and_unknown_without_a_version() {
        let mut state = node("half-migrated-ipvs-1.20");
        assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)));
        let tools = &mut state.tools.as_mut().unwrap().tools;
        *tools = vec![Tool::found("ipset", "/sbin/ipset", "")];
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }
}
