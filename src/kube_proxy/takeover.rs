//! Predicts a takeover: what a node holds once another mode of kube-proxy serves.
//!
//! Before the takeover, the chains that both modes write lead to objects of the old mode. The new
//! mode rewrites these chains in one restore. The old mode's objects that nothing refers to are
//! leftovers from then on.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::error::Result;
use crate::kube_proxy::mode;
use crate::owners::catalogue::Catalogue;
use crate::owners::component::KUBE_PROXY;
use crate::owners::matcher::Ownership;
use crate::state::kube_proxy::Mode;
use crate::state::ruleset::{Rule, Ruleset, Table};
use crate::state::shared_str::SharedStr;
use crate::state::{NodeState, RulesetId};

/// The node after the takeover by the mode `to`, but without the new objects of that mode. Because
/// that mode rewrites its chains, the rules in them that refer to chains and ipsets of other modes
/// are gone. Everything else is unchanged.
///
/// # Errors
/// Never for a state that was parsed before, because what remains of it parses too.
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

/// One ruleset, in which kube-proxy in the mode `to` rewrites its own chains.
pub(super) struct Rewrite<'a> {
    pub(super) ownership: &'a Ownership<'a>,
    pub(super) id: RulesetId,
    pub(super) ruleset: &'a Ruleset,
    pub(super) to: Mode,
}

impl<'a> Rewrite<'a> {
    /// Whether the mode `to` uses a chain of kube-proxy; `None` for any chain that is not
    /// kube-proxy's.
    pub(super) fn uses(&self, table: &Table, chain: &str) -> Option<bool> {
        let entry = self.ownership.chain_entry(self.id, &table.name, chain)?;
        let own = self.ownership.chain_name(self.id, &table.name, chain) == KUBE_PROXY;
        own.then(|| entry.modes.is_empty() || entry.modes.contains(&self.to))
    }

    /// The chain that a rule jumps to, if that chain is kube-proxy's and the mode `to` does not use
    /// it.
    pub(super) fn unused_chain(&self, table: &Table, rule: &'a Rule) -> Option<&'a str> {
        rule.target.as_deref().filter(|target| self.uses(table, target) == Some(false))
    }

    /// The ipset of kube-proxy that this rule matches, if kube-proxy's mode after the change uses
    /// no ipsets; otherwise none.
    pub(super) fn unused_set(&self, rule: &Rule) -> Option<Cow<'a, str>> {
        if mode::of(self.to).uses_ipsets() {
            return None;
        }
        let own = |set: &str| self.ownership.set(set).is_some_and(|owner| owner.name == KUBE_PROXY);
        self.ruleset.words(rule).sets().into_iter().find(|set| own(set))
    }

    /// Whether a rule refers to a chain or ipset of kube-proxy that the mode `to` does not use.
    fn is_dangling(&self, table: &Table, rule: &'a Rule) -> bool {
        self.unused_chain(table, rule).is_some() || self.unused_set(rule).is_some()
    }

    /// The line numbers of the rules that disappear when the mode `to` rewrites its chains.
    fn removed_lines(&self, table: &'a Table) -> Vec<u32> {
        let mut lines = Vec::new();
        for chain in table.chains.iter().filter(|c| self.uses(table, &c.name) == Some(true)) {
            for (position, rule) in chain.rules.iter().enumerate() {
                let owner =
                    self.ownership.rule_attribution(self.id, &table.name, &chain.name, position);
                if self.ownership.name(owner) == KUBE_PROXY && self.is_dangling(table, rule) {
                    lines.push(rule.line);
                }
            }
        }
        lines
    }
}
