//! An exception for INVALID packets that has no effect, because it comes after the rule that drops
//! these packets.

use super::rules::{first_gate, matches_invalid, program};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::NodeState;
use crate::state::ruleset::{Chain, Rule, Ruleset};

pub(super) const CHECK: Check = Check {
    id: "invalid.exception-order",
    title: "exceptions for INVALID packets, and what stands before them in FORWARD",
    severity: Severity::Warn,
    when: "a rule of filter FORWARD accepts INVALID packets, or the rules are not known",
    applies: |facts| facts.now.rulesets.is_empty() || exceptions(facts.now) > 0,
    evaluate,
    reference: "https://docs.tigera.io/calico/latest/reference/felix/configuration",
};

fn forward(ruleset: &Ruleset) -> Option<&Chain> {
    ruleset.table("filter")?.chain("FORWARD")
}

fn accepts(ruleset: &Ruleset, rule: &Rule) -> bool {
    rule.target.as_deref() == Some("ACCEPT") && matches_invalid(ruleset, rule)
}

fn exceptions(state: &NodeState) -> usize {
    let rules = |r: &Ruleset| {
        forward(r).map_or(0, |c| c.rules.iter().filter(|rule| accepts(r, rule)).count())
    };
    state.rulesets.values().map(rules).sum()
}

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let mut found = Found {
        effect: "the packets that it is to let through are dropped before they come to it".into(),
        ..Found::default()
    };
    for (id, ruleset) in &facts.now.rulesets {
        let Some(chain) = forward(ruleset) else { continue };
        let Some((gate, rule)) = first_gate(ruleset) else { continue };
        let late = chain.rules.iter().enumerate().skip(gate);
        for (position, exception) in late.filter(|(_, r)| accepts(ruleset, r)) {
            let text = ruleset.rule_text(exception);
            let before = ruleset.rule_text(rule);
            found.evidence.push(format!(
                "{}:{}: `{text}` stands behind `{before}` (line {})",
                id.file(),
                exception.line,
                rule.line
            ));
            let program = program(*id);
            let body = text.trim_start_matches("-A FORWARD ");
            found.remedy.push(format!("{program} -D FORWARD {}", position + 1));
            found.remedy.push(format!("{program} -I FORWARD {} {body}", gate + 1));
            if rule.target.as_deref() == Some("cali-FORWARD") {
                found.remedy.push(
                    "it does not stay there: felix inserts cali-FORWARD at the top again; use \
                     FELIX_DISABLECONNTRACKINVALIDCHECK=true"
                        .into(),
                );
            }
        }
    }
    if found.evidence.is_empty() {
        return Verdict::Ok(format!("{} before all that drops them", exceptions(facts.now)));
    }
    Verdict::Found(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};

    const CANAL: &str = "canal-stale-flannel-1.20";
    const SAVE: &str = "iptables-nft.save";
    const RULE: &str = "[0:0] -A FORWARD -s 10.9.0.0/24 -m conntrack --ctstate INVALID -j ACCEPT\n";

    #[test]
    fn found_behind_calicos_jump_and_ok_before_it() {
        let calico = "[1348:53920] -A FORWARD ";
        let kube = "[773:30920] -A FORWARD ";
        let state = Node::captured(CANAL).replace(SAVE, kube, &format!("{RULE}{kube}")).state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[0].contains("-j cali-FORWARD"), "{:?}", found.evidence);
        assert_eq!(found.remedy[0], "iptables-nft -D FORWARD 2");
        assert!(found.remedy[1].starts_with("iptables-nft -I FORWARD 1 -s 10.9.0.0/24 "));
        assert!(found.remedy[2].contains("FELIX_DISABLECONNTRACKINVALIDCHECK"));
        let state = Node::captured(CANAL).replace(SAVE, calico, &format!("{RULE}{calico}")).state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
    }

    #[test]
    fn without_an_exception_it_is_ok_and_without_rules_unknown() {
        given(&node(CANAL)).facts(|facts| assert!(!(CHECK.applies)(facts)));
        let state = Node::captured(CANAL).remove(SAVE).state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
