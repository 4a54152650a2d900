//! Rules that iptables mode left in table filter, and that refuse connections to services without
//! endpoints. These rules still take effect, and nothing removes them when the service gets
//! endpoints.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::{Location, Services};
use crate::owners::component::KUBE_PROXY;
use crate::state::RulesetId;
use crate::state::kube_proxy::Mode;
use crate::state::object::ObjectId;
use crate::state::rule::Words;
use crate::state::ruleset::Table;

const CHAINS: [&str; 2] = ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"];

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.leftover-reject",
    title: "refusals that iptables mode left behind and that still act",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/102314",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let mode = match facts.running.mode {
        Some(mode) if mode::of(mode).refuses_in_filter() => {
            return Verdict::Ok(format!("{mode} mode runs and keeps its refusals up to date"));
        }
        Some(mode) => mode,
        None => {
            let evidence = &facts.running.evidence;
            return Verdict::Unknown(format!("which mode runs is not clear: {evidence}"));
        }
    };
    let (mut evidence, mut refusals) = (Vec::new(), Vec::new());
    for (id, ruleset) in &facts.now.rulesets {
        let Some(table) = ruleset.table("filter") else { continue };
        for name in CHAINS {
            let from = jumps(table, name);
            let rules = table.chain(name).map_or(&[][..], |c| &c.rules);
            for (position, rule) in rules.iter().enumerate() {
                let refuses = matches!(rule.target.as_deref(), Some("REJECT" | "DROP"));
                if refuses && !from.is_empty() && is_ours(facts, *id, name, position) {
                    let packets = ruleset.counters(rule).map_or(0, |c| c.packets);
                    let from = from.join(", ");
                    evidence.push(format!("{id} filter: {}", ruleset.rule_text(rule)));
                    evidence.push(format!("it is reached from {from}; {packets} packets refused"));
                    evidence.push(describe_service(facts, mode, ruleset.words(rule)));
                    refusals.push((*id, name, position));
                }
            }
        }
    }
    if evidence.is_empty() {
        return Verdict::Ok("no refusal of iptables mode is left".into());
    }
    // The fix removes only the rules that refuse services. `cleanup` removes the other leftovers,
    // which have no effect.
    let fix = facts.removal(|o| match &o.id {
        ObjectId::Rule { table, chain, position, .. } => {
            &*table.name == "filter"
                && refusals.contains(&(table.ruleset, &**chain, *position as usize))
        }
        _ => false,
    });
    Verdict::Found(Found {
        evidence,
        effect: "new connections that pass there, this node's own among them, are refused, and go \
                 on being refused when the service has endpoints"
            .into(),
        remedy: vec!["proxyshift cleanup --owner kube-proxy".into()],
        fix,
    })
}

fn is_ours(facts: &Facts<'_>, id: RulesetId, chain: &str, position: usize) -> bool {
    let owner = facts.ownership.rule(id, "filter", chain, position);
    owner.is_some_and(|o| o.name == KUBE_PROXY)
}

/// The built-in chains that jump to the chain `to`.
fn jumps<'a>(table: &'a Table, to: &str) -> Vec<&'a str> {
    let leads = |c: &&crate::state::ruleset::Chain| {
        c.is_built_in() && c.rules.iter().any(|r| r.target.as_deref() == Some(to))
    };
    table.chains.iter().filter(leads).map(|c| &*c.name).collect()
}

/// The service that a refusing rule names, and the service's endpoints in the running mode.
fn describe_service(facts: &Facts<'_>, mode: Mode, words: Words<'_>) -> String {
    let comments = words.comments();
    let name = comments.first().and_then(|c| c.split(' ').next()).unwrap_or("a service");
    let terms = words.terms();
    let value = |option| terms.iter().find(|t| t.option == option).map_or("", |t| t.value());
    let address = value("-d").split('/').next().unwrap_or_default().parse().ok();
    let port = value("--dport").parse().ok();
    let protocol = value("-p").to_owned();
    let found: Services = mode::of(mode).services_where(facts.now, &|key, _| {
        Some(key.port) == port
            && key.protocol.to_string() == protocol
            && match key.location {
                Location::Address(at) => Some(at) == address,
                Location::Node(_) => address.is_none(),
            }
    });
    match found.values().next().map(|s| s.backends.len()) {
        None => format!("{name}: {mode} mode does not serve it"),
        Some(0) => format!("{name}: {mode} mode has no endpoint for it either, today"),
        Some(n) => format!("{name}: {mode} mode has {n} endpoints for it, and this refuses them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{node, verdict_of};

    #[test]
    fn found_with_the_service_and_how_it_stands() {
        let mut state = node("half-migrated-ipvs-1.20");
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[0].contains("-d 10.96.1.5/32"), "{found:?}");
        assert!(
            found.evidence[1].starts_with("it is reached from FORWARD, OUTPUT; 0"),
            "{found:?}"
        );
        assert!(found.evidence[2].starts_with("shop/empty:p: ipvs mode has no"), "{found:?}");
        let [fix] = &found.fix[..] else { panic!("{:?}", found.fix) };
        let lines = fix.lines();
        assert_eq!(lines.len(), found.evidence.len() / 3, "the refusals, and nothing beside them");
        assert_eq!(
            lines[0].strip_prefix("remove "),
            Some(&*found.evidence[0].replacen(": ", " ", 1))
        );

        let real = state.ipvs.servers[0].reals[0].clone();
        let empty = state.ipvs.servers.iter_mut().find(|s| s.reals.is_empty()).expect("one");
        empty.reals.push(real);
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[2].contains("has 1 endpoints"), "{found:?}");
    }

    #[test]
    fn ok_in_iptables_mode_or_when_clean_and_unknown_between_modes() {
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
        assert!(matches!(verdict_of(&CHECK, &node("nftables-leftovers-1.30")), Verdict::Ok(_)));
        state.rulesets.clear();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
