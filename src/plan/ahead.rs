//! What a node will hold once another mode of kube-proxy serves, as far as it can be told before.
//!
//! Up to then the chains that both modes write lead to what only the old one uses. The new mode
//! writes them anew in one restore; what is left over is what nothing leads to any more.

use std::collections::HashSet;

use crate::error::Result;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::owners::mode::{self, Running};
use crate::plan::Plan;
use crate::plan::leftovers::leftovers_under;
use crate::state::kube_proxy::Mode;
use crate::state::ruleset::{Rule, Ruleset, Table};
use crate::state::shared_str::SharedStr;
use crate::state::{NodeState, RulesetId};

const NAME: &str = "kube-proxy";

/// The node as the mode `to` leaves it when it takes over, without what that mode makes itself: the
/// rules are gone that lead from chains which it writes anew to chains and sets which it does not
/// use. Everything else is as it was.
///
/// # Errors
/// None for a state that parsed: what is left of it parses too.
pub fn taken_over(catalogue: &Catalogue, state: &NodeState, to: Mode) -> Result<NodeState> {
    let ownership = Ownership::of(catalogue, state);
    let mut after = state.clone();
    for (id, ruleset) in &state.rulesets {
        let written = Written { ownership: &ownership, id: *id, ruleset, to };
        let lines: HashSet<u32> =
            ruleset.tables.iter().flat_map(|table| written.anew(table)).collect();
        if lines.is_empty() {
            continue;
        }
        let text: SharedStr = ruleset.text_without_rules(&lines).into();
        after.rulesets.insert(*id, Ruleset::parse(&id.file(), text.clone())?);
        after.files.insert(id.file(), text);
    }
    Ok(after)
}

/// What is left over once kube-proxy serves in the mode `to`, on a node that is as [`taken_over`]
/// says, or holds as much of that as its kernel can.
pub fn leftovers_once(catalogue: &Catalogue, taken_over: &NodeState, to: Mode) -> Plan {
    let ownership = Ownership::of(catalogue, taken_over);
    let now = mode::running(taken_over, &ownership);
    let running = Running { mode: Some(to), ..now };
    leftovers_under(&running, catalogue, taken_over, &ownership)
}

/// One rule set, which kube-proxy is about to write in the mode `to`.
struct Written<'a> {
    ownership: &'a Ownership<'a>,
    id: RulesetId,
    ruleset: &'a Ruleset,
    to: Mode,
}

impl Written<'_> {
    /// The lines of the rules that the mode takes away as it writes its chains anew.
    fn anew(&self, table: &Table) -> Vec<u32> {
        let mut lines = Vec::new();
        for chain in table.chains.iter().filter(|c| self.uses(table, &c.name) == Some(true)) {
            for (position, rule) in chain.rules.iter().enumerate() {
                let owner =
                    self.ownership.rule_attribution(self.id, &table.name, &chain.name, position);
                if self.ownership.name(owner) == NAME && self.leads_astray(table, rule) {
                    lines.push(rule.line);
                }
            }
        }
        lines
    }

    /// Whether the mode uses a chain of kube-proxy's; none if it is not kube-proxy's.
    fn uses(&self, table: &Table, chain: &str) -> Option<bool> {
        let entry = self.ownership.chain_entry(self.id, &table.name, chain)?;
        let own = self.ownership.chain_name(self.id, &table.name, chain) == NAME;
        own.then(|| entry.modes.is_empty() || entry.modes.contains(&self.to))
    }

    fn leads_astray(&self, table: &Table, rule: &Rule) -> bool {
        let to_chain = rule.target.as_deref().is_some_and(|t| self.uses(table, t) == Some(false));
        if to_chain || self.to == Mode::Ipvs {
            return to_chain;
        }
        let own = |set: &str| self.ownership.set(set).is_some_and(|o| o.name == NAME);
        self.ruleset.words(rule).sets().iter().any(|set| own(set))
    }
}
