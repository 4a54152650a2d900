//! A kube-proxy from 1.29 on that starts in nftables mode removes the objects of the other modes
//! before its first sync.

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.nftables-gap",
    title: "the gap that kube-proxy makes as it goes to nftables mode",
    severity: Severity::Warn,
    when: "nftables mode is the target",
    applies: |facts| facts.to.is_some_and(|to| mode::of(to).cleans_up_at_start()),
    evaluate,
    reference: "https://kep.k8s.io/3866",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let mode = match facts.running.mode {
        Some(mode) if facts.to == Some(mode) => {
            return Verdict::Ok(format!("{mode} mode runs already"));
        }
        Some(mode) => mode,
        None => {
            let evidence = &facts.running.evidence;
            return Verdict::Unknown(format!("which mode runs is not clear: {evidence}"));
        }
    };
    let node = super::node_name(facts);
    let streams = if mode::of(mode).drains() {
        "; open connections end with the virtual servers"
    } else {
        "; open connections go on, for conntrack keeps their endpoint"
    };
    Verdict::Found(Found {
        evidence: vec![
            format!("kube-proxy serves in {mode} mode: {}", facts.running.evidence),
            "from 1.29 on it removes iptables and ipvs mode as it starts in nftables mode".into(),
        ],
        effect: format!(
            "from its start until its first sync, which needs the API server, new connections to \
             services fail on this node{streams}"
        ),
        remedy: vec![
            format!("kubectl drain {node} --ignore-daemonsets   # before the switch"),
            format!("kubectl uncordon {node}   # when /proxyMode says nftables"),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node};
    use crate::state::kube_proxy::Mode;

    #[test]
    fn all_three_outcomes() {
        let to = Some(Mode::Nftables);
        let mut state = node("docker-iptables-1.30");
        let Verdict::Found(found) = given(&state).to(to).verdict(&CHECK) else {
            panic!("not found")
        };
        assert!(found.effect.contains("conntrack keeps"), "{found:?}");
        let Verdict::Found(found) = given(&node("half-migrated-ipvs-1.20")).to(to).verdict(&CHECK)
        else {
            panic!("not found")
        };
        assert!(found.effect.contains("virtual servers"), "{found:?}");
        let there = given(&node("nftables-leftovers-1.30")).to(to).verdict(&CHECK);
        assert!(matches!(there, Verdict::Ok(_)));
        state.rulesets.clear();
        assert!(matches!(given(&state).to(to).verdict(&CHECK), Verdict::Unknown(_)));
    }
}
