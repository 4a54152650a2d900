//! nftables mode requires kernel 5.13.

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// The oldest kernel that nftables mode supports (kubernetes PR 124152).
const NEEDED: Version = Version { major: 5, minor: 13, patch: 0 };

pub(super) const CHECK: Check = Check {
    id: "kernel.nftables",
    title: "a kernel that nftables mode can use",
    severity: Severity::Block,
    when: "nftables mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Nftables),
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/122743",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(tools) = &facts.now.tools else {
        return Verdict::Unknown("the kernel's version is not in this state".into());
    };
    match tools.kernel_version() {
        None => Verdict::Unknown(format!("`{}` has no version in it", tools.kernel)),
        Some(version) if version >= NEEDED => Verdict::Ok(tools.kernel.clone()),
        Some(_) => Verdict::Found(Found {
            evidence: vec![format!("kernel {}: older than 5.13", tools.kernel)],
            effect:
                "kube-proxy refuses to start in nftables mode, but 1.31 and 1.32 may start and \
                     then fail to write their rules: no service is translated"
                    .into(),
            remedy: vec!["boot a kernel of 5.13 or later, or stay in iptables mode".into()],
            fix: Vec::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{node, verdict_of};

    #[test]
    fn found_ok_and_unknown() {
        let mut state = node("nftables-leftovers-1.30");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
        state.tools.as_mut().unwrap().kernel = "5.10.0-28-amd64".into();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Found(_)));
        state.tools.as_mut().unwrap().kernel = "custom".into();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        state.tools = None;
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
