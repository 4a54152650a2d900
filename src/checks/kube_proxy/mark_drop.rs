//! kube-proxy up to 1.24 jumps to a chain whose rule only the kubelet up to 1.26 writes.

use super::at_least;
use crate::checks::{Check, Facts, Found, Severity, Verdict};

pub(crate) const CHECK: Check = Check {
    id: "kube-proxy.mark-drop",
    title: "the kubelet's KUBE-MARK-DROP, which kube-proxy up to 1.24 needs",
    severity: Severity::Warn,
    when: "kube-proxy up to 1.24, or of an unknown version",
    applies: |facts| at_least(facts, 25) != Some(true),
    judge,
    reference: "https://github.com/kubernetes/kubernetes/issues/80462",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let (mut fine, mut evidence, mut remedy) = (Vec::new(), Vec::new(), Vec::new());
    for (id, ruleset) in &facts.now.rulesets {
        let Some(nat) = ruleset.table("nat").filter(|t| t.chain("KUBE-SERVICES").is_some()) else {
            continue;
        };
        let tool = format!("{}-{} -t nat", id.family.tool(), id.backend);
        let mark = format!("{tool} -A KUBE-MARK-DROP -j MARK --or-mark 0x8000");
        match nat.chain("KUBE-MARK-DROP") {
            None => {
                evidence.push(format!("{id} nat has no chain KUBE-MARK-DROP"));
                remedy.push(format!("{tool} -N KUBE-MARK-DROP"));
                remedy.push(mark);
            }
            Some(chain) if !chain.rules.iter().any(|r| r.target.as_deref() == Some("MARK")) => {
                evidence.push(format!("{id} nat KUBE-MARK-DROP sets no mark"));
                remedy.push(mark);
            }
            Some(_) => fine.push(format!("{id} nat KUBE-MARK-DROP sets its mark")),
        }
    }
    if evidence.is_empty() {
        return match fine.is_empty() {
            true => {
                Verdict::Unknown("no nat table with kube-proxy's chains is in this state".into())
            }
            false => Verdict::Ok(fine.join("; ")),
        };
    }
    if at_least(facts, 25).is_none() {
        let evidence = evidence.join("; ");
        return Verdict::Unknown(format!(
            "{evidence}; kube-proxy up to 1.24 needs it, but which version runs is not known"
        ));
    }
    remedy.insert(
        0,
        "systemctl restart kubelet   # up to 1.26 it writes the chain as it starts".into(),
    );
    Verdict::Found(Found {
        evidence,
        effect: "without the chain each sync of kube-proxy fails whole; without its mark, traffic \
                 that a load balancer's source ranges forbid gets through"
            .into(),
        remedy,
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::versioned;
    use super::*;
    use crate::checks::testing::{judged, node, with_facts};

    #[test]
    fn all_three_outcomes() {
        for name in ["half-migrated-ipvs-1.20", "canal-stale-flannel-1.20"] {
            let verdict = judged(&CHECK, &node(name));
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
        let state = versioned("docker-iptables-1.30", "v1.24.17");
        let Verdict::Found(found) = judged(&CHECK, &state) else { panic!("not found") };
        assert_eq!(found.evidence[0], "iptables-nft nat has no chain KUBE-MARK-DROP");
        let mut state = node("half-migrated-ipvs-1.20");
        state.rulesets.clear();
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }

    #[test]
    fn it_does_not_apply_to_later_versions() {
        let state = node("docker-iptables-1.30");
        assert!(!with_facts(&state, None, |facts| (CHECK.applies)(facts)));
    }
}
