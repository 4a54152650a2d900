//! kube-proxy up to 1.24 jumps to KUBE-MARK-DROP, whose rule only the kubelet (up to 1.26) writes.

use super::at_least;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::plan::change::{ChainText, Change, Direction, Edit, TableEdit, Target};
use crate::state::RulesetId;
use crate::state::ruleset::Ruleset;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.mark-drop",
    title: "the kubelet's KUBE-MARK-DROP, which kube-proxy up to 1.24 needs",
    severity: Severity::Warn,
    when: "kube-proxy up to 1.24, or of an unknown version",
    applies: |facts| at_least(facts, 25) != Some(true),
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/80462",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let (mut fine, mut evidence, mut remedy) = (Vec::new(), Vec::new(), Vec::new());
    let mut fix = Vec::new();
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
                fix.extend(drops_by_this_mark(ruleset).then(|| Change::Objects(written(*id))));
            }
            Some(chain) if !chain.rules.iter().any(|r| r.target.as_deref() == Some("MARK")) => {
                evidence.push(format!("{id} nat KUBE-MARK-DROP sets no mark"));
                remedy.push(mark);
            }
            Some(_) => fine.push(format!("{id} nat KUBE-MARK-DROP sets its mark")),
        }
    }
    if evidence.is_empty() {
        if fine.is_empty() {
            let why = "no nat table with kube-proxy's chains is in this state";
            return Verdict::Unknown(why.into());
        }
        return Verdict::Ok(fine.join("; "));
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
        fix,
    })
}

/// True if the kubelet's drop rule matches the kubelet's default mark, 0x8000.
fn drops_by_this_mark(ruleset: &Ruleset) -> bool {
    let chain = ruleset.table("filter").and_then(|t| t.chain("KUBE-FIREWALL"));
    chain.into_iter().flat_map(|c| &c.rules).any(|rule| {
        rule.target.as_deref() == Some("DROP")
            && ruleset.words(rule).value("--mark").is_some_and(|(_, m)| m == "0x8000/0x8000")
    })
}

/// The edit that adds KUBE-MARK-DROP with the text in which iptables-save shows the kubelet's own
/// rule, so that the kubelet recognises the rule and adds no second one.
fn written(id: RulesetId) -> Edit {
    let rule = "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000";
    let chain = ChainText { name: "KUBE-MARK-DROP".into(), rules: vec![rule.into()] };
    let target = Target::Table(TableEdit {
        ruleset: id,
        table: "nat".into(),
        rules: Vec::new(),
        chains: vec![chain],
    });
    Edit { direction: Direction::Add, target }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};

    #[test]
    fn all_three_outcomes() {
        for name in ["half-migrated-ipvs-1.20", "canal-stale-flannel-1.20"] {
            let verdict = verdict_of(&CHECK, &node(name));
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
        let state = Node::captured("docker-iptables-1.30").kube_proxy_version("v1.24.17").state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert_eq!(found.evidence[0], "iptables-nft nat has no chain KUBE-MARK-DROP");
        assert!(found.fix.is_empty(), "which mark the kubelet drops by is not known");
        let mut state = node("half-migrated-ipvs-1.20");
        state.rulesets.clear();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }

    #[test]
    fn a_missing_chain_is_written_as_the_kubelet_would() {
        let save = "iptables-nft.save";
        let rule = "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000";
        let state = Node::captured("canal-stale-flannel-1.20")
            .replace(save, ":KUBE-MARK-DROP - [0:0]\n", "")
            .replace(save, &format!("[0:0] {rule}\n"), "")
            .replace(save, "IP\" -j KUBE-MARK-DROP", "IP\" -j RETURN")
            .state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        let [Change::Objects(Edit { direction: Direction::Add, target: Target::Table(edit) })] =
            &found.fix[..]
        else {
            panic!("{:?}", found.fix);
        };
        assert_eq!((edit.table.as_str(), edit.rules.len()), ("nat", 0));
        assert_eq!(
            (edit.chains[0].name.as_str(), &*edit.chains[0].rules[0]),
            ("KUBE-MARK-DROP", rule)
        );
    }

    #[test]
    fn it_does_not_apply_to_later_versions() {
        let state = node("docker-iptables-1.30");
        assert!(!given(&state).facts(|facts| (CHECK.applies)(facts)));
    }
}
