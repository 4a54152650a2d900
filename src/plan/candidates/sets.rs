//! ipsets go when no rule that stays, and no list that stays, needs them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::plan::candidates::{Candidates, RuleIndex};
use crate::plan::{About, Action, Object, ObjectKind};

/// The rows of the sets that may go: those that are still needed stay.
pub(in crate::plan) fn rows(
    draft: &Candidates<'_>,
    candidates: &BTreeMap<String, String>,
    removed: impl Fn(&RuleIndex) -> bool,
) -> Vec<Object> {
    let needed = if candidates.is_empty() { HashMap::new() } else { needed(draft, removed) };
    let mut needed_by_lists = HashMap::new();
    for list in draft.state.ipsets.sets.iter().filter(|s| s.kind == "list:set") {
        if !candidates.contains_key(&list.name) || needed.contains_key(&list.name) {
            let members = list.entries.iter().filter_map(|e| e.split(' ').next());
            needed_by_lists.extend(
                members.map(|m| (m.to_owned(), format!("a member of the set {}", list.name))),
            );
        }
    }
    let row = |(name, reason): (&String, &String)| {
        let set = draft.state.ipsets.get(name)?;
        let needed = needed.get(name).or_else(|| needed_by_lists.get(name));
        Some(Object {
            action: if needed.is_some() { Action::Keep } else { Action::Remove },
            kind: ObjectKind::Set,
            about: Arc::new(About {
                family: Some(set.family),
                backend: "ipset".into(),
                table: None,
                owner: draft.ownership.set(name).map_or("", |o| o.name).into(),
                reason: needed.unwrap_or(reason).as_str().into(),
            }),
            name: name.as_str().into(),
            position: None,
            text: set.kind.as_str().into(),
        })
    };
    candidates.iter().filter_map(row).collect()
}

/// The sets that rules use which stay, each with the reason.
fn needed(draft: &Candidates<'_>, removed: impl Fn(&RuleIndex) -> bool) -> HashMap<String, String> {
    let mut needed = HashMap::new();
    for (at, ruleset, _, chain) in draft.all_chains() {
        for (position, rule) in chain.rules.iter().enumerate() {
            if removed(&RuleIndex { chain: at, position }) {
                continue;
            }
            for set in ruleset.words(rule).sets() {
                let text = ruleset.rule_text(rule);
                needed
                    .entry(set.into_owned())
                    .or_insert_with(|| format!("still referenced by `{text}`"));
            }
        }
    }
    needed
}
