//! A masquerade rule that no packet reaches, because an earlier rule takes all packets.

use super::masquerade::program;
use super::native::NativeRules;
use super::networks::{
    BridgeNetwork, WHEN, applies, bridges, docker_liveness, ends, missing, postrouting, translates,
    v4,
};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::RulesetId;
use crate::state::ruleset::Ruleset;

pub(super) const CHECK: Check = Check {
    id: "docker.shadowed",
    title: "rules that stand before a docker bridge's masquerade rule",
    severity: Severity::Warn,
    when: WHEN,
    applies,
    evaluate,
    reference: "https://docs.docker.com/engine/network/packet-filtering-firewalls/",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let state = facts.now;
    if let Some(missing) = missing(state, NativeRules::of(facts).is_some()) {
        return Verdict::Unknown(missing.into());
    }
    if docker_liveness(facts).is_gone() {
        return Verdict::Ok("docker does not run".into());
    }
    let mut found = Found {
        effect: "packets of these containers leave with a container's address, so that no answer \
                 comes back, although docker's rule is there"
            .into(),
        ..Found::default()
    };
    for bridge in bridges(state) {
        for (id, ruleset) in v4(state) {
            shadow(id, ruleset, &bridge, &mut found);
        }
    }
    if found.evidence.is_empty() {
        return Verdict::Ok("nothing before docker's rules takes their packets".into());
    }
    Verdict::Found(found)
}

/// Adds to `found` the first rule that takes the bridge's packets before the bridge's masquerade
/// rule does. Only a person may move rules, because whoever wrote that first rule may intend this
/// order.
fn shadow(id: RulesetId, ruleset: &Ruleset, bridge: &BridgeNetwork, found: &mut Found) {
    let Some((table, chain)) = postrouting(ruleset) else { return };
    let own = chain.rules.iter().position(|rule| translates(ruleset, rule, bridge));
    let Some(own) = own else { return };
    let before = chain.rules[..own].iter();
    let Some(at) = before.clone().position(|rule| ends(ruleset, table, rule, bridge)) else {
        return;
    };
    let first = &chain.rules[at];
    let rule = ruleset.rule_text(&chain.rules[own]);
    found.evidence.push(format!(
        "{}:{}: `{}` stands before `{rule}` (line {})",
        id.file(),
        first.line,
        ruleset.rule_text(first),
        chain.rules[own].line
    ));
    let program = program(id);
    let body = rule.trim_start_matches("-A POSTROUTING ");
    found.remedy.push(format!("{program} -t nat -I POSTROUTING {} {body}", at + 1));
    found.remedy.push(format!("{program} -t nat -D POSTROUTING {}", own + 2));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    const NODE: &str = "docker-iptables-1.30";
    const SAVE: &str = "iptables-nft.save";
    const DOCKER0: &str = "[0:0] -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n";

    fn with_before(rule: &str) -> Verdict {
        let state = Node::captured(NODE)
            .replace(SAVE, DOCKER0, &format!("[0:0] -A POSTROUTING {rule}\n{DOCKER0}"))
            .state();
        verdict_of(&CHECK, &state)
    }

    #[test]
    fn found_when_an_earlier_rule_takes_its_packets() {
        for rule in [
            "-s 172.16.0.0/12 -j RETURN",
            "-s 172.16.0.0/12 ! -d 10.0.0.0/8 -j ACCEPT",
            "-s 172.17.0.0/16 -o nl -j ACCEPT",
            "! -s 10.0.0.0/8 -j ACCEPT",
            "-s 172.17.0.0/16 -p tcp -m tcp -j RETURN",
        ] {
            let Verdict::Found(found) = with_before(rule) else { panic!("{rule}") };
            assert!(found.evidence[0].contains(rule), "{:?}", found.evidence);
            assert_eq!(
                found.remedy[..2],
                [
                    "iptables-nft -t nat -I POSTROUTING 2 -s 172.17.0.0/16 ! -o docker0 \
                     -j MASQUERADE",
                    "iptables-nft -t nat -D POSTROUTING 4"
                ]
            );
        }
    }

    #[test]
    fn ok_when_it_takes_a_part_or_nothing() {
        for rule in [
            "-s 172.16.0.0/12 -d 10.0.0.0/8 -j RETURN",
            "-s 172.17.0.0/16 -o docker0 -j ACCEPT",
            "-s 192.168.0.0/16 -j RETURN",
            "! -s 172.16.0.0/12 -j ACCEPT",
            "-s 172.17.0.5/32 -j ACCEPT",
            "-m mark --mark 0x4000/0x4000 -j ACCEPT",
            "-s 172.17.0.0/16 -j MASQUERADE",
        ] {
            let verdict = with_before(rule);
            assert!(matches!(verdict, Verdict::Ok(_)), "{rule}: {verdict:?}");
        }
        for name in ["canal-stale-flannel-1.20", "docker-legacy-iptables-1.20-no-conntrack"] {
            assert!(matches!(verdict_of(&CHECK, &node(name)), Verdict::Ok(_)), "{name}");
        }
    }

    #[test]
    fn found_behind_a_jump_that_accepts() {
        let with = format!("[0:0] -A POSTROUTING -j MINE\n{DOCKER0}[0:0] -A MINE -j ACCEPT\n");
        let state = Node::captured(NODE)
            .replace(SAVE, "*nat\n", "*nat\n:MINE - [0:0]\n")
            .replace(SAVE, DOCKER0, &with)
            .state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[0].contains("-j MINE"), "{:?}", found.evidence);
    }

    #[test]
    fn unknown_without_links_or_rules() {
        let state = Node::captured(NODE).remove("addr.json").state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        let state = Node::captured(NODE).remove(SAVE).state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
