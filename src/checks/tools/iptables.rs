//! iptables, which kube-proxy runs in every mode but nftables.

use super::super::{Check, Facts, Found, Severity, Verdict};
use super::seen;
use crate::kube_proxy::mode;
use crate::state::kube_proxy::Mode;
use crate::state::tools::{Tool, Version};

/// What iptables-wrappers, and so the official images, ask for.
pub(super) const NEEDED: Version = Version { major: 1, minor: 8, patch: 4 };

pub(in crate::checks) const CHECK: Check = Check {
    id: "tools.iptables",
    title: "the iptables binary that kube-proxy runs",
    severity: Severity::Block,
    when: "any mode but nftables runs, or is the target",
    applies,
    judge,
    reference: "https://github.com/kubernetes-sigs/iptables-wrappers",
};

pub(super) fn applies(facts: &Facts<'_>) -> bool {
    let uses = |mode: Mode| mode::of(mode).uses_iptables();
    facts.running.mode.is_none_or(uses) || facts.to.is_some_and(uses)
}

/// True for one of nf_tables: it says so, or is of a version whose packages say nothing of it and
/// may be.
pub(super) fn is_nf_tables(tool: &Tool) -> bool {
    let first = Version { major: 1, minor: 8, patch: 0 };
    !tool.text.contains("(legacy)") && tool.version().is_some_and(|v| v >= first)
}

const MISSING: &str = "kube-proxy cannot write a rule: no service is translated";
const OLD: &str = "iptables of nf_tables before 1.8.4 loses and doubles rules: services fail one \
                   by one, and no save of it can be trusted";

fn judge(facts: &Facts<'_>) -> Verdict {
    let seen = match seen(facts, "iptables") {
        Err(why) => return Verdict::Unknown(why),
        Ok(seen) => seen,
    };
    if let Some(found) = seen.missing("iptables", MISSING) {
        return Verdict::Found(found);
    }
    match seen.tool.version() {
        None => {
            Verdict::Unknown(format!("{} is there, but its version is not known", seen.shown()))
        }
        Some(version) if version < NEEDED && is_nf_tables(seen.tool) => Verdict::Found(Found {
            evidence: vec![format!("{}: older than {NEEDED}", seen.shown())],
            effect: OLD.into(),
            remedy: vec![
                seen.install("iptables=1.8.4 or later"),
                "update-alternatives --set iptables /usr/sbin/iptables-legacy   # until then, \
                 before kubelet and kube-proxy write their first rule"
                    .into(),
            ],
            fix: Vec::new(),
        }),
        Some(_) => Verdict::Ok(seen.shown()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, judged_to, node, with_facts};
    use super::*;

    fn with(text: &str) -> crate::state::NodeState {
        let mut state = node("docker-iptables-1.30");
        let tool = Tool::found("iptables", "/usr/sbin/iptables", text);
        state.tools.as_mut().unwrap().tools = vec![tool];
        state
    }

    #[test]
    fn found_where_it_is_missing_or_of_an_early_nf_tables() {
        let Verdict::Found(found) = judged(&CHECK, &with("iptables v1.8.2 (nf_tables)")) else {
            panic!("not found");
        };
        assert!(found.evidence[0].contains("older than 1.8.4"), "{:?}", found.evidence);
        let mut state = with("");
        state.tools.as_mut().unwrap().tools = vec![Tool::missing("iptables")];
        assert!(matches!(judged(&CHECK, &state), Verdict::Found(_)));
    }

    #[test]
    fn ok_for_new_ones_and_old_legacy_and_unknown_without_a_version() {
        for text in ["iptables v1.8.9 (nf_tables)", "iptables v1.8.3 (legacy)", "iptables v1.6.1"] {
            assert!(matches!(judged(&CHECK, &with(text)), Verdict::Ok(_)), "{text}");
        }
        assert!(matches!(judged(&CHECK, &with("")), Verdict::Unknown(_)));
    }

    #[test]
    fn nftables_mode_needs_none_unless_it_is_left() {
        let state = node("nftables-leftovers-1.30");
        with_facts(&state, None, |facts| assert!(!applies(facts)));
        assert!(matches!(judged_to(&CHECK, &state, Some(Mode::Ipvs)), Verdict::Ok(_)));
    }
}
