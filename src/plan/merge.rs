//! Undoes edits when others have written since: a three-way merge.
//!
//! base = the snapshot, ours = the edit, theirs = what the node holds now. A rule goes back between
//! the neighbours that it had. What others added stays where it is. What came back by itself is not
//! added twice. What cannot be placed is named and left as found.

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

/// What undoes some edits, and what cannot be undone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Undo {
    /// The edits to apply, in order.
    pub edits: Vec<Edit>,
    /// Objects that cannot be restored, each with the reason.
    pub conflicts: Vec<String>,
    /// Objects that are there again without us.
    pub already_back: Vec<ObjectId>,
    /// Those of them that stand on the wrong side of a rule that they stood beside.
    pub misplaced: Vec<ObjectId>,
}

/// How to undo `edits` (in the order in which they were applied) on a node that is now in the state
/// `now`, and was in the state `base` before them; or `base` is what they leave of that state (see
/// [`remaining_state`](crate::plan::invariants::rest)).
pub fn undo(edits: &[Edit], base: &NodeState, now: &NodeState) -> Undo {
    let mut undo = Undo::default();
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
                Some(id) if id.present_in(now) => undo.already_back.push(id),
                _ => undo.edits.push(Edit { direction: Direction::Add, target: target.clone() }),
            },
        }
    }
    undo
}

fn undo_table(edit: &TableEdit, base: &NodeState, now: &NodeState, undo: &mut Undo) {
    let table = Arc::new(edit.id());
    let base = side(edit, base);
    let now = side(edit, now);
    let mut back = TableEdit {
        ruleset: edit.ruleset,
        table: edit.table.clone(),
        rules: Vec::new(),
        chains: Vec::new(),
    };
    for chain in &edit.chains {
        match chain_of(now, &chain.name) {
            None => back.chains.push(chain.clone()),
            Some((r, c)) if same_content(chain, r, c) => {
                let (table, name) = (Arc::clone(&table), chain.name.clone());
                undo.already_back.push(ObjectId::Chain { table, name });
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
            Some(now) => merge_chain(&table, &removed, chain_of(base, name), now, &mut back, undo),
            None => undo.conflicts.extend(
                removed.iter().map(|r| format!("{table} {}: chain {name} is gone", r.text)),
            ),
        }
    }
    if back.rules.is_empty() && back.chains.is_empty() {
        return;
    }
    let gone: HashSet<&str> = edit.chains.iter().map(|c| c.name.as_str()).collect();
    drop_dangling(&table, &mut back, &gone, base, now, undo);
    if !back.rules.is_empty() || !back.chains.is_empty() {
        undo.edits.push(Edit { direction: Direction::Add, target: Target::Table(back) });
    }
}

type Side<'a> = Option<(&'a Ruleset, &'a Table)>;

fn side<'a>(edit: &TableEdit, state: &'a NodeState) -> Side<'a> {
    state.rulesets.get(&edit.ruleset).and_then(|r| Some((r, r.table(&edit.table)?)))
}

fn chain_of<'a>(side: Side<'a>, name: &str) -> Option<(&'a Ruleset, &'a Chain)> {
    side.and_then(|(r, t)| Some((r, t.chain(name)?)))
}

fn same_content(chain: &ChainText, ruleset: &Ruleset, now: &Chain) -> bool {
    chain.rules.len() == now.rules.len()
        && chain.rules.iter().zip(&now.rules).all(|(a, b)| same_rule(a, ruleset.rule_text(b)))
}

/// One rule of the chain as it will be.
struct Slot {
    /// Its position in the base chain, if it was there.
    base: Option<usize>,
    /// True when we put it back.
    ours: bool,
    canonical: String,
}

fn merge_chain(
    table: &Arc<TableId>,
    removed: &[&RulePos],
    base: Option<(&Ruleset, &Chain)>,
    now: (&Ruleset, &Chain),
    back: &mut TableEdit,
    undo: &mut Undo,
) {
    let canon = |(r, c): (&Ruleset, &Chain)| -> Vec<String> {
        c.rules.iter().map(|rule| canonical(r.rule_text(rule))).collect()
    };
    let texts_now: Vec<&str> = now.1.rules.iter().map(|r| now.0.rule_text(r)).collect();
    let (base, now) = (base.map(canon).unwrap_or_default(), canon(now));
    let ours = positions_in_base(removed, &base);
    let kept: Vec<usize> = (0..base.len()).filter(|i| !ours.contains(&Some(*i))).collect();
    let mut slots = align(&base, &kept, now);
    mark_returned(removed, &ours, &base, &mut slots);
    for (rule, at) in removed.iter().zip(&ours) {
        let key = canonical(&rule.text);
        let there = slots.iter().filter(|s| s.canonical == key).count();
        let wanted = base.iter().filter(|b| **b == key).count().max(1);
        if there >= wanted {
            let id = rule_id(table, rule);
            if out_of_order(&slots, *at) {
                undo.misplaced.push(id.clone());
            }
            undo.already_back.push(id);
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
            back.rules.push(RulePos { chain, position, text: text.clone(), after });
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

/// Where each removed rule stood in the base chain. The edit's own position is believed when the
/// base has that rule there; others may have moved it between the snapshot and the edit.
fn positions_in_base(removed: &[&RulePos], base: &[String]) -> Vec<Option<usize>> {
    let mut taken = Vec::new();
    for rule in removed {
        let key = canonical(&rule.text);
        let exact = base.get(rule.position).is_some_and(|b| *b == key);
        let free = |i: &usize| base[*i] == key && !taken.contains(&Some(*i));
        let at = if exact && free(&rule.position) {
            Some(rule.position)
        } else {
            (0..base.len()).find(free)
        };
        taken.push(at);
    }
    taken
}

/// The rules that are there now, each with its position in the base chain if it was there.
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

/// Gives rules of ours that came back by themselves the position that they had: the others among
/// ours stand before or behind them as well.
fn mark_returned(
    removed: &[&RulePos],
    ours: &[Option<usize>],
    base: &[String],
    slots: &mut [Slot],
) {
    for (rule, at) in removed.iter().zip(ours) {
        let key = canonical(&rule.text);
        let there = slots.iter().filter(|s| s.canonical == key).count();
        let all_there = there >= base.iter().filter(|b| **b == key).count();
        let returned = |s: &&mut Slot| all_there && s.base.is_none() && s.canonical == key;
        if let Some(slot) = slots.iter_mut().find(returned) {
            slot.base = *at;
        }
    }
}

/// Whether the rule that stood at `at` of the base chain now stands behind one that it stood before,
/// or the other way round. Rules that say the same as another cannot be told from it, and bear no
/// witness.
fn out_of_order(slots: &[Slot], at: Option<usize>) -> bool {
    let mut equal: HashMap<&str, usize> = HashMap::new();
    for slot in slots {
        *equal.entry(&slot.canonical).or_default() += 1;
    }
    let only = |s: &&Slot| equal[s.canonical.as_str()] == 1;
    let known: Vec<usize> = slots.iter().filter(only).filter_map(|s| s.base).collect();
    let Some(here) = at.and_then(|at| known.iter().position(|base| *base == at)) else {
        return false;
    };
    let at = known[here];
    known[..here].iter().any(|above| *above > at) || known[here + 1..].iter().any(|b| *b < at)
}

/// Right behind the nearest rule that stood before it, else right before the nearest that stood
/// behind it. `alone`: it had no neighbours that stayed, so the top of the chain is its place.
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

/// A rule that jumps to a chain that is gone would fail the whole transaction: such a rule is named
/// and left out, with the chain it stands in. `gone` are the chains that the edit took.
fn drop_dangling(
    table: &TableId,
    back: &mut TableEdit,
    gone: &HashSet<&str>,
    base: Side<'_>,
    now: Side<'_>,
    undo: &mut Undo,
) {
    let mut coming: HashSet<StrSlice> = back.chains.iter().map(|c| c.name.clone()).collect();
    loop {
        let lost = |text: &str| {
            let (target, _) = Words::of_rule(text).target()?;
            let was_chain =
                gone.contains(&*target) || base.is_some_and(|(_, t)| t.chain(&target).is_some());
            let is_chain =
                now.is_some_and(|(_, t)| t.chain(&target).is_some()) || coming.contains(&*target);
            (was_chain && !is_chain).then(|| target.into_owned())
        };
        if let Some((i, target)) =
            back.rules.iter().enumerate().find_map(|(i, r)| Some((i, lost(&r.text)?)))
        {
            let rule = back.rules.remove(i);
            undo.conflicts.push(format!("{table} {}: the chain {target} is gone", rule.text));
            continue;
        }
        let chain = |c: &ChainText| c.rules.iter().find_map(|r| lost(r));
        let Some((i, target)) =
            back.chains.iter().enumerate().find_map(|(i, c)| Some((i, chain(c)?)))
        else {
            return;
        };
        let chain = back.chains.remove(i);
        coming.remove(&chain.name);
        undo.conflicts.push(format!("{table} chain {}: the chain {target} is gone", chain.name));
    }
}
