//! Undo as a three-way merge, so that it also works on a node with foreign changes.
//!
//! The three sides of the merge: base is the snapshot, ours is the edit, and theirs is the node's
//! current state. A removed rule is restored between its former neighbours. Foreign additions keep
//! their positions. Objects that are already back are not added twice. If an object cannot be
//! restored, the conflict is named and the object is left as found.

mod additions;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use similar::{Algorithm, DiffOp, capture_diff_slices};

use crate::plan::change::{ChainText, Direction, Edit, RulePos, TableEdit, Target};
use crate::state::NodeState;
use crate::state::equivalence::canonical;
use crate::state::equivalence::same_rule;
use crate::state::object::{ObjectId, TableId};
use crate::state::rule::Words;
use crate::state::ruleset::{Chain, Ruleset, Table};
use crate::state::shared_str::StrSlice;

/// The edits that undo a run's edits, and what they cannot undo.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UndoPlan {
    /// The edits to apply, in this order.
    pub edits: Vec<Edit>,
    /// One sentence for each object that cannot be restored, with the reason.
    pub conflicts: Vec<String>,
    /// Objects that another program has already restored.
    pub already_restored: Vec<ObjectId>,
    /// Those rules of `already_restored` that are on the wrong side of a former neighbour.
    pub misplaced: Vec<ObjectId>,
}

/// Computes the undo of `edits`, which are listed in the order in which they were applied. `base`
/// is the node's state before them, or the part that
/// [`remaining_state`](crate::plan::invariants::remaining_state) keeps of it. `now` is the node's
/// current state.
pub fn undo(edits: &[Edit], base: &NodeState, now: &NodeState) -> UndoPlan {
    let mut undo = UndoPlan::default();
    for edit in edits.iter().rev() {
        if edit.direction == Direction::Add {
            additions::undo(edit, base, now, &mut undo);
            continue;
        }
        match &edit.target {
            Target::Table(table) => undo_table(table, base, now, &mut undo),
            Target::RealServer(r) if now.ipvs.get(&r.service).is_none() => undo
                .conflicts
                .push(format!("{}: the virtual server {} is gone", edit.target, r.service)),
            target => match target.id() {
                Some(id) if id.present_in(now) => undo.already_restored.push(id),
                _ => undo.edits.push(Edit { direction: Direction::Add, target: target.clone() }),
            },
        }
    }
    undo
}

fn undo_table(edit: &TableEdit, base: &NodeState, now: &NodeState, undo: &mut UndoPlan) {
    let table = Arc::new(edit.id());
    let base = side(edit, base);
    let now = side(edit, now);
    let mut restored = TableEdit {
        ruleset: edit.ruleset,
        table: edit.table.clone(),
        rules: Vec::new(),
        chains: Vec::new(),
    };
    for chain in &edit.chains {
        match chain_of(now, &chain.name) {
            None => restored.chains.push(chain.clone()),
            Some((r, c)) if same_content(chain, r, c) => {
                let table = Arc::clone(&table);
                let name = chain.name.clone();
                undo.already_restored.push(ObjectId::Chain { table, name });
            }
            Some(_) => undo.conflicts.push(format!(
                "{table} chain {}: someone made it anew with other rules; left as found",
                chain.name
            )),
        }
    }
    let mut names: Vec<&str> = edit.rules.iter().map(|r| r.chain.as_str()).collect();
    names.dedup();
    for name in names {
        let removed: Vec<&RulePos> = edit.rules.iter().filter(|r| r.chain == name).collect();
        match chain_of(now, name) {
            Some(now) => {
                merge_chain(&table, &removed, chain_of(base, name), now, &mut restored, undo)
            }
            None => undo.conflicts.extend(
                removed.iter().map(|r| format!("{table} {}: chain {name} is gone", r.text)),
            ),
        }
    }
    if restored.rules.is_empty() && restored.chains.is_empty() {
        return;
    }
    let gone: HashSet<&str> = edit.chains.iter().map(|c| c.name.as_str()).collect();
    drop_dangling(&table, &mut restored, &gone, base, now, undo);
    if !restored.rules.is_empty() || !restored.chains.is_empty() {
        undo.edits.push(Edit { direction: Direction::Add, target: Target::Table(restored) });
    }
}

type MergeSide<'a> = Option<(&'a Ruleset, &'a Table)>;

fn side<'a>(edit: &TableEdit, state: &'a NodeState) -> MergeSide<'a> {
    state.rulesets.get(&edit.ruleset).and_then(|r| Some((r, r.table(&edit.table)?)))
}

fn chain_of<'a>(side: MergeSide<'a>, name: &str) -> Option<(&'a Ruleset, &'a Chain)> {
    side.and_then(|(r, t)| Some((r, t.chain(name)?)))
}

fn same_content(chain: &ChainText, ruleset: &Ruleset, now: &Chain) -> bool {
    chain.rules.len() == now.rules.len()
        && chain.rules.iter().zip(&now.rules).all(|(a, b)| same_rule(a, ruleset.rule_text(b)))
}

/// One rule of the merged chain.
struct Slot {
    /// The rule's position in the base chain, if it was there.
    base: Option<usize>,
    /// True if this undo restores the rule.
    ours: bool,
    canonical: String,
}

fn merge_chain(
    table: &Arc<TableId>,
    removed: &[&RulePos],
    base: Option<(&Ruleset, &Chain)>,
    now: (&Ruleset, &Chain),
    restored: &mut TableEdit,
    undo: &mut UndoPlan,
) {
    let canon = |(r, c): (&Ruleset, &Chain)| -> Vec<String> {
        c.rules.iter().map(|rule| canonical(r.rule_text(rule))).collect()
    };
    let texts_now: Vec<&str> = now.1.rules.iter().map(|r| now.0.rule_text(r)).collect();
    let base = base.map(canon).unwrap_or_default();
    let now = canon(now);
    let ours = positions_in_base(removed, &base);
    let kept: Vec<usize> = (0..base.len()).filter(|i| !ours.contains(&Some(*i))).collect();
    let mut slots = align(&base, &kept, now);
    mark_returned(removed, &ours, &base, &mut slots);
    for (rule, at) in removed.iter().zip(&ours) {
        let key = canonical(&rule.text);
        let present = slots.iter().filter(|s| s.canonical == key).count();
        let wanted = base.iter().filter(|b| **b == key).count().max(1);
        if present >= wanted {
            let id = rule_id(table, rule);
            if out_of_order(&slots, *at) {
                undo.misplaced.push(id.clone());
            }
            undo.already_restored.push(id);
            continue;
        }
        match index_for(&slots, *at, kept.is_empty()) {
            Some(index) => slots.insert(index, Slot { base: *at, ours: true, canonical: key }),
            None => undo.conflicts.push(format!(
                "{table} {}: both rules that stood beside it are gone; left as found",
                rule.text
            )),
        }
    }
    let mut ours = removed.iter().map(|r| (canonical(&r.text), &r.text)).collect::<Vec<_>>();
    let mut theirs = texts_now.into_iter();
    let mut after: Option<String> = None;
    for (position, slot) in slots.iter().enumerate() {
        let text = if slot.ours {
            let found = ours.iter().position(|(key, _)| *key == slot.canonical);
            let Some(text) = found.map(|i| ours.remove(i).1.clone()) else { continue };
            let chain = removed[0].chain.clone();
            restored.rules.push(RulePos { chain, position, text: text.clone(), after });
            text.to_string()
        } else {
            theirs.next().unwrap_or_default().to_owned()
        };
        after = Some(text);
    }
}

fn rule_id(table: &Arc<TableId>, rule: &RulePos) -> ObjectId {
    ObjectId::Rule {
        table: Arc::clone(table),
        chain: rule.chain.as_str().into(),
        position: u32::try_from(rule.position).unwrap_or(u32::MAX),
        text: rule.text.clone(),
    }
}

/// The position of each removed rule in the base chain. The position in the edit is used if the
/// base chain has the rule there. If not, because a foreign change moved the rule between the
/// snapshot and the edit, the rule is looked up by its text.
fn positions_in_base(removed: &[&RulePos], base: &[String]) -> Vec<Option<usize>> {
    let mut positions = Vec::new();
    for rule in removed {
        let key = canonical(&rule.text);
        let exact = base.get(rule.position).is_some_and(|b| *b == key);
        let free = |i: &usize| base[*i] == key && !positions.contains(&Some(*i));
        let at = if exact && free(&rule.position) {
            Some(rule.position)
        } else {
            (0..base.len()).find(free)
        };
        positions.push(at);
    }
    positions
}

/// The rules that the chain has now, each with its position in the base chain, if it was there.
fn align(base: &[String], kept: &[usize], now: Vec<String>) -> Vec<Slot> {
    let old: Vec<&String> = kept.iter().map(|i| &base[*i]).collect();
    let new: Vec<&String> = now.iter().collect();
    let mut origin = vec![None; now.len()];
    for op in capture_diff_slices(Algorithm::Myers, &old, &new) {
        if let DiffOp::Equal { old_index, new_index, len } = op {
            for i in 0..len {
                origin[new_index + i] = Some(kept[old_index + i]);
            }
        }
    }
    let slot = |(canonical, base)| Slot { base, ours: false, canonical };
    now.into_iter().zip(origin).map(slot).collect()
}

/// Gives each removed rule that is already back its position in the base chain, so that the other
/// removed rules find it as a neighbour.
fn mark_returned(
    removed: &[&RulePos],
    ours: &[Option<usize>],
    base: &[String],
    slots: &mut [Slot],
) {
    for (rule, at) in removed.iter().zip(ours) {
        let key = canonical(&rule.text);
        let present = slots.iter().filter(|s| s.canonical == key).count();
        let all_present = present >= base.iter().filter(|b| **b == key).count();
        let returned = |s: &&mut Slot| all_present && s.base.is_none() && s.canonical == key;
        if let Some(slot) = slots.iter_mut().find(returned) {
            slot.base = *at;
        }
    }
}

/// Whether the rule with position `at` in the base chain is now on the other side of some rule.
/// Rules that occur more than once do not count, because equal rules cannot be told apart.
fn out_of_order(slots: &[Slot], at: Option<usize>) -> bool {
    let mut equal: HashMap<&str, usize> = HashMap::new();
    for slot in slots {
        *equal.entry(&slot.canonical).or_default() += 1;
    }
    let only = |s: &&Slot| equal[s.canonical.as_str()] == 1;
    let known: Vec<usize> = slots.iter().filter(only).filter_map(|s| s.base).collect();
    let Some(index) = at.and_then(|at| known.iter().position(|base| *base == at)) else {
        return false;
    };
    let at = known[index];
    known[..index].iter().any(|above| *above > at) || known[index + 1..].iter().any(|b| *b < at)
}

/// The index at which to insert the rule with position `at` in the base chain: right below the
/// nearest rule that was above it, else right above the nearest that was below it. `alone` is true
/// if no rule of the base chain was to be kept; then the index is the top of the chain.
fn index_for(slots: &[Slot], at: Option<usize>, alone: bool) -> Option<usize> {
    let at = at?;
    let before = slots.iter().enumerate().filter(|(_, s)| s.base.is_some_and(|b| b < at));
    if let Some((index, _)) = before.max_by_key(|(_, s)| s.base) {
        return Some(index + 1);
    }
    let behind = slots.iter().enumerate().filter(|(_, s)| s.base.is_some_and(|b| b > at));
    if let Some((index, _)) = behind.min_by_key(|(_, s)| s.base) {
        return Some(index);
    }
    alone.then_some(0)
}

/// Takes rules that jump to a missing chain, and chains with such a rule, out of `restored`, and
/// names them as conflicts, because one such jump would fail the whole transaction. `gone` has the
/// chains that the edit removed.
fn drop_dangling(
    table: &TableId,
    restored: &mut TableEdit,
    gone: &HashSet<&str>,
    base: MergeSide<'_>,
    now: MergeSide<'_>,
    undo: &mut UndoPlan,
) {
    let mut coming: HashSet<StrSlice> = restored.chains.iter().map(|c| c.name.clone()).collect();
    loop {
        let missing_target = |text: &str| {
            let (target, _) = Words::of_rule(text).target()?;
            let was_chain =
                gone.contains(&*target) || base.is_some_and(|(_, t)| t.chain(&target).is_some());
            let is_chain =
                now.is_some_and(|(_, t)| t.chain(&target).is_some()) || coming.contains(&*target);
            (was_chain && !is_chain).then(|| target.into_owned())
        };
        if let Some((i, target)) =
            restored.rules.iter().enumerate().find_map(|(i, r)| Some((i, missing_target(&r.text)?)))
        {
            let rule = restored.rules.remove(i);
            undo.conflicts.push(format!("{table} {}: the chain {target} is gone", rule.text));
            continue;
        }
        let chain = |c: &ChainText| c.rules.iter().find_map(|r| missing_target(r));
        let Some((i, target)) =
            restored.chains.iter().enumerate().find_map(|(i, c)| Some((i, chain(c)?)))
        else {
            return;
        };
        let chain = restored.chains.remove(i);
        coming.remove(&chain.name);
        undo.conflicts.push(format!("{table} chain {}: the chain {target} is gone", chain.name));
    }
}
