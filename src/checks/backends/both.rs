//! Rules in both backends. Every packet passes the rules of both, but each tool shows the rules of
//! only one backend.

use std::collections::BTreeMap;

use super::{of_the_host, used};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::{Backend, Family, RulesetId};

pub(super) const CHECK: Check = Check {
    id: "backends.both",
    title: "rules in both backends of iptables at once",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://wiki.nftables.org/wiki-nftables/index.php/Legacy_xtables_tools",
};

const BACKENDS: [Backend; 2] = [Backend::Legacy, Backend::Nft];

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() && facts.now.tools.is_none() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let both: Vec<Family> = Family::ALL
        .into_iter()
        .filter(|f| BACKENDS.iter().all(|b| used(facts, *f, *b).is_some()))
        .collect();
    if both.is_empty() {
        return Verdict::Ok("each family has its rules in one backend".into());
    }
    let ids = both.iter().flat_map(|f| BACKENDS.map(|b| RulesetId { family: *f, backend: b }));
    let evidence = ids.filter_map(|id| {
        let ruleset = used(facts, id.family, id.backend)?;
        Some(format!("{}: rules: {}, of {}", id.file(), ruleset.rule_count(), owners(facts, id)))
    });
    // The remedy keeps the backend of the host's iptables. If that backend is not known, the remedy
    // keeps nft, the newer backend.
    let other = match of_the_host(facts) {
        Ok(Backend::Legacy) => Backend::Nft,
        _ => Backend::Legacy,
    };
    let tool = |f: &Family| format!("{}-{other}-save", f.tool());
    let keep = if other == Backend::Legacy { Backend::Nft } else { Backend::Legacy };
    let mut remedy: Vec<String> =
        both.iter().map(|f| format!("{}   # see whose they are", tool(f))).collect();
    remedy.push(format!("update-alternatives --set iptables /usr/sbin/iptables-{keep}"));
    remedy.push(format!("then restart those owners, so that they write to {keep}"));
    remedy.push("proxyshift plan   # which of them are leftovers".into());
    Verdict::Found(Found {
        evidence: evidence.collect(),
        effect: "every packet passes both sets: one dropped or translated by either is so, while \
                 `iptables` shows one of them"
            .into(),
        remedy,
        fix: Vec::new(),
    })
}

/// The owners of a ruleset's rules, each with how many of the rules it owns, most rules first.
fn owners(facts: &Facts<'_>, id: RulesetId) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for table in facts.now.rulesets.get(&id).iter().flat_map(|r| &r.tables) {
        for chain in &table.chains {
            for owner in facts.ownership.rule_attributions(id, &table.name, &chain.name) {
                *counts.entry(facts.ownership.name(*owner)).or_default() += 1;
            }
        }
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
    let words: Vec<String> =
        counts.iter().map(|(name, count)| format!("{name} ({count})")).collect();
    if words.is_empty() { "nobody; a policy or an empty chain".into() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, verdict_of};
    use crate::state::NodeState;

    fn with_legacy(rules: &str) -> NodeState {
        Node::captured("docker-iptables-1.30").put("iptables-legacy.save", rules).state()
    }

    #[test]
    fn found_where_both_hold_rules() {
        let legacy = "*nat\n:POSTROUTING ACCEPT [0:0]\n\
            -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\nCOMMIT\n";
        let Verdict::Found(found) = verdict_of(&CHECK, &with_legacy(legacy)) else {
            panic!("not found");
        };
        assert_eq!(found.evidence[0], "iptables-legacy.save: rules: 1, of docker (1)");
        assert!(found.evidence[1].starts_with("iptables-nft.save: "), "{found:?}");
        assert!(found.remedy[0].starts_with("iptables-legacy-save"), "{found:?}");
    }

    #[test]
    fn ok_with_one_or_empty_tables_and_unknown_without_rules() {
        let empty = "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n";
        assert!(matches!(verdict_of(&CHECK, &with_legacy(empty)), Verdict::Ok(_)));
        assert!(matches!(verdict_of(&CHECK, &NodeState::default()), Verdict::Unknown(_)));
    }
}
