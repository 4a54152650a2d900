//! The masquerade rule of each docker bridge. After a flush of the rules, docker writes this rule
//! only when docker restarts.

use super::native::NativeRules;
use super::networks::{
    BridgeNetwork, WHEN, applies, bridges, docker_liveness, ends, is_internal, missing,
    no_iptables, no_masquerade, postrouting, translates, v4,
};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::plan::change::{Change, Direction, Edit, RulePos, TableEdit, Target};
use crate::state::ruleset::{Chain, Ruleset, Table};
use crate::state::{Backend, RulesetId};

pub(super) const CHECK: Check = Check {
    id: "docker.masquerade",
    title: "the masquerade rule of each docker bridge",
    severity: Severity::Warn,
    when: WHEN,
    applies,
    evaluate,
    reference: "https://github.com/moby/moby/issues/12294",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let state = facts.now;
    let native = NativeRules::of(facts);
    if let Some(missing) = missing(state, native.is_some()) {
        return Verdict::Unknown(missing.into());
    }
    if let Some(configured) = no_iptables(state) {
        return Verdict::Ok(format!("docker writes no rules: {configured}"));
    }
    let liveness = docker_liveness(facts);
    if liveness.is_gone() {
        return Verdict::Ok(format!("docker does not run: {}", liveness.evidence()));
    }
    let not_wanted = no_masquerade(state);
    let mut present = 0;
    let mut exempt = Vec::new();
    let mut unmasqueraded = Vec::new();
    for bridge in bridges(state) {
        let exists = |(_, r): (RulesetId, &Ruleset)| {
            let rules = postrouting(r).map_or(&[][..], |(_, c)| &c.rules);
            rules.iter().any(|rule| translates(r, rule, &bridge))
        };
        let translated = native.as_ref().is_some_and(|native| native.translates(&bridge));
        if translated || v4(state).any(exists) {
            present += 1;
        } else if bridge.name == "docker0" && not_wanted.is_some() {
            exempt.extend(not_wanted.clone());
        } else if is_internal(state, &bridge)
            || native.as_ref().is_some_and(|native| native.is_internal(&bridge))
        {
            exempt.push(format!("{} is an internal network", bridge.name));
        } else {
            unmasqueraded.push(bridge);
        }
    }
    if unmasqueraded.is_empty() {
        exempt.insert(0, format!("{present} of {present} are there"));
        return Verdict::Ok(exempt.join("; "));
    }
    Verdict::Found(match native {
        Some(native) => not_in_its_tables(&native, &unmasqueraded),
        None => found(facts, &unmasqueraded),
    })
}

/// The finding where docker writes by nftables. Its tables are its own: it makes them as it starts.
fn not_in_its_tables(native: &NativeRules<'_>, unmasqueraded: &[BridgeNetwork]) -> Found {
    let evidence = |b: &BridgeNetwork| {
        format!(
            "{} has {}, but no rule of docker's tables of nftables masquerades it ({})",
            b.name,
            b.network,
            native.evidence()
        )
    };
    Found {
        evidence: unmasqueraded.iter().map(evidence).collect(),
        effect: effect(unmasqueraded),
        remedy: vec!["systemctl restart docker   # it writes its tables anew as it starts".into()],
        fix: Vec::new(),
    }
}

fn effect(unmasqueraded: &[BridgeNetwork]) -> String {
    let names: Vec<&str> = unmasqueraded.iter().map(|b| b.name.as_str()).collect();
    format!(
        "packets from {} leave with a container's address, so that no answer comes back: its \
         containers have no network outside this node",
        names.join(" and ")
    )
}

fn found(facts: &Facts<'_>, unmasqueraded: &[BridgeNetwork]) -> Found {
    let home = home(facts);
    let file = home.map_or_else(|| "iptables".to_owned(), |(id, _)| id.file());
    let evidence = |b: &BridgeNetwork| {
        format!("{} has {}, but {file} has no `{}` in nat", b.name, b.network, b.masquerade())
    };
    let mut found = Found {
        evidence: unmasqueraded.iter().map(evidence).collect(),
        effect: effect(unmasqueraded),
        ..Found::default()
    };
    // If two rules belong at the same position, they are added in the order of their bridges.
    let mut rules: Vec<RulePos> = Vec::new();
    for bridge in unmasqueraded {
        let spot = home.and_then(|(id, r)| Some((id, r, postrouting(r)?)));
        let (program, position) = match spot {
            Some((id, r, (table, chain))) => {
                (program(id), insert_position(r, table, chain, bridge))
            }
            None => ("iptables", 0),
        };
        let rule = bridge.masquerade();
        let body = rule.trim_start_matches("-A POSTROUTING ");
        found.remedy.push(format!("{program} -t nat -I POSTROUTING {} {body}", position + 1));
        if bridge.name != "docker0" {
            found.remedy.push(format!(
                "docker network inspect {}   # first: one made with \
                 com.docker.network.bridge.enable_ip_masquerade=false wants no such rule",
                bridge.name.trim_start_matches("br-")
            ));
        } else if let Some((_, r, (_, chain))) = spot {
            let after = position.checked_sub(1).map(|i| r.rule_text(&chain.rules[i]).to_owned());
            rules.push(RulePos { chain: "POSTROUTING".into(), position, text: rule.into(), after });
        }
    }
    if let Some((ruleset, _)) = home.filter(|_| !rules.is_empty()) {
        let table = "nat".into();
        let target = Target::Table(TableEdit { ruleset, table, rules, chains: Vec::new() });
        found.fix.push(Change::Objects(Edit { direction: Direction::Add, target }));
    }
    found
}

/// The IPv4 ruleset that holds docker's rules: the only one that has chain DOCKER in nat or, if
/// none has that chain, the only one that has nat POSTROUTING.
fn home<'a>(facts: &Facts<'a>) -> Option<(RulesetId, &'a Ruleset)> {
    let has_chain = |(_, r): &(RulesetId, &Ruleset)| {
        r.table("nat").is_some_and(|t| t.chain("DOCKER").is_some())
    };
    let mut own = v4(facts.now).filter(has_chain);
    let mut all = v4(facts.now).filter(|(_, r)| postrouting(r).is_some());
    match (own.next(), own.next(), all.next(), all.next()) {
        (Some(one), None, ..) | (None, None, Some(one), None) => Some(one),
        _ => None,
    }
}

/// The position at which to insert the bridge's masquerade rule: after the jumps at the top of the
/// chain, but before the first rule that keeps the bridge's packets from later nat rules.
fn insert_position(
    ruleset: &Ruleset,
    table: &Table,
    chain: &Chain,
    bridge: &BridgeNetwork,
) -> usize {
    let jumps = |rule: &crate::state::ruleset::Rule| {
        let leads = rule.target.as_ref().is_some_and(|t| table.chain(t).is_some());
        leads && !ends(ruleset, table, rule, bridge)
    };
    chain.rules.iter().position(|rule| !jumps(rule)).unwrap_or(chain.rules.len())
}

pub(super) fn program(id: RulesetId) -> &'static str {
    match id.backend {
        Backend::Legacy => "iptables-legacy",
        Backend::Nft => "iptables-nft",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    const NODE: &str = "docker-iptables-1.30";
    const SAVE: &str = "iptables-nft.save";
    const DOCKER0: &str = "[0:0] -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n";
    const OTHER: &str =
        "[0:0] -A POSTROUTING -s 172.18.0.0/16 ! -o br-09c2aebb3de0 -j MASQUERADE\n";

    #[test]
    fn ok_on_every_captured_node() {
        for name in [
            NODE,
            "canal-stale-flannel-1.20",
            "docker-legacy-iptables-1.20-no-conntrack",
            "half-migrated-ipvs-1.20",
            "nftables-leftovers-1.30",
        ] {
            let verdict = verdict_of(&CHECK, &node(name));
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
    }

    #[test]
    fn found_with_its_position_behind_kube_proxy() {
        let state = Node::captured(NODE).replace(SAVE, DOCKER0, "").state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert_eq!(
            found.remedy,
            ["iptables-nft -t nat -I POSTROUTING 2 -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"]
        );
        let [Change::Objects(Edit { direction: Direction::Add, target: Target::Table(edit) })] =
            &found.fix[..]
        else {
            panic!("{:?}", found.fix);
        };
        let [rule] = &edit.rules[..] else { panic!("{edit:?}") };
        assert_eq!(rule.position, 1);
        let jump = "-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" \
                    -j KUBE-POSTROUTING";
        assert_eq!(rule.after.as_deref(), Some(jump));
    }

    #[test]
    fn inserted_before_a_rule_that_takes_its_packets() {
        let before = "[0:0] -A POSTROUTING -m comment --comment \"kubernetes postrouting";
        let with = format!("[0:0] -A POSTROUTING -s 172.16.0.0/12 -j RETURN\n{before}");
        let state =
            Node::captured(NODE).replace(SAVE, DOCKER0, "").replace(SAVE, before, &with).state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.remedy[0].contains("-I POSTROUTING 1 "), "{:?}", found.remedy);
    }

    #[test]
    fn another_network_is_left_to_the_operator() {
        let state = Node::captured(NODE).replace(SAVE, OTHER, "").state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.fix.is_empty());
        assert!(found.remedy[1].contains("docker network inspect 09c2aebb3de0"));
    }

    #[test]
    fn dockers_configuration_is_respected() {
        for option in ["iptables", "ip-masq"] {
            let state = Node::captured(NODE)
                .replace(SAVE, DOCKER0, "")
                .put("files/etc/docker/daemon.json", &format!("{{\"{option}\": false}}"))
                .state();
            let Verdict::Ok(shown) = verdict_of(&CHECK, &state) else { panic!("{option}") };
            assert!(shown.contains("daemon.json"), "{shown}");
        }
        let stage = "[0:0] -A DOCKER-ISOLATION-STAGE-1 -j RETURN\n";
        let drop = "[0:0] -A DOCKER-ISOLATION-STAGE-1 ! -s 172.18.0.0/16 -o br-09c2aebb3de0 \
                    -j DROP\n";
        let state = Node::captured(NODE)
            .replace(SAVE, OTHER, "")
            .replace(SAVE, stage, &format!("{drop}{stage}"))
            .state();
        let Verdict::Ok(shown) = verdict_of(&CHECK, &state) else { panic!("internal") };
        assert!(shown.contains("internal"), "{shown}");
    }

    #[test]
    fn unknown_without_links_or_rules() {
        let state = Node::captured(NODE).remove("addr.json").state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        let state = Node::captured(NODE).remove(SAVE).state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
