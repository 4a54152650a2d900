//! Undo of an addition: removes the added objects that still exist.

use crate::plan::change::{ChainText, Direction, Edit, RulePos, TableEdit, Target};
use crate::plan::invariants::{EditProgress, progress};
use crate::plan::merge::{MergeSide, UndoPlan, chain_of, same_content, side};
use crate::state::NodeState;
use crate::state::equivalence::canonical;

pub(super) fn undo(edit: &Edit, base: &NodeState, now: &NodeState, undo: &mut UndoPlan) {
    let target = match &edit.target {
        Target::Table(table) => {
            match remaining_additions(table, side(table, base), side(table, now), undo) {
                Some(removal) => Target::Table(removal),
                None => return,
            }
        }
        // Another program has already removed the added object.
        _ if progress(edit, base, now) == EditProgress::NotDone => return,
        target => target.clone(),
    };
    undo.edits.push(Edit { direction: Direction::Remove, target });
}

fn remaining_additions(
    edit: &TableEdit,
    base: MergeSide<'_>,
    now: MergeSide<'_>,
    undo: &mut UndoPlan,
) -> Option<TableEdit> {
    let ruleset = edit.ruleset;
    let table = edit.table.clone();
    let mut removal = TableEdit { ruleset, table, rules: Vec::new(), chains: Vec::new() };
    for chain in &edit.chains {
        match chain_of(now, &chain.name) {
            None => {}
            Some((r, c)) if same_content(chain, r, c) => removal.chains.push(ChainText::of(r, c)),
            Some(_) => undo.conflicts.push(format!(
                "{} chain {}: someone else changed it since; left as found",
                edit.id(),
                chain.name
            )),
        }
    }
    let mut names: Vec<&str> = edit.rules.iter().map(|r| r.chain.as_str()).collect();
    names.dedup();
    for name in names {
        let added: Vec<&RulePos> = edit.rules.iter().filter(|r| r.chain == name).collect();
        removal.rules.extend(remaining_rules(
            &added,
            chain_texts(base, name),
            chain_texts(now, name),
        ));
    }
    removal.rules.sort_by(|a, b| (&a.chain, a.position).cmp(&(&b.chain, b.position)));
    (!removal.rules.is_empty() || !removal.chains.is_empty()).then_some(removal)
}

fn chain_texts(side: MergeSide<'_>, name: &str) -> Vec<String> {
    let texts = |(r, c): (&crate::state::ruleset::Ruleset, &crate::state::ruleset::Chain)| {
        c.rules.iter().map(|rule| r.rule_text(rule).to_owned()).collect()
    };
    chain_of(side, name).map(texts).unwrap_or_default()
}

/// The added rules that the chain has now in excess of the base chain, each with its current index.
/// If the chain has several equal rules, the one nearest to where the rule was added counts as it.
fn remaining_rules(added: &[&RulePos], base: Vec<String>, now: Vec<String>) -> Vec<RulePos> {
    let keys = |texts: &[String]| texts.iter().map(|t| canonical(t)).collect::<Vec<_>>();
    let base = keys(&base);
    let now_keys = keys(&now);
    let mut found: Vec<RulePos> = Vec::new();
    for rule in added {
        let key = canonical(&rule.text);
        let count = |keys: &[String]| keys.iter().filter(|k| **k == key).count();
        let is_found = |i: &usize| found.iter().any(|f| f.position == *i);
        let gone = found.iter().filter(|f| canonical(&f.text) == key).count();
        if count(&now_keys) <= count(&base) + gone {
            continue;
        }
        let equal = (0..now.len()).filter(|i| now_keys[*i] == key && !is_found(i));
        if let Some(position) = equal.min_by_key(|i| i.abs_diff(rule.position)) {
            let chain = rule.chain.clone();
            let text = now[position].as_str().into();
            found.push(RulePos { chain, position, text, after: None });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::merge;
    use crate::state::{Backend, Family, Files, RulesetId};

    const ID: RulesetId = RulesetId { family: Family::Ipv4, backend: Backend::Nft };
    const OURS: &str = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";

    fn node(rules: &[&str]) -> NodeState {
        let text = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n{}\nCOMMIT\n", rules.join("\n"));
        NodeState::parse(Files::from([(ID.file(), text.into())])).unwrap()
    }

    fn added(position: usize) -> Edit {
        let chain = "POSTROUTING".into();
        let rules = vec![RulePos { chain, position, text: OURS.into(), after: None }];
        let table = "nat".into();
        let target = Target::Table(TableEdit { ruleset: ID, table, rules, chains: Vec::new() });
        Edit { direction: Direction::Add, target }
    }

    fn positions(base: &[&str], now: &[&str]) -> Vec<usize> {
        let undo = merge::undo(&[added(1)], &node(base), &node(now));
        assert!(undo.conflicts.is_empty(), "{undo:?}");
        let positions = undo.edits.iter().flat_map(|e| match &e.target {
            Target::Table(t) => t.rules.iter().map(|r| r.position),
            _ => panic!("{e}"),
        });
        assert!(undo.edits.iter().all(|e| e.direction == Direction::Remove));
        positions.collect()
    }

    #[test]
    fn only_the_added_rule_is_removed() {
        let [a, b] = ["-A POSTROUTING -s 10.0.0.1/32 -j ACCEPT", "-A POSTROUTING -j RETURN"];
        assert_eq!(positions(&[a, b], &[a, OURS, b]), [1]);
        // Another program has added a rule above the added one.
        assert_eq!(positions(&[a, b], &[b, a, OURS, b]), [2]);
        // An equal rule existed before the addition, so the one nearest to the added position is
        // removed.
        assert_eq!(positions(&[a, b, OURS], &[a, OURS, b, OURS]), [1]);
        // The added rule is already gone, so nothing is removed, not even an equal rule that
        // existed before the addition.
        assert!(positions(&[a, b], &[a, b]).is_empty());
        assert!(positions(&[a, b, OURS], &[a, b, OURS]).is_empty());
    }

    #[test]
    fn an_addition_is_done_when_its_rule_is_there() {
        let (without, with) = (node(&["-A POSTROUTING -j RETURN"]), node(&[OURS]));
        assert_eq!(progress(&added(0), &without, &with), EditProgress::Done);
        assert_eq!(progress(&added(0), &without, &without), EditProgress::NotDone);
        assert_eq!(progress(&added(0), &with, &with), EditProgress::NotDone);
    }
}
