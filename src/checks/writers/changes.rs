//! Changes between two captures, grouped by the owner of the changed object.

use std::collections::BTreeMap;

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::owners::matcher::{Ownership, UNKNOWN};
use crate::state::equivalence::Difference;
use crate::state::equivalence::DifferenceKind;
use crate::state::{NodeState, RulesetId};

pub(super) const CHECK: Check = Check {
    id: "writers.changes",
    title: "rules that change while nobody migrates anything",
    severity: Severity::Info,
    when: "always; needs two looks (--watch)",
    applies: always,
    evaluate,
    reference: "https://kubernetes.io/docs/reference/networking/virtual-ips/",
};

/// How many changes of one owner the evidence shows at most.
const SHOWN: usize = 3;

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(earlier) = facts.earlier else {
        return Verdict::Unknown("it needs two looks: check --watch 10".into());
    };
    // Links and routes are left out, because they come and go with pods.
    let differences: Vec<Difference> = earlier
        .differences(facts.now)
        .into_iter()
        .filter(|d| !["link", "route", "rule"].contains(&d.part.as_str()))
        .collect();
    if differences.is_empty() {
        return Verdict::Ok("rules, sets and virtual servers mean the same in both looks".into());
    }
    let before = Ownership::of(facts.catalogue, earlier);
    let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for difference in &differences {
        let gone = difference.what == DifferenceKind::Gone || difference.text.starts_with("- ");
        let owner = if gone {
            owner(difference, earlier, &before)
        } else {
            owner(difference, facts.now, facts.ownership)
        };
        owners.entry(owner).or_default().push(difference.to_string());
    }
    let mut evidence = Vec::new();
    for (owner, changes) in &owners {
        evidence.push(format!("{owner}: {} changed", changes.len()));
        evidence.extend(changes.iter().take(SHOWN).cloned());
    }
    Verdict::Found(Found {
        evidence,
        effect: "a run plans again when it meets such a change, and stops before its first one if \
                 they do not cease for 15 s"
            .into(),
        remedy: vec![
            "proxyshift check --watch 60 --only writers.changes   # does it go on?".into(),
            "stop what writes for the time of the run; services that come and go are kube-proxy's"
                .into(),
        ],
        fix: Vec::new(),
    })
}

/// The owner of the object that differs. `state` is the state that has the object.
fn owner<'a>(difference: &Difference, state: &NodeState, owners: &'a Ownership<'_>) -> &'a str {
    let words: Vec<&str> = difference.text.split(' ').collect();
    let name = match difference.part.as_str() {
        // The text has the form `ipset NAME …`.
        "ipset" => words.get(1).and_then(|name| owners.set(name)),
        // The text has the form `nft FAMILY TABLE …`.
        "nft" => words.get(1).zip(words.get(2)).and_then(|(f, t)| owners.table(f, t)),
        // The text has the form `ipvs SERVICE …`.
        "ipvs" => {
            let servers = &state.ipvs.servers;
            let named = |s: &&crate::state::ipvs::VirtualServer| {
                difference.text.contains(&format!(" {} ", s.service))
            };
            servers.iter().find(named).and_then(|s| owners.virtual_server(&s.service))
        }
        table => rule_owner(table, &difference.text, state, owners),
    };
    name.map_or(UNKNOWN, |owner| owner.name)
}

/// The owner of a rule (text `-A CHAIN …`) or a chain (text `chain NAME`) in a table such as
/// `iptables-nft nat`.
fn rule_owner<'a>(
    table: &str,
    text: &str,
    state: &NodeState,
    owners: &'a Ownership<'_>,
) -> Option<crate::owners::matcher::Owner<'a>> {
    let (id, table) = table.split_once(' ')?;
    let id = RulesetId::ALL.into_iter().find(|i| i.to_string() == id)?;
    if let Some(chain) = text.strip_prefix("chain ") {
        return owners.chain(id, table, chain);
    }
    let ruleset = state.rulesets.get(&id)?;
    let chain = text.strip_prefix("-A ")?.split(' ').next()?;
    let rules = &ruleset.table(table)?.chain(chain)?.rules;
    let position = rules.iter().position(|rule| ruleset.rule_text(rule) == text)?;
    owners.rule(id, table, chain, position)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};

    fn between(earlier: &NodeState, now: &NodeState) -> Verdict {
        given(now).earlier(earlier).verdict(&CHECK)
    }

    #[test]
    fn found_with_the_owner_of_what_came_and_of_what_went() {
        let earlier = node("half-migrated-ipvs-1.20");
        let rules = earlier.files["iptables-nft.save"].to_string();
        let docker = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n";
        let at = rules.find(docker).unwrap();
        let line = rules[..at].rfind('\n').unwrap() + 1;
        let rules = format!("{}{}", &rules[..line], &rules[at + docker.len()..]);
        let now = Node::captured("half-migrated-ipvs-1.20")
            .put("iptables-nft.save", &rules)
            .append("ipset.save", "add KUBE-CLUSTER-IP 10.96.77.77,tcp:80\n")
            .state();
        let Verdict::Found(found) = between(&earlier, &now) else { panic!("not found") };
        assert_eq!(found.evidence[0], "docker: 1 changed", "{found:?}");
        assert!(found.evidence[1].contains(docker.trim()), "{found:?}");
        assert_eq!(found.evidence[2], "kube-proxy: 1 changed", "{found:?}");
        assert!(found.evidence[3].contains("10.96.77.77"), "{found:?}");
    }

    #[test]
    fn ok_where_nothing_changes_and_unknown_with_one_capture() {
        let state = node("half-migrated-ipvs-1.20");
        assert!(matches!(between(&state, &state), Verdict::Ok(_)));
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
