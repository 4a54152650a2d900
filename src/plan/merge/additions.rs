//! Undoes an addition: just what was added goes again, if it is still there.

use crate::plan::change::{ChainText, Direction, Edit, RulePos, TableEdit, Target};
use crate::plan::invariants::{Outcome, outcome};
use crate::plan::merge::{Side, Undo, chain_of, same_content, side};
use crate::state::NodeState;
use crate::state::equivalence::canonical;

pub(super) fn undo(edit: &Edit, base: &NodeState, now: &NodeState, undo: &mut Undo) {
    let target = match &edit.target {
        Target::Table(table) => {
            match table_back(table, side(table, base), side(table, now), undo) {
                Some(back) => Target::Table(back),
                None => return,
            }
        }
        // Someone else has taken it away already.
        _ if outcome(edit, base, now) == Outcome::NotDone => return,
        target => target.clone(),
    };
    undo.edits.push(Edit { direction: Direction::Remove, target });
}

fn table_back(
    edit: &TableEdit,
    base: Side<'_>,
    now: Side<'_>,
    undo: &mut Undo,
) -> Option<TableEdit> {
    let (ruleset, table) = (edit.ruleset, edit.table.clone());
    let mut back = TableEdit { ruleset, table, rules: Vec::new(), chains: Vec::new() };
    for chain in &edit.chains {
        match chain_of(now, &chain.name) {
            None => {}
            Some((r, c)) if same_content(chain, r, c) => back.chains.push(ChainText::of(r, c)),
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
        back.rules.extend(added_still(&added, chain_texts(base, name), chain_texts(now, name)));
    }
    back.rules.sort_by(|a, b| (&a.chain, a.position).cmp(&(&b.chain, b.position)));
    (!back.rules.is_empty() || !back.chains.is_empty()).then_some(back)
}

fn chain_texts(side: Side<'_>, name: &str) -> Vec<String> {
    let texts = |(r, c): (&crate::state::ruleset::Ruleset, &crate::state::ruleset::Chain)| {
        c.rules.iter().map(|rule| r.rule_text(rule).to_owned()).collect()
    };
    chain_of(side, name).map(texts).unwrap_or_default()
}

/// The added rules that are there beyond what the chain held before, each at its place: of equals
/// the one nearest to where it was put.
fn added_still(added: &[&RulePos], base: Vec<String>, now: Vec<String>) -> Vec<RulePos> {
    let keys = |texts: &[String]| texts.iter().map(|t| canonical(t)).collect::<Vec<_>>();
    let (base, now_keys) = (keys(&base), keys(&now));
    let mut found: Vec<RulePos> = Vec::new();
    for rule in added {
        let key = canonical(&rule.text);
        let count = |keys: &[String]| keys.iter().filter(|k| **k == key).count();
        let taken = |i: &usize| found.iter().any(|f| f.position == *i);
        let gone = found.iter().filter(|f| canonical(&f.text) == key).count();
        if count(&now_keys) <= count(&base) + gone {
            continue;
        }
        let equal = (0..now.len()).filter(|i| now_keys[*i] == key && !taken(i));
        if let Some(position) = equal.min_by_key(|i| i.abs_diff(rule.position)) {
            let (chain, text) = (rule.chain.clone(), now[position].clone());
            found.push(RulePos { chain, position, text: text.into(), after: None });
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
        let (chain, text, after) = ("POSTROUTING".into(), OURS.into(), None);
        let rules = vec![RulePos { chain, position, text, after }];
        let (table, chains) = ("nat".into(), Vec::new());
        let target = Target::Table(TableEdit { ruleset: ID, table, rules, chains });
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
    fn just_the_added_rule_goes() {
        let [a, b] = ["-A POSTROUTING -s 10.0.0.1/32 -j ACCEPT", "-A POSTROUTING -j RETURN"];
        assert_eq!(positions(&[a, b], &[a, OURS, b]), [1]);
        // Someone else wrote above it meanwhile.
        assert_eq!(positions(&[a, b], &[b, a, OURS, b]), [2]);
        // One of the same was there before: the nearest to where ours was put goes.
        assert_eq!(positions(&[a, b, OURS], &[a, OURS, b, OURS]), [1]);
        // It is gone already.
        assert!(positions(&[a, b], &[a, b]).is_empty());
        assert!(positions(&[a, b, OURS], &[a, b, OURS]).is_empty());
    }

    #[test]
    fn an_addition_is_done_when_its_rule_is_there() {
        let (without, with) = (node(&["-A POSTROUTING -j RETURN"]), node(&[OURS]));
        assert_eq!(outcome(&added(0), &without, &with), Outcome::Done);
        assert_eq!(outcome(&added(0), &without, &without), Outcome::NotDone);
        assert_eq!(outcome(&added(0), &with, &with), Outcome::NotDone);
    }
}
