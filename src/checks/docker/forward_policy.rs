//! The policy DROP that docker sets on chain FORWARD. The policy remains after docker is removed.

use super::masquerade::program;
use super::native::NativeRules;
use super::networks::{docker_liveness, no_rules, v4};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::owners::liveness::Liveness;
use crate::state::RulesetId;
use crate::state::ruleset::Chain;

pub(super) const CHECK: Check = Check {
    id: "docker.forward-policy",
    title: "the policy of FORWARD",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://docs.docker.com/engine/network/packet-filtering-firewalls/",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if no_rules(facts.now) {
        return Verdict::Unknown("the IPv4 rules are not in this state".into());
    }
    let mut dropping = Vec::new();
    for (id, ruleset) in v4(facts.now) {
        let chain = ruleset.table("filter").and_then(|t| t.chain("FORWARD"));
        if let Some(chain) = chain.filter(|c| c.policy.as_deref() == Some("DROP")) {
            dropping.push((id, chain));
        }
    }
    if dropping.is_empty() {
        return Verdict::Ok("ACCEPT".into());
    }
    match docker_liveness(facts) {
        Liveness::Alive(evidence) => match NativeRules::of(facts) {
            // What accepts its containers' packets stands in a table of its own, and an accept there
            // does not end the way of a packet through this chain.
            Some(native) => Verdict::Found(Found {
                effect: "docker by nftables neither sets this policy nor accepts anything here: \
                         packets of its containers and of pods that no rule here accepts are dropped"
                    .into(),
                ..found(
                    &dropping,
                    &format!(
                        "docker, which sets it with rules of iptables, writes by nftables ({})",
                        native.evidence()
                    ),
                )
            }),
            None => Verdict::Ok(format!("DROP, as docker sets it: {evidence}")),
        },
        Liveness::Unknown(missing) => {
            Verdict::Unknown(format!("the policy is DROP; whether docker runs: {missing}"))
        }
        Liveness::SeemsGone(_) | Liveness::Gone(_) => {
            Verdict::Found(found(&dropping, "docker, which sets it, does not run"))
        }
    }
}

/// The finding on chains whose policy nobody sets any more.
fn found(dropping: &[(RulesetId, &Chain)], why: &str) -> Found {
    let evidence = |(id, chain): &(RulesetId, &Chain)| {
        let rules = if chain.rules.is_empty() { ", and there is no rule" } else { "" };
        let counted = chain.counters.unwrap_or_default();
        let (packets, bytes) = (counted.packets, counted.bytes);
        format!("{}: `:FORWARD DROP [{packets}:{bytes}]`{rules}, and {why}", id.file())
    };
    let remedy = |(id, _): &(RulesetId, &Chain)| {
        format!("{} -P FORWARD ACCEPT   # unless a firewall wants DROP", program(*id))
    };
    Found {
        evidence: dropping.iter().map(evidence).collect(),
        effect:
            "a packet through this node that no rule accepts is dropped: pods whose network has \
                 no rule of its own in FORWARD reach nothing"
                .into(),
        remedy: dropping.iter().map(remedy).collect(),
        fix: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    const NODE: &str = "docker-legacy-iptables-1.20-no-conntrack";

    #[test]
    fn docker_sets_it_and_its_remains_are_found() {
        let Verdict::Ok(shown) = verdict_of(&CHECK, &node(NODE)) else { panic!("docker runs") };
        assert!(shown.contains("dockerd"), "{shown}");
        let gone = Node::captured(NODE).replace("processes.json", "dockerd", "gone").state();
        let Verdict::Found(found) = verdict_of(&CHECK, &gone) else { panic!("not found") };
        assert!(found.evidence[0].contains(":FORWARD DROP [0:0]"), "{:?}", found.evidence);
        assert!(found.remedy[0].starts_with("iptables-legacy -P FORWARD ACCEPT"));
        assert_eq!(verdict_of(&CHECK, &node("docker-iptables-1.30")), Verdict::Ok("ACCEPT".into()));
    }

    #[test]
    fn unknown_without_processes_or_rules() {
        let state = Node::captured(NODE).remove("processes.json").state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        let state = Node::captured(NODE).remove("iptables-legacy.save").state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
