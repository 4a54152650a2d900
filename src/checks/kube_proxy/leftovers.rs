//! Leftovers of the kube-proxy modes and versions that no longer run.

use std::collections::BTreeMap;

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::mode;
use crate::owners::component::KUBE_PROXY;
use crate::plan::Object;
use crate::state::Family;
use crate::state::object::{ObjectKind, TableId};

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.leftovers",
    title: "what other modes and versions of kube-proxy left behind",
    severity: Severity::Info,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/102314",
};

/// What groups leftovers in the evidence: the family's iptables tool, the backend, the table, and
/// the kind of object.
type Group<'a> = (Option<&'static str>, &'static str, Option<&'a TableId>, ObjectKind);

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(mode) = facts.running.mode else {
        return Verdict::Unknown(format!(
            "which mode runs is not clear: {}",
            facts.running.evidence
        ));
    };
    let mut groups: BTreeMap<Group<'_>, (usize, &Object)> = BTreeMap::new();
    for object in facts.leftovers().removals().filter(|o| o.owner == KUBE_PROXY) {
        let id = &object.id;
        let group = (id.family().map(Family::tool), id.backend(), id.table(), id.kind());
        groups.entry(group).or_insert((0, object)).0 += 1;
    }
    if groups.is_empty() {
        return Verdict::Ok(format!("nothing but what {mode} mode uses"));
    }
    // At its start a kube-proxy from 1.29 on removes what is on the other side of nftables mode.
    let crosses = mode::of(mode).has_own_tables()
        || groups.keys().any(|(.., kind)| *kind == ObjectKind::Table);
    let new_enough = facts.running.version.is_none_or(|v| (v.major, v.minor) >= (1, 29));
    let removal = if crosses && new_enough {
        "kube-proxy removes some of them when it starts, and none at any other time"
    } else {
        "kube-proxy never removes them"
    };
    let row = |((_, backend, table, kind), (count, first)): (Group<'_>, (usize, &Object))| {
        let group = table.map_or_else(|| backend.to_owned(), ToString::to_string);
        let example = if kind == ObjectKind::Rule { first.text() } else { first.id.name() };
        let kind = match kind {
            ObjectKind::Table => "table",
            ObjectKind::Chain => "chain",
            ObjectKind::Rule => "rule",
            ObjectKind::Set => "set",
            ObjectKind::VirtualServer => "virtual server",
            ObjectKind::RealServer => "real server",
            ObjectKind::Link => "link",
        };
        let more = if count > 1 { "s, the first" } else { "" };
        format!("{group}: {count} {kind}{more}: {example}")
    };
    Verdict::Found(Found {
        evidence: groups.into_iter().map(row).collect(),
        effect: format!(
            "nobody keeps them up to date while {mode} mode runs; {removal}, and `kube-proxy \
             --cleanup` takes rules that serve along with them"
        ),
        remedy: vec![
            "proxyshift plan -v   # each of them, and why it goes".into(),
            "proxyshift cleanup --owner kube-proxy".into(),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{node, verdict_of};

    #[test]
    fn found_by_kind() {
        let Verdict::Found(found) = verdict_of(&CHECK, &node("half-migrated-ipvs-1.20")) else {
            panic!("not found")
        };
        let text = found.evidence.join("\n");
        assert!(text.contains("iptables-nft filter: 5 rules, the first: -A FORWARD"), "{text}");
        assert!(text.contains("iptables-nft mangle: 1 chain: KUBE-PROXY-CANARY"), "{text}");
        let Verdict::Found(found) = verdict_of(&CHECK, &node("nftables-leftovers-1.30")) else {
            panic!("not found")
        };
        assert!(found.evidence.iter().any(|e| e.contains("ip6tables-nft nat: 2 chains")));
    }

    #[test]
    fn ok_on_a_clean_node_and_unknown_between_modes() {
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
        state.rulesets.clear();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
