//! Invariants of every run: whatever no edit names keeps its meaning and its order.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::error::Result;
use crate::plan::change::{ChainText, Direction, Edit, TableEdit, Target};
use crate::state::equivalence::Difference;
use crate::state::equivalence::DifferenceKind;
use crate::state::equivalence::canonical;
use crate::state::equivalence::ruleset_differences_but;
use crate::state::ruleset::{Chain, Ruleset};
use crate::state::{Files, NodeState, RulesetId};

/// The differences between what `edits` should make of a ruleset and what the ruleset is after
/// them.
pub fn unexpected_changes(
    id: RulesetId,
    before: Option<&Ruleset>,
    after: Option<&Ruleset>,
    edits: &[Edit],
) -> Vec<Difference> {
    let tables = edits.iter().filter_map(|e| match &e.target {
        Target::Table(table) if table.ruleset == id => Some((e.direction, table)),
        _ => None,
    });
    unexpected_changes_of(id, before, after, tables)
}

/// Like [`unexpected_changes`], but takes only edits of xtables tables of the ruleset `id`.
pub fn unexpected_changes_of<'a>(
    id: RulesetId,
    before: Option<&Ruleset>,
    after: Option<&Ruleset>,
    edits: impl IntoIterator<Item = (Direction, &'a TableEdit)>,
) -> Vec<Difference> {
    let edits: Vec<_> = edits.into_iter().collect();
    let whole = fully_applied(&edits, before, after);
    let mut expected: BTreeMap<(String, DifferenceKind, String), usize> = BTreeMap::new();
    for (direction, table) in edits {
        expect(table, direction, &whole, &mut expected);
    }
    let skip = |table: &str, chain: &str| whole.contains(&(table, chain));
    let mut differences = ruleset_differences_but(id, before, after, &skip);
    differences.retain(|d| {
        let key = (d.part.clone(), d.what, canonical_object(&d.text));
        match expected.get_mut(&key) {
            Some(left) if *left > 0 => {
                *left -= 1;
                false
            }
            _ => true,
        }
    });
    differences.extend(expected.into_iter().filter(|(_, left)| *left > 0).map(
        |((part, what, text), _)| Difference {
            part,
            what: DifferenceKind::Changed,
            text: match what {
                DifferenceKind::New => format!("not there: {text}"),
                _ => format!("not removed: {text}"),
            },
        },
    ));
    differences
}

/// The chains that were removed or added as a whole with exactly the rules that the edits name.
/// Each chain is a pair of table name and chain name. Nearly all edited chains are of this kind,
/// and they need no further comparison.
fn fully_applied<'a>(
    edits: &[(Direction, &'a TableEdit)],
    before: Option<&Ruleset>,
    after: Option<&Ruleset>,
) -> HashSet<(&'a str, &'a str)> {
    let mut whole = HashSet::new();
    for &(direction, edit) in edits {
        let (with, without) = match direction {
            Direction::Remove => (before, after),
            Direction::Add => (after, before),
        };
        let table = edit.table.as_str();
        for chain in &edit.chains {
            let there = match chain_of(with, table, &chain.name) {
                Some((r, c)) => {
                    let texts = c.rules.iter().map(|rule| r.rule_text(rule));
                    texts.eq(chain.rules.iter().map(|text| &**text))
                }
                // A chain that the edit removes may be absent from the state before the edit too,
                // because `remaining_state` leaves such chains out of that state.
                None => direction == Direction::Remove,
            };
            if there && chain_of(without, table, &chain.name).is_none() {
                whole.insert((table, chain.name.as_str()));
            }
        }
    }
    whole
}

/// The part of `state` that is needed to verify removals. The chains that `edits` remove as a whole
/// and the files are left out, so this part is small if nearly everything is removed.
///
/// # Errors
/// Never for a state that was parsed before, because what remains of it parses too.
pub fn remaining_state(state: NodeState, edits: &[Edit]) -> Result<NodeState> {
    let NodeState { mut rulesets, .. } = state;
    for edit in edits.iter().filter(|e| e.direction == Direction::Remove) {
        let Target::Table(table) = &edit.target else { continue };
        if let Some(ruleset) = rulesets.get_mut(&table.ruleset) {
            *ruleset = without(ruleset, table)?;
        }
    }
    Ok(NodeState { rulesets, files: Files::new(), ..state })
}

/// `ruleset` without the chains that `edit` removes or adds as a whole.
///
/// # Errors
/// As for [`remaining_state`].
pub fn without(ruleset: &Ruleset, edit: &TableEdit) -> Result<Ruleset> {
    let chains = edit.chains.iter().map(|c| c.name.as_str()).collect();
    let text = ruleset.text_without(&edit.table, &chains);
    Ruleset::parse(&edit.ruleset.file(), text.into())
}

fn expect(
    edit: &TableEdit,
    direction: Direction,
    whole: &HashSet<(&str, &str)>,
    expected: &mut BTreeMap<(String, DifferenceKind, String), usize>,
) {
    let place = format!("{} {}", edit.ruleset, edit.table);
    let what = match direction {
        Direction::Remove => DifferenceKind::Gone,
        Direction::Add => DifferenceKind::New,
    };
    let is_left = |c: &&ChainText| !whole.contains(&(edit.table.as_str(), c.name.as_str()));
    let rules = edit.rules.iter().map(|r| &r.text);
    let inside = edit.chains.iter().filter(is_left).flat_map(|c| &c.rules);
    let chains = edit.chains.iter().filter(is_left).map(|c| format!("chain {}", c.name));
    for text in rules.chain(inside).map(|r| canonical(r)).chain(chains) {
        *expected.entry((place.clone(), what, text)).or_default() += 1;
    }
}

fn canonical_object(text: &str) -> String {
    if text.starts_with("-A ") { canonical(text) } else { text.to_owned() }
}

/// How far an edit has been applied, judged by what the kernel holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EditProgress {
    /// No part of the edit has been applied.
    NotDone,
    /// The whole edit has been applied.
    Done,
    /// Only a part of the edit has been applied, or its objects were changed by somebody else.
    Unclear,
}

/// How far `edit` has been applied on a node whose state was `base` before the edit and is `now`.
pub fn progress(edit: &Edit, base: &NodeState, now: &NodeState) -> EditProgress {
    match edit.direction {
        Direction::Remove => removal_progress(edit, base, now),
        Direction::Add => addition_progress(edit, base, now),
    }
}

fn removal_progress(edit: &Edit, base: &NodeState, now: &NodeState) -> EditProgress {
    match &edit.target {
        Target::Table(table) => table_progress(
            table,
            base.rulesets.get(&table.ruleset),
            now.rulesets.get(&table.ruleset),
        ),
        target if target.id().is_some_and(|id| id.present_in(now)) => EditProgress::NotDone,
        _ => EditProgress::Done,
    }
}

fn addition_progress(edit: &Edit, base: &NodeState, now: &NodeState) -> EditProgress {
    match &edit.target {
        Target::Table(table) => table_addition_progress(
            table,
            base.rulesets.get(&table.ruleset),
            now.rulesets.get(&table.ruleset),
        ),
        // An added object that did not exist in `base` now exists either as a whole or not at all.
        _ => match removal_progress(edit, base, now) {
            EditProgress::NotDone => EditProgress::Done,
            EditProgress::Done => EditProgress::NotDone,
            EditProgress::Unclear => EditProgress::Unclear,
        },
    }
}

fn table_progress(edit: &TableEdit, base: Option<&Ruleset>, now: Option<&Ruleset>) -> EditProgress {
    let (mut done, mut not_done) = (0, 0);
    for planned in &edit.chains {
        match chain_of(now, &edit.table, &planned.name) {
            None => done += 1,
            Some((_, c)) if c.rules.len() == planned.rules.len() => not_done += 1,
            Some(_) => return EditProgress::Unclear,
        }
    }
    let counts = rule_counts(edit);
    let (before, after) = (current_counts(base, edit), current_counts(now, edit));
    for (rule, &removed) in &counts {
        let there = |counts: &HashMap<_, usize>| counts.get(rule).copied().unwrap_or(0);
        let was = there(&before).max(removed);
        match there(&after) {
            n if n + removed == was => done += 1,
            n if n >= was => not_done += 1,
            _ => return EditProgress::Unclear,
        }
    }
    match (done, not_done) {
        (_, 0) => EditProgress::Done,
        (0, _) => EditProgress::NotDone,
        _ => EditProgress::Unclear,
    }
}

/// How many times the edit names each rule, keyed by chain name and the rule's canonical spelling.
fn rule_counts(edit: &TableEdit) -> HashMap<(&str, String), usize> {
    let mut counts: HashMap<(&str, String), usize> = HashMap::new();
    for rule in &edit.rules {
        *counts.entry((&rule.chain, canonical(&rule.text))).or_default() += 1;
    }
    counts
}

/// How many times each rule occurs in the chains whose rules the edit names, keyed by chain name
/// and the rule's canonical spelling.
fn current_counts<'a>(
    ruleset: Option<&Ruleset>,
    edit: &'a TableEdit,
) -> HashMap<(&'a str, String), usize> {
    let chains: HashSet<&str> = edit.rules.iter().map(|r| r.chain.as_str()).collect();
    let mut counts = HashMap::new();
    for name in chains {
        if let Some((r, c)) = chain_of(ruleset, &edit.table, name) {
            for rule in &c.rules {
                *counts.entry((name, canonical(r.rule_text(rule)))).or_default() += 1;
            }
        }
    }
    counts
}

fn table_addition_progress(
    edit: &TableEdit,
    base: Option<&Ruleset>,
    now: Option<&Ruleset>,
) -> EditProgress {
    let (mut done, mut not_done) = (0, 0);
    for planned in &edit.chains {
        match chain_of(now, &edit.table, &planned.name) {
            None => not_done += 1,
            Some((_, c)) if c.rules.len() == planned.rules.len() => done += 1,
            Some(_) => return EditProgress::Unclear,
        }
    }
    let counts = rule_counts(edit);
    let (before, after) = (current_counts(base, edit), current_counts(now, edit));
    for (rule, &added) in &counts {
        let there = |counts: &HashMap<_, usize>| counts.get(rule).copied().unwrap_or(0);
        let was = there(&before);
        match there(&after) {
            n if n >= was + added => done += 1,
            n if n <= was => not_done += 1,
            _ => return EditProgress::Unclear,
        }
    }
    match (done, not_done) {
        (_, 0) => EditProgress::Done,
        (0, _) => EditProgress::NotDone,
        _ => EditProgress::Unclear,
    }
}

fn chain_of<'a>(
    ruleset: Option<&'a Ruleset>,
    table: &str,
    chain: &str,
) -> Option<(&'a Ruleset, &'a Chain)> {
    ruleset.and_then(|r| Some((r, r.table(table)?.chain(chain)?)))
}
