//! What both backends do alike: read one table, and find an edit's objects in it.

use std::collections::HashSet;
use std::time::Duration;

use crate::apply::Applied;
use crate::error::{Error, Kind, Result};
use crate::node::commands::Command;
use crate::node::tools::{Tool, Tools};
use crate::plan::edit::{ChainText, Direction, RuleAt, TableEdit};
use crate::plan::invariants::unexpected_of;
use crate::state::RulesetId;
use crate::state::meaning::same_rule;
use crate::state::ruleset::{Chain, Ruleset, Table};

/// iptables-nft-save starts over whenever someone writes, so it may take long on a busy node.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// The table as the kernel holds it now; none if it does not exist. `environment` is for
/// `XTABLES_LOCKFILE`.
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

/// Compares the table after the edit with what the edit should have made of it.
pub(super) fn applied(
    direction: Direction,
    edit: &TableEdit,
    before: Option<&Ruleset>,
    after: Option<&Ruleset>,
) -> Applied {
    Applied { unexpected: unexpected_of(edit.ruleset, before, after, [(direction, edit)]) }
}

/// The edit's rules with the positions at which they stand now, checked: every chain that goes
/// holds just what the edit says.
pub(super) fn locate(edit: &TableEdit, ruleset: Option<&Ruleset>) -> Result<Vec<RuleAt>> {
    let changed = |what: &str, why: &str| {
        let place = format!("{} {}", edit.ruleset, edit.table);
        Err(Error::new(Kind::LostRace, format!("{place} {what}"), why))
    };
    let Some((ruleset, table)) = ruleset.and_then(|r| Some((r, r.table(&edit.table)?))) else {
        return changed("", "the table is gone");
    };
    for chain in &edit.chains {
        match table.chain(&chain.name) {
            None => return changed(&chain.name, "the chain is gone"),
            Some(now) if !holds(ruleset, now, chain) => {
                return changed(&chain.name, "someone else changed the chain");
            }
            Some(_) => {}
        }
    }
    let mut found: Vec<RuleAt> = Vec::with_capacity(edit.rules.len());
    let mut taken: HashSet<(&str, usize)> = HashSet::new();
    for rule in &edit.rules {
        let free = |i: usize| !taken.contains(&(rule.chain.as_str(), i));
        match position(ruleset, table, rule, &free) {
            Some(position) => {
                taken.insert((&rule.chain, position));
                found.push(RuleAt { position, ..rule.clone() });
            }
            None => return changed(&rule.text, "the rule is gone"),
        }
    }
    Ok(found)
}

/// The places of an addition's rules in the table as it is now, checked: no chain that comes back
/// is there, and each rule goes right behind the one that it is to follow.
pub(super) fn places(edit: &TableEdit, ruleset: Option<&Ruleset>) -> Result<Vec<RuleAt>> {
    let changed = |what: &str, why: &str| {
        let place = format!("{} {}", edit.ruleset, edit.table);
        Error::new(Kind::LostRace, format!("{place} {what}"), why)
    };
    let table = ruleset.and_then(|r| Some((r, r.table(&edit.table)?)));
    for chain in &edit.chains {
        if table.is_some_and(|(_, t)| t.chain(&chain.name).is_some()) {
            return Err(changed(&chain.name, "someone made the chain meanwhile"));
        }
    }
    let mut placed: Vec<RuleAt> = Vec::with_capacity(edit.rules.len());
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
        let place = (0..=chain.1.len()).filter(follows).min_by_key(|i| i.abs_diff(rule.position));
        let Some(position) = place else {
            return Err(changed(&rule.text, "the rule that it is to follow is gone"));
        };
        chain.1.insert(position, &rule.text);
        placed.push(RuleAt { position, ..rule.clone() });
    }
    Ok(placed)
}

/// The rules of an addition that do not stand behind the rule that they were to follow: someone
/// wrote while they were put in by number.
pub(super) fn misplaced(edit: &TableEdit, ruleset: Option<&Ruleset>) -> Vec<RuleAt> {
    let Some((ruleset, table)) = ruleset.and_then(|r| Some((r, r.table(&edit.table)?))) else {
        return Vec::new();
    };
    let at = |chain: &Chain, text: &str| {
        chain.rules.iter().position(|r| same_rule(ruleset.rule_text(r), text))
    };
    let wrong = |rule: &RuleAt| {
        let chain = table.chain(&rule.chain)?;
        let (own, before) = (at(chain, &rule.text)?, at(chain, rule.after.as_deref()?)?);
        (before > own).then(|| RuleAt { position: own, ..rule.clone() })
    };
    edit.rules.iter().filter_map(wrong).collect()
}

fn holds(ruleset: &Ruleset, now: &Chain, planned: &ChainText) -> bool {
    now.rules.len() == planned.rules.len()
        && now.rules.iter().zip(&planned.rules).all(|(a, b)| same_rule(ruleset.rule_text(a), b))
}

/// Where the rule stands: at its planned place, or, when others have moved it, the nearest to it.
fn position(
    ruleset: &Ruleset,
    table: &Table,
    rule: &RuleAt,
    free: &dyn Fn(usize) -> bool,
) -> Option<usize> {
    let rules = &table.chain(&rule.chain)?.rules;
    let same = |i: &usize| {
        free(*i) && rules.get(*i).is_some_and(|r| same_rule(ruleset.rule_text(r), &rule.text))
    };
    if same(&rule.position) {
        return Some(rule.position);
    }
    // From the planned place outwards: others seldom move it far.
    let at = rule.position;
    let outwards = (1..=at.max(rules.len())).flat_map(|d| [at.checked_sub(d), at.checked_add(d)]);
    outwards.flatten().find(same)
}
