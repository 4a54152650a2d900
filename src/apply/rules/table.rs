//! Code for both backends that reads one table, and finds an edit's objects in it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::apply::Applied;
use crate::error::{Error, Kind, Result};
use crate::node::command::Command;
use crate::node::tools::{Tool, Tools};
use crate::plan::change::{ChainText, Direction, RulePos, TableEdit};
use crate::plan::invariants::unexpected_changes_of;
use crate::state::RulesetId;
use crate::state::equivalence::canonical;
use crate::state::equivalence::same_rule;
use crate::state::ruleset::{Chain, Ruleset, Table};

/// The deadline for saving or restoring a table. Long, because iptables-nft-save restarts after
/// each write by another program.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// Reads a table from the kernel; none if the table does not exist. `environment` is a variable for
/// the child, used for `XTABLES_LOCKFILE`.
pub(super) fn read(
    tools: &Tools,
    id: RulesetId,
    table: &str,
    environment: Option<(&str, &std::path::Path)>,
) -> Result<Option<Ruleset>> {
    let mut command =
        Command::new(tools.tool(Tool::Save(id))?).args(["-t", table]).deadline(DEADLINE);
    if let Some((name, value)) = environment {
        command = command.env(name, value);
    }
    let text = command.run()?.stdout;
    if text.trim().is_empty() {
        return Ok(None);
    }
    Ruleset::parse(&id.file(), text.into()).map(Some)
}

/// Compares the table after the edit with the table that the edit should have made of `before`.
pub(super) fn applied(
    direction: Direction,
    edit: &TableEdit,
    before: Option<&Ruleset>,
    after: Option<&Ruleset>,
) -> Applied {
    Applied { unexpected: unexpected_changes_of(edit.ruleset, before, after, [(direction, edit)]) }
}

/// The edit's rules at their current positions. Verifies that each chain to be removed has the same
/// rules as in the edit.
pub(super) fn find_rules(edit: &TableEdit, ruleset: Option<&Ruleset>) -> Result<Vec<RulePos>> {
    let changed = |what: &str, why: &str| {
        let object = format!("{} {}", edit.ruleset, edit.table);
        Err(Error::new(Kind::LostRace, format!("{object} {what}"), why))
    };
    let Some((ruleset, table)) = ruleset.and_then(|r| Some((r, r.table(&edit.table)?))) else {
        return changed("", "the table is gone");
    };
    for chain in &edit.chains {
        match table.chain(&chain.name) {
            None => return changed(&chain.name, "the chain is gone"),
            Some(now) if !chain_matches(ruleset, now, chain) => {
                return changed(&chain.name, "someone else changed the chain");
            }
            Some(_) => {}
        }
    }
    let mut found: Vec<RulePos> = Vec::with_capacity(edit.rules.len());
    let mut used: HashSet<(&str, usize)> = HashSet::new();
    for rule in &edit.rules {
        let free = |i: usize| !used.contains(&(rule.chain.as_str(), i));
        match position(ruleset, table, rule, &free) {
            Some(position) => {
                used.insert((&rule.chain, position));
                found.push(RulePos { position, ..rule.clone() });
            }
            None => return changed(&rule.text, "the rule is gone"),
        }
    }
    Ok(found)
}

/// Parts `rules`, which [`find_rules`] found, into those that occur only once in their chain, and
/// those of which the chain has equal ones. Each has the text that the table has for it now.
pub(super) fn only_and_repeated(
    table: &str,
    rules: Vec<RulePos>,
    ruleset: Option<&Ruleset>,
) -> (Vec<RulePos>, Vec<RulePos>) {
    let mut chains: HashMap<String, HashMap<String, usize>> = HashMap::new();
    let Some((ruleset, table)) = ruleset.and_then(|r| Some((r, r.table(table)?))) else {
        return (Vec::new(), rules);
    };
    let texts = |chain: &str| table.chain(chain).map(|c| c.rules.as_slice()).unwrap_or_default();
    let now = |rule: RulePos| match texts(&rule.chain).get(rule.position) {
        Some(found) => RulePos { text: ruleset.rule_text(found).into(), ..rule },
        None => rule,
    };
    rules.into_iter().map(now).partition(|rule| {
        let counts = chains.entry(rule.chain.to_string()).or_insert_with(|| {
            let mut counts = HashMap::new();
            for found in texts(&rule.chain) {
                *counts.entry(canonical(ruleset.rule_text(found))).or_default() += 1;
            }
            counts
        });
        counts.get(&canonical(&rule.text)) == Some(&1)
    })
}

/// The positions in the current table at which an addition inserts its rules. Verifies that none of
/// the chains to be added exists, and that each rule is inserted directly after the rule that the
/// edit names for it ([`RulePos::after`]).
pub(super) fn insert_positions(
    edit: &TableEdit,
    ruleset: Option<&Ruleset>,
) -> Result<Vec<RulePos>> {
    let changed = |what: &str, why: &str| {
        let object = format!("{} {}", edit.ruleset, edit.table);
        Error::new(Kind::LostRace, format!("{object} {what}"), why)
    };
    let table = ruleset.and_then(|r| Some((r, r.table(&edit.table)?)));
    for chain in &edit.chains {
        if table.is_some_and(|(_, t)| t.chain(&chain.name).is_some()) {
            return Err(changed(&chain.name, "someone made the chain meanwhile"));
        }
    }
    let mut positions: Vec<RulePos> = Vec::with_capacity(edit.rules.len());
    let mut chain: (&str, Vec<&str>) = ("", Vec::new());
    for rule in &edit.rules {
        if chain.0 != rule.chain {
            let now = table.and_then(|(r, t)| Some((r, t.chain(&rule.chain)?)));
            let Some((ruleset, now)) = now else {
                return Err(changed(&rule.chain, "the chain is gone"));
            };
            chain = (&rule.chain, now.rules.iter().map(|r| ruleset.rule_text(r)).collect());
        }
        let follows = |i: &usize| match (&rule.after, i.checked_sub(1)) {
            (None, before) => before.is_none(),
            (Some(after), Some(before)) => same_rule(chain.1[before], after),
            (Some(_), None) => false,
        };
        let index = (0..=chain.1.len()).filter(follows).min_by_key(|i| i.abs_diff(rule.position));
        let Some(position) = index else {
            return Err(changed(&rule.text, "the rule that it is to follow is gone"));
        };
        chain.1.insert(position, &rule.text);
        positions.push(RulePos { position, ..rule.clone() });
    }
    Ok(positions)
}

/// The added rules that are on the wrong side of a rule of `before`, because another program wrote
/// while the added rules were inserted by index, at `positions`.
pub(super) fn misplaced(
    edit: &TableEdit,
    positions: &[RulePos],
    before: Option<&Ruleset>,
    after: Option<&Ruleset>,
) -> Vec<RulePos> {
    let keys = |ruleset: Option<&Ruleset>, chain: &str| -> Vec<String> {
        let found = ruleset.and_then(|r| Some((r, r.table(&edit.table)?.chain(chain)?)));
        found.map_or_else(Vec::new, |(r, c)| {
            c.rules.iter().map(|rule| canonical(r.rule_text(rule))).collect()
        })
    };
    positions
        .chunk_by(|a, b| a.chain == b.chain)
        .flat_map(|ours| {
            let chain = &ours[0].chain;
            out_of_order(ours, &keys(before, chain), &keys(after, chain))
        })
        .collect()
}

/// As [`misplaced`], in one chain. `before` and `after` are the chain's rules before and after the
/// insertion, in canonical form. Rules that have the same text are ignored, because they cannot be
/// told apart.
fn out_of_order(ours: &[RulePos], before: &[String], after: &[String]) -> Vec<RulePos> {
    let mut wanted: Vec<(String, Option<&RulePos>)> =
        before.iter().map(|key| (key.clone(), None)).collect();
    for rule in ours {
        wanted.insert(rule.position.min(wanted.len()), (canonical(&rule.text), Some(rule)));
    }
    let mut found: HashMap<&str, Vec<usize>> = HashMap::new();
    for (position, key) in after.iter().enumerate() {
        found.entry(key).or_default().push(position);
    }
    let at = |key: &str| match found.get(key).map(Vec::as_slice) {
        Some(&[only]) => Some(only),
        _ => None,
    };
    let order: Vec<(usize, Option<&RulePos>)> =
        wanted.iter().filter_map(|(key, rule)| Some((at(key)?, *rule))).collect();
    let foreign = |part: &[(usize, Option<&RulePos>)]| -> Vec<usize> {
        part.iter().filter(|(_, rule)| rule.is_none()).map(|(position, _)| *position).collect()
    };
    let misplaced = |(i, (own, rule)): (usize, &(usize, Option<&RulePos>))| {
        let above = foreign(&order[..i]);
        let below = foreign(&order[i + 1..]);
        let passed = above.iter().any(|a| a > own) || below.iter().any(|b| b < own);
        rule.filter(|_| passed).map(|rule| RulePos { position: *own, ..rule.clone() })
    };
    order.iter().enumerate().filter(|(_, (_, rule))| rule.is_some()).filter_map(misplaced).collect()
}

fn chain_matches(ruleset: &Ruleset, now: &Chain, planned: &ChainText) -> bool {
    now.rules.len() == planned.rules.len()
        && now.rules.iter().zip(&planned.rules).all(|(a, b)| same_rule(ruleset.rule_text(a), b))
}

/// The position of `rule` in the current chain: the planned position, or, after foreign changes,
/// the nearest position that holds the same rule.
fn position(
    ruleset: &Ruleset,
    table: &Table,
    rule: &RulePos,
    free: &dyn Fn(usize) -> bool,
) -> Option<usize> {
    let rules = &table.chain(&rule.chain)?.rules;
    let same = |i: &usize| {
        free(*i) && rules.get(*i).is_some_and(|r| same_rule(ruleset.rule_text(r), &rule.text))
    };
    if same(&rule.position) {
        return Some(rule.position);
    }
    // Searches from the planned position outwards, because foreign changes seldom move a rule far.
    let at = rule.position;
    let outwards = (1..=at.max(rules.len())).flat_map(|d| [at.checked_sub(d), at.checked_add(d)]);
    outwards.flatten().find(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str) -> String {
        format!("-A FORWARD -j {name}")
    }

    /// Inserts the rules `ours` at the given positions, and returns those that are misplaced in
    /// `after`.
    fn wrong(ours: &[(usize, &str)], before: &str, after: &str) -> Vec<String> {
        let keys = |names: &str| -> Vec<String> {
            names.split_whitespace().map(|name| canonical(&rule(name))).collect()
        };
        let at = |(position, name): &(usize, &str)| RulePos {
            chain: "FORWARD".into(),
            position: *position,
            text: rule(name).into(),
            after: None,
        };
        let ours: Vec<RulePos> = ours.iter().map(at).collect();
        let found = out_of_order(&ours, &keys(before), &keys(after));
        found.iter().map(|r| r.text.to_string()).collect()
    }

    #[test]
    fn a_rule_that_slipped_past_another_is_found() {
        let ours = [(1, "X"), (3, "Y")];
        assert!(wrong(&ours, "a b c", "a X b Y c").is_empty());
        assert!(wrong(&ours, "a b c", "new a X b other Y c").is_empty());
        // Just before the insertion, another program inserted a rule at the top of the chain, or
        // removed the rule there.
        assert_eq!(wrong(&ours, "a b c", "new X a Y b c"), [rule("X"), rule("Y")]);
        assert_eq!(wrong(&ours, "a b c", "b X c Y"), [rule("X"), rule("Y")]);
        assert!(wrong(&ours, "a b c", "b").is_empty(), "gone again, by someone else");
        assert!(wrong(&[(1, "a")], "a", "a a").is_empty());
    }
}
