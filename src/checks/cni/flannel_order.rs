//! flannel's rules out of order. flannel's RETURN rules are exceptions to its MASQUERADE rules, so
//! the RETURN rules must come first.

use ipnet::IpNet;

use super::flannel_rules::concerns_flannel;
use super::program;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::RulesetId;
use crate::state::cni::SubnetEnv;
use crate::state::ruleset::{Chain, Rule, Ruleset};

pub(super) const CHECK: Check = Check {
    id: "cni.flannel-order",
    title: "the order of flannel's masquerade rules",
    severity: Severity::Warn,
    when: "flannel runs, or something of it is there",
    applies: concerns_flannel,
    evaluate,
    reference: "https://github.com/flannel-io/flannel/issues/797",
};

/// The chains that hold flannel's masquerade rules; FLANNEL-POSTRTG exists from flannel 0.20 on.
const CHAINS: [&str; 2] = ["POSTROUTING", "FLANNEL-POSTRTG"];

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let state = facts.now;
    if state.rulesets.is_empty() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let Some(lease) = &state.flannel else {
        return Verdict::Unknown("flannel's lease (/run/flannel/subnet.env) is not known".into());
    };
    let mut found = Found {
        effect:
            "packets between pods, or to this node's pods, get the node's address: pods do not \
                 see who calls them, and network policies by source fail"
                .into(),
        ..Found::default()
    };
    let mut masquerades = 0;
    for (id, ruleset) in &state.rulesets {
        let Some(nat) = ruleset.table("nat") else { continue };
        for chain in CHAINS.iter().filter_map(|name| nat.chain(name)) {
            masquerades += evaluate_chain(*id, ruleset, chain, lease, &mut found);
        }
    }
    match (found.evidence.is_empty(), masquerades) {
        (true, 0) => Verdict::Ok("flannel masquerades nothing here".into()),
        (true, n) => Verdict::Ok(format!("{n} masquerade rules, each behind its exceptions")),
        (false, _) => Verdict::Found(found),
    }
}

/// Checks the order of flannel's rules in one chain, and returns how many masquerade rules of
/// flannel the chain has.
fn evaluate_chain(
    id: RulesetId,
    ruleset: &Ruleset,
    chain: &Chain,
    lease: &SubnetEnv,
    found: &mut Found,
) -> usize {
    let shapes: Vec<(&Rule, FlannelRule)> = chain
        .rules
        .iter()
        .filter_map(|rule| Some((rule, FlannelRule::of(ruleset, rule, lease)?)))
        .collect();
    let masquerades = shapes.iter().filter(|(_, s)| s.masquerades);
    for (rule, shape) in masquerades.clone() {
        let at = |r: &Rule| r.line;
        let late = shapes
            .iter()
            .find(|(r, s)| !s.masquerades && s.from_pods == shape.from_pods && at(r) > at(rule));
        let Some((late, _)) = late else { continue };
        let text = ruleset.rule_text(rule);
        found.evidence.push(format!(
            "{}:{}: `{}` stands behind `{text}` (line {})",
            id.file(),
            late.line,
            ruleset.rule_text(late),
            rule.line
        ));
        found.remedy.push(format!(
            "{} -t nat -D {}   # flannel writes its rules anew, in order, within 5 s",
            program(id),
            text.trim_start_matches("-A ")
        ));
    }
    masquerades.count()
}

/// A rule of flannel. A RETURN rule is an exception to the MASQUERADE rules for the same sources.
struct FlannelRule {
    /// True for packets from pods, false for packets from other sources.
    from_pods: bool,
    masquerades: bool,
}

impl FlannelRule {
    fn of(ruleset: &Ruleset, rule: &Rule, lease: &SubnetEnv) -> Option<FlannelRule> {
        let masquerades = match rule.target.as_deref()? {
            "MASQUERADE" => true,
            "RETURN" => false,
            _ => return None,
        };
        let words = ruleset.words(rule);
        let net = |option: &str| {
            let (negated, value) = words.value(option)?;
            Some((negated, value.parse::<IpNet>().ok()?.trunc()))
        };
        let ours = |n: &IpNet| lease.networks.contains(n) || lease.subnets.contains(n);
        let (from_outside, source) = net("-s")?;
        let (but, destination) = net("-d")?;
        // `-s N ! -d 224.0.0.0/4` matches packets from pods to the outside. All other rules of
        // flannel name two of flannel's networks.
        let outgoing = but && destination.addr().is_multicast();
        (ours(&source) && (outgoing || !but && ours(&destination)))
            .then_some(FlannelRule { from_pods: !from_outside, masquerades })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    const CANAL: &str = "canal-stale-flannel-1.20";
    const SAVE: &str = "iptables-nft.save";
    const LEASE: &str = "[0:0] -A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.75.0/24 -j RETURN\n";
    const INTO: &str =
        "[0:0] -A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.64.0/20 -j MASQUERADE\n";
    const INSIDE: &str = "[0:0] -A POSTROUTING -s 192.168.64.0/20 -d 192.168.64.0/20 -j RETURN\n";
    const OUT: &str = "[0:0] -A POSTROUTING -s 192.168.64.0/20 ! -d 224.0.0.0/4 -j MASQUERADE\n";

    #[test]
    fn an_exception_behind_its_rule_is_found() {
        for (exception, rule) in [(LEASE, INTO), (INSIDE, OUT)] {
            let state = Node::captured(CANAL)
                .replace(SAVE, exception, "")
                .replace(SAVE, rule, &format!("{rule}{exception}"))
                .state();
            let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("{exception}") };
            assert_eq!(found.evidence.len(), 1, "{:?}", found.evidence);
            let body = rule.trim_start_matches("[0:0] -A ").trim_end();
            assert!(found.remedy[0].starts_with(&format!("iptables-nft -t nat -D {body} ")));
        }
    }

    #[test]
    fn ok_in_order_and_unknown_without_the_lease_or_the_rules() {
        let Verdict::Ok(shown) = verdict_of(&CHECK, &node(CANAL)) else { panic!("found") };
        assert!(shown.starts_with("2 masquerade rules"), "{shown}");
        let state = Node::captured(CANAL).remove("files/run/flannel/subnet.env").state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        let state = Node::captured(CANAL).remove(SAVE).state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
