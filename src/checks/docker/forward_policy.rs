//! The policy DROP that docker sets on chain FORWARD. The policy remains after docker is removed.

use super::masquerade::program;
use super::networks::{docker_liveness, v4};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::owners::liveness::Liveness;

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
    if v4(facts.now).next().is_none() {
        return Verdict::Unknown("the IPv4 rules are not in this state".into());
    }
    let mut dropping = Vec::new();
    for (id, ruleset) in v4(facts.now) {
        let chain = ruleset.table("filter").and_then(|t| t.chain("FORWARD"));
        if let Some(chain) = chain.filter(|c| c.policy.as_deref() == Some("DROP")) {
            let counted = chain.counters.unwrap_or_default();
            dropping.push((id, counted, chain.rules.is_empty()));
        }
    }
    if dropping.is_empty() {
        return Verdict::Ok("ACCEPT".into());
    }
    match docker_liveness(facts) {
        Liveness::Alive(evidence) => Verdict::Ok(format!("DROP, as docker sets it: {evidence}")),
        Liveness::Unknown(missing) => {
            Verdict::Unknown(format!("the policy is DROP; whether docker runs: {missing}"))
        }
        Liveness::SeemsGone(_) | Liveness::Gone(_) => Verdict::Found(Found {
            evidence: dropping
                .iter()
                .map(|(id, counted, bare)| {
                    let rules = if *bare { ", and there is no rule" } else { "" };
                    let packets = counted.packets;
                    format!(
                        "{}: `:FORWARD DROP [{packets}:{}]`{rules}, and docker, which sets it, \
                         does not run",
                        id.file(),
                        counted.bytes
                    )
                })
                .collect(),
            effect: "a packet through this node that no rule accepts is dropped: pods whose \
                     network has no rule of its own in FORWARD reach nothing"
                .into(),
            remedy: dropping
                .iter()
                .map(|(id, ..)| {
                    format!("{} -P FORWARD ACCEPT   # unless a firewall wants DROP", program(*id))
                })
                .collect(),
            fix: Vec::new(),
        }),
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
