//! nftables mode runs `nft`.

use super::super::{Check, Facts, Severity, Verdict};
use super::at_least;
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// What kube-proxy's nftables mode asks for (kubernetes PR 124152).
const NEEDED: Version = Version { major: 1, minor: 0, patch: 1 };

pub(in crate::checks) const CHECK: Check = Check {
    id: "tools.nft",
    title: "the nft binary that kube-proxy runs",
    severity: Severity::Block,
    when: "nftables mode runs, or is the target",
    applies: |facts| facts.concerns(Mode::Nftables),
    judge,
    reference: "https://github.com/kubernetes/kubernetes/pull/124152",
};

const EFFECT: &str = "kube-proxy does not start in nftables mode: no service is translated";

fn judge(facts: &Facts<'_>) -> Verdict {
    at_least(facts, "nft", "nftables", NEEDED, EFFECT)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, judged_to, node};
    use super::*;
    use crate::state::tools::Tool;

    #[test]
    fn found_where_it_is_missing_or_old() {
        let mut state = node("docker-iptables-1.30");
        for tool in [Tool::missing("nft"), Tool::found("nft", "/sbin/nft", "nftables v0.9.8 (E)")] {
            state.tools.as_mut().unwrap().tools = vec![tool];
            let verdict = judged_to(&CHECK, &state, Some(Mode::Nftables));
            assert!(matches!(verdict, Verdict::Found(_)), "{verdict:?}");
        }
    }

    #[test]
    fn ok_where_it_is_there_and_unknown_without_a_list() {
        let mut state = node("nftables-leftovers-1.30");
        assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)));
        state.tools = None;
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }
}
