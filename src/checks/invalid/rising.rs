//! INVALID packets that were dropped between two captures.

use super::rules::{by_owner, dropping};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};

pub(super) const CHECK: Check = Check {
    id: "invalid.rising",
    title: "INVALID packets dropped between two looks",
    severity: Severity::Warn,
    when: "always; with --watch it can be said",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/117924",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.earlier.is_none() {
        return Verdict::Unknown("there is no earlier look (`check --watch 10`)".into());
    }
    if facts.now.rulesets.is_empty() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let mut rules = dropping(facts);
    if !rules.is_empty() && rules.iter().all(|r| r.packets.is_none()) {
        return Verdict::Unknown("the rules were saved without counters (iptables-save -c)".into());
    }
    rules.retain(|r| r.rise.unwrap_or(0) > 0);
    rules.sort_by_key(|r| std::cmp::Reverse(r.rise));
    let seconds = facts.interval.map(|t| t.as_secs_f64()).filter(|s| *s > 0.0);
    let during = seconds.map_or_else(String::new, |s| format!(" in {s:.0} s"));
    if rules.is_empty() {
        return Verdict::Ok(format!("none was dropped{during}"));
    }
    let rate = |n: u64| match seconds {
        // Packet counts are far below 2^52, so the cast to f64 loses nothing.
        #[allow(clippy::cast_precision_loss)]
        Some(s) => format!("{n} packets{during}, {:.1} a second", n as f64 / s),
        None => format!("{n} packets"),
    };
    let mut evidence: Vec<String> = by_owner(&rules, |r| r.rise)
        .into_iter()
        .map(|(owner, n, _)| format!("{owner}: {}", rate(n)))
        .collect();
    evidence.extend(
        rules.iter().take(10).map(|r| format!("{}, {}", rate(r.rise.unwrap_or(0)), r.shown())),
    );
    Verdict::Found(Found {
        evidence,
        effect: "connections lose packets right now: unexplained latency and broken streams".into(),
        remedy: vec!["as invalid.drops says, for each owner".into()],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};
    use crate::state::NodeState;

    const CANAL: &str = "canal-stale-flannel-1.20";

    fn after(earlier: &NodeState) -> Verdict {
        given(&node(CANAL)).earlier(earlier).after(5).verdict(&CHECK)
    }

    #[test]
    fn found_with_its_rate() {
        let earlier = Node::captured(CANAL)
            .replace("iptables-nft.save", "[385:15400] -A cali-tw", "[375:15400] -A cali-tw")
            .state();
        let Verdict::Found(found) = after(&earlier) else { panic!("not found") };
        assert_eq!(found.evidence[0], "calico: 10 packets in 5 s, 2.0 a second");
        assert!(found.evidence[1].contains("-A cali-tw-"), "{:?}", found.evidence);
        assert_eq!(found.evidence.len(), 2);
    }

    #[test]
    fn a_rule_that_was_written_anew_counts_from_zero() {
        let earlier = Node::captured(CANAL)
            .replace("iptables-nft.save", "[773:30920] -A KUBE-F", "[9000:1] -A KUBE-F")
            .state();
        let Verdict::Found(found) = after(&earlier) else { panic!("not found") };
        assert!(found.evidence[0].starts_with("kube-proxy: 773 packets"), "{:?}", found.evidence);
    }

    #[test]
    fn ok_when_nothing_rises_and_unknown_without_an_earlier_capture() {
        assert_eq!(after(&node(CANAL)), Verdict::Ok("none was dropped in 5 s".into()));
        assert!(matches!(verdict_of(&CHECK, &node(CANAL)), Verdict::Unknown(_)));
    }
}
