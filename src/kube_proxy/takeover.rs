//! What a node will hold once another mode of kube-proxy serves, as far as that is known before.
//!
//! Until then the chains that both modes write lead to what only the old one uses. The new mode
//! rewrites them in one restore. What nothing leads to any more is left over.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::error::Result;
use crate::kube_proxy::{NAME, mode};
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::state::kube_proxy::Mode;
use crate::state::ruleset::{Rule, Ruleset, Table};
use crate::state::shared_str::SharedStr;
use crate::state::{NodeState, RulesetId};

/// The node as the mode `to` leaves it when it takes over, without what that mode makes itself. The
/// rules are gone that lead from chains which it rewrites to chains and sets which it does not use.
/// Everything else is as before.
///
/// # Errors
/// None for a state that parsed: what is left of it parses too.
pub fn predict_takeover(catalogue: &Catalogue, state: &NodeState, to: Mode) -> Result<NodeState> {
    let ownership = Ownership::of(catalogue, state);
    let mut after = state.clone();
    for (id, ruleset) in &state.rulesets {
        let rewrite = Rewrite { ownership: &ownership, id: *id, ruleset, to };
        let lines: HashSet<u32> =
            ruleset.tables.iter().flat_map(|table| rewrite.removed_lines(table)).collect();
        if lines.is_empty() {
            continue;
        }
        let text: SharedStr = ruleset.text_without_rules(&lines).into();
        after.rulesets.insert(*id, Ruleset::parse(&id.file(), text.clone())?);
        after.files.insert(id.file(), text);
    }
    Ok(after)
}

/// One rule set that kube-proxy rewrites in the mode `to`.
pub(super) struct Rewrite<'a> {
    pub(super) ownership: &'a Ownership<'a>,
    pub(super) id: RulesetId,
    pub(super) ruleset: &'a Ruleset,
    pub(super) to: Mode,
}

impl<'a> Rewrite<'a> {
    /// Whether the mode uses a chain of kube-proxy's; none if it is not kube-proxy's.
    pub(super) fn uses(&self, table: &Table, chain: &str) -> Option<bool> {
        let entry = self.ownership.chain_entry(self.id, &table.name, chain)?;
        let own = self.ownership.chain_name(self.id, &table.name, chain) == NAME;
        own.then(|| entry.modes.is_empty() || entry.modes.contains(&self.to))
    }

    /// The chain of kube-proxy's that a rule leads to and that the mode does not use.
    pub(super) fn unused_chain(&self, table: &Table, rule: &'a Rule) -> Option<&'a str> {
        rule.target.as_deref().filter(|target| self.uses(table, target) == Some(false))
    }

    /// The set of kube-proxy's that a rule matches, in a mode that uses none.
    pub(super) fn unused_set(&self, rule: &Rule) -> Option<Cow<'a, str>> {
        if mode::of(self.to).uses_ipsets() {
            return None;
        }
        let own = |set: &str| self.ownership.set(set).is_some_and(|owner| owner.name == NAME);
        self.ruleset.words(rule).sets().into_iter().find(|set| own(set))
    }

    /// Whether a rule leads to what the mode does not use.
    fn is_dangling(&self, table: &Table, rule: &'a Rule) -> bool {
        self.unused_chain(table, rule).is_some() || self.unused_set(rule).is_some()
    }

    /// The lines of the rules that the mode removes as it rewrites its chains.
    fn removed_lines(&self, table: &'a Table) -> Vec<u32> {
        let mut lines = Vec::new();
        for chain in table.chains.iter().filter(|c| self.uses(table, &c.name) == Some(true)) {
            for (position, rule) in chain.rules.iter().enumerate() {
                let owner =
                    self.ownership.rule_attribution(self.id, &table.name, &chain.name, position);
                if self.ownership.name(owner) == NAME && self.is_dangling(table, rule) {
                    lines.push(rule.line);
                }
            }
        }
        lines
    }
}
