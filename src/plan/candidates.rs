//! Candidates for removal, and which of them must be kept because something still refers to them.

mod sets;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::owners::catalogue::Catalogue;
use crate::owners::component::ChainEntry;
use crate::owners::matcher::{Ownership, UNKNOWN};
use crate::plan::reason::Reason;
use crate::plan::{About, Action, Object};
use crate::state::object::{ObjectId, TableId};
use crate::state::ruleset::{Chain, Name, Rule, Ruleset, Table};
use crate::state::shared_str::StrSlice;
use crate::state::{NodeState, RulesetId};

/// A chain, identified by two indexes in the node state: that of its table and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ChainIndex {
    pub(super) id: RulesetId,
    pub(super) table: usize,
    pub(super) chain: usize,
}

/// A rule, identified by its chain and its position in that chain, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RuleIndex {
    pub(super) chain: ChainIndex,
    pub(super) position: usize,
}

struct RuleCandidate {
    reason: Reason,
    /// If set, the rule is removed only if this chain is removed too.
    with: Option<ChainIndex>,
}

/// The candidates for removal, and the plan rows that are already decided.
pub(super) struct Candidates<'a> {
    pub(super) catalogue: &'a Catalogue,
    pub(super) state: &'a NodeState,
    pub(super) ownership: &'a Ownership<'a>,
    by_owner: HashMap<&'a str, Vec<ChainIndex>>,
    chains: BTreeMap<ChainIndex, Arc<Reason>>,
    rules: BTreeMap<RuleIndex, RuleCandidate>,
    sets: BTreeMap<String, Reason>,
    tables: HashMap<(RulesetId, usize), Arc<TableId>>,
    abouts: BTreeSet<Arc<About>>,
    rows: Vec<Object>,
}

impl<'a> Candidates<'a> {
    pub(super) fn new(
        catalogue: &'a Catalogue,
        state: &'a NodeState,
        ownership: &'a Ownership<'a>,
    ) -> Candidates<'a> {
        let mut candidates = Candidates {
            catalogue,
            state,
            ownership,
            by_owner: HashMap::new(),
            chains: BTreeMap::new(),
            rules: BTreeMap::new(),
            sets: BTreeMap::new(),
            tables: HashMap::new(),
            abouts: BTreeSet::new(),
            rows: Vec::new(),
        };
        for (at, _, table, chain) in candidates.all_chains() {
            let owner = candidates.owner(at.id, table, chain);
            candidates.by_owner.entry(owner).or_default().push(at);
        }
        candidates
    }

    /// The chains of an owner, each with its entry in the catalogue.
    pub(super) fn chains_of(&self, owner: &str) -> Vec<OwnedChain<'a>> {
        let owned = |at: &ChainIndex| {
            let (_, table, chain) = self.chain(*at)?;
            let entry = self.ownership.chain_entry(at.id, &table.name, &chain.name)?;
            Some(OwnedChain { at: *at, table, chain, entry })
        };
        self.by_owner.get(owner).into_iter().flatten().filter_map(owned).collect()
    }

    /// Every chain of the node, with its ruleset and table.
    pub(super) fn all_chains(
        &self,
    ) -> impl Iterator<Item = (ChainIndex, &'a Ruleset, &'a Table, &'a Chain)> + use<'a> {
        self.state.rulesets.iter().flat_map(|(id, ruleset)| {
            ruleset.tables.iter().enumerate().flat_map(move |(table, t)| {
                t.chains
                    .iter()
                    .enumerate()
                    .map(move |(chain, c)| (ChainIndex { id: *id, table, chain }, ruleset, t, c))
            })
        })
    }

    /// Every rule of the built-in chains, with the chain that the rule jumps to, if any.
    pub(super) fn built_in_rules(
        &self,
    ) -> impl Iterator<Item = (RuleIndex, RuleContext<'a>, Option<ChainIndex>)> + use<'a> {
        let ownership = self.ownership;
        let built_in = self.all_chains().filter(|(.., chain)| chain.is_built_in());
        built_in.flat_map(move |(at, ruleset, table, chain)| {
            chain.rules.iter().enumerate().map(move |(position, rule)| {
                let target = rule.target.as_ref();
                let to = target.and_then(|to| ownership.chain_index(at.id, &table.name, to));
                let to = to.map(|chain| ChainIndex { chain, ..at });
                let context = RuleContext { id: at.id, ruleset, table, chain, rule, position };
                (RuleIndex { chain: at, position }, context, to)
            })
        })
    }

    /// The name of the component that owns a chain.
    pub(super) fn owner(&self, id: RulesetId, table: &Table, chain: &Chain) -> &'a str {
        self.ownership.chain_name(id, &table.name, &chain.name)
    }

    pub(super) fn propose_chain(&mut self, at: ChainIndex, reason: Reason) {
        // Thousands of chains in a row have an equal reason, so they share one allocation.
        let last = self.chains.last_key_value().map(|(_, last)| last);
        let reason =
            last.filter(|last| ***last == reason).cloned().unwrap_or_else(|| Arc::new(reason));
        self.chains.insert(at, reason);
    }

    pub(super) fn is_candidate(&self, at: ChainIndex) -> bool {
        self.chains.contains_key(&at)
    }

    /// Proposes the removal of a rule from a chain that is kept. If `with` is a chain, the rule is
    /// removed only if that chain is removed too.
    pub(super) fn propose_rule(&mut self, at: RuleIndex, with: Option<ChainIndex>, reason: Reason) {
        self.rules.insert(at, RuleCandidate { reason, with });
    }

    pub(super) fn propose_set(&mut self, name: &str, reason: Reason) {
        self.sets.insert(name.to_owned(), reason);
    }

    /// Adds a plan row for an object that is neither a chain nor a rule.
    pub(super) fn add(&mut self, row: PlanRow<'_>) {
        let about = self.about(About {
            action: row.action,
            owner: row.owner.into(),
            reason: Arc::new(row.reason),
            details: row.details.into(),
        });
        self.rows.push(Object { id: row.id, about });
    }

    /// Returns a shared copy of the attributes, because thousands of objects have equal ones.
    fn about(&mut self, about: About) -> Arc<About> {
        if let Some(known) = self.abouts.get(&about) {
            return known.clone();
        }
        let about = Arc::new(about);
        self.abouts.insert(about.clone());
        about
    }

    fn table_id(&mut self, at: ChainIndex, table: &Table) -> Arc<TableId> {
        let id = || Arc::new(TableId { ruleset: at.id, name: StrSlice::from(&*table.name) });
        self.tables.entry((at.id, at.table)).or_insert_with(id).clone()
    }

    /// Keeps every candidate that something still refers to, removes the others, and returns all
    /// plan rows, sorted.
    pub(super) fn resolve(mut self) -> Vec<Object> {
        for (at, reason) in self.needed_chains() {
            self.add_chain(Action::Keep, at, reason);
            self.chains.remove(&at);
        }
        let mut removed = BTreeSet::new();
        for (at, rule) in std::mem::take(&mut self.rules) {
            if rule.with.is_some_and(|chain| !self.chains.contains_key(&chain)) {
                self.add_rule(Action::Keep, at, Reason::LeadsToKept);
            } else if !self.chains.contains_key(&at.chain) {
                self.add_rule(Action::Remove, at, rule.reason);
                removed.insert(at);
            }
        }
        self.add_removed_chains();
        self.add_sets(&removed);
        // Most rows are already in order, and `sort` is fast on such input.
        self.rows.sort();
        self.rows.dedup();
        self.rows
    }

    /// Adds plan rows for the chains that are removed and for the rules in them.
    fn add_removed_chains(&mut self) {
        let chains = std::mem::take(&mut self.chains);
        let rules = |at: &ChainIndex| self.chain(*at).map_or(0, |(_, _, c)| c.rules.len());
        self.rows.reserve_exact(chains.keys().map(|at| 1 + rules(at)).sum());
        // Rows are sorted by name, and all chains come before all rules.
        let mut sorted: Vec<(&Name, ChainIndex, &Arc<Reason>)> = chains
            .iter()
            .filter_map(|(at, reason)| Some((&self.chain(*at)?.2.name, *at, reason)))
            .collect();
        sorted.sort_unstable();
        let start = self.rows.len();
        for (_, at, reason) in &sorted {
            self.add_chain(Action::Remove, *at, Arc::clone(reason));
        }
        for (row, (_, at, _)) in (start..).zip(&sorted) {
            let Some((ruleset, table, chain)) = self.chain(*at) else { continue };
            let table = self.table_id(*at, table);
            // A removed chain holds only rules of the chain's own owner, so the rules share the
            // chain's attributes.
            let about = self.rows[row].about.clone();
            let rule = |(position, rule)| Object {
                id: ObjectId::Rule {
                    table: table.clone(),
                    chain: chain.name.clone(),
                    position,
                    text: ruleset.shared_text(rule),
                },
                about: about.clone(),
            };
            self.rows.extend((0..).zip(&chain.rules).map(rule));
        }
        self.chains = chains;
    }

    /// The candidate chains that must be kept, each with the reason.
    fn needed_chains(&self) -> BTreeMap<ChainIndex, Reason> {
        let mut kept: BTreeMap<ChainIndex, Reason> = BTreeMap::new();
        let mut queue = Vec::new();
        if self.chains.is_empty() {
            return kept;
        }
        for at in self.chains.keys() {
            if let Some(reason) = self.foreign_rule(*at) {
                kept.insert(*at, reason);
                queue.push(*at);
            }
        }
        let names = self.candidates_by_name();
        for (at, ruleset, _, chain) in self.all_chains() {
            if self.chains.contains_key(&at) {
                continue;
            }
            for (position, rule) in chain.rules.iter().enumerate() {
                if self.rules.contains_key(&RuleIndex { chain: at, position }) {
                    continue;
                }
                self.keep_target(at, ruleset, rule, &names, &mut kept, &mut queue);
            }
        }
        while let Some(at) = queue.pop() {
            if let Some((ruleset, _, chain)) = self.chain(at) {
                for rule in &chain.rules {
                    self.keep_target(at, ruleset, rule, &names, &mut kept, &mut queue);
                }
            }
        }
        kept
    }

    fn keep_target(
        &self,
        from: ChainIndex,
        ruleset: &Ruleset,
        rule: &Rule,
        names: &HashMap<(RulesetId, usize, &str), ChainIndex>,
        kept: &mut BTreeMap<ChainIndex, Reason>,
        queue: &mut Vec<ChainIndex>,
    ) {
        let Some(target) = &rule.target else { return };
        let Some(&to) = names.get(&(from.id, from.table, &**target)) else { return };
        if let Entry::Vacant(entry) = kept.entry(to) {
            entry.insert(Reason::ReferencedBy(ruleset.rule_text(rule).to_owned()));
            queue.push(to);
        }
    }

    fn candidates_by_name(&self) -> HashMap<(RulesetId, usize, &'a str), ChainIndex> {
        let name = |at: &ChainIndex| {
            let (_, _, chain) = self.chain(*at)?;
            Some(((at.id, at.table, &*chain.name), *at))
        };
        self.chains.keys().filter_map(name).collect()
    }

    /// The reason to keep a chain that holds a rule of another owner; `None` if it holds no such
    /// rule.
    fn foreign_rule(&self, at: ChainIndex) -> Option<Reason> {
        let (ruleset, table, chain) = self.chain(at)?;
        let owner = self.owner(at.id, table, chain);
        let owners = self.ownership.rule_attributions(at.id, &table.name, &chain.name);
        let other = |(rule, attribution): (&Rule, _)| {
            let other = self.ownership.name(attribution);
            (other != owner).then(|| Reason::HoldsForeignRule {
                owner: (other != UNKNOWN).then(|| other.to_owned()),
                rule: ruleset.rule_text(rule).to_owned(),
            })
        };
        chain.rules.iter().zip(owners.iter().copied()).find_map(other)
    }

    fn chain(&self, at: ChainIndex) -> Option<(&'a Ruleset, &'a Table, &'a Chain)> {
        let ruleset = self.state.rulesets.get(&at.id)?;
        let table = ruleset.tables.get(at.table)?;
        Some((ruleset, table, table.chains.get(at.chain)?))
    }

    /// Adds a plan row for a chain whose action is decided.
    pub(super) fn add_chain(
        &mut self,
        action: Action,
        at: ChainIndex,
        reason: impl Into<Arc<Reason>>,
    ) {
        let Some((_, table, chain)) = self.chain(at) else { return };
        let owner = self.owner(at.id, table, chain).into();
        let reason = reason.into();
        let about = self.about(About { action, owner, reason, details: StrSlice::default() });
        let id = ObjectId::Chain { table: self.table_id(at, table), name: chain.name.clone() };
        self.rows.push(Object { id, about });
    }

    /// Adds a plan row for a rule whose action is decided.
    pub(super) fn add_rule(&mut self, action: Action, at: RuleIndex, reason: Reason) {
        let Some((ruleset, table, chain)) = self.chain(at.chain) else { return };
        let (Some(rule), Ok(position)) = (chain.rules.get(at.position), u32::try_from(at.position))
        else {
            return;
        };
        let owners = self.ownership;
        let owner = owners.rule_attribution(at.chain.id, &table.name, &chain.name, at.position);
        let about = self.about(About {
            action,
            owner: owners.name(owner).into(),
            reason: Arc::new(reason),
            details: StrSlice::default(),
        });
        let id = ObjectId::Rule {
            table: self.table_id(at.chain, table),
            chain: chain.name.clone(),
            position,
            text: ruleset.shared_text(rule),
        };
        self.rows.push(Object { id, about });
    }
}

/// A chain that has an entry in the catalogue.
pub(super) struct OwnedChain<'a> {
    pub(super) at: ChainIndex,
    pub(super) table: &'a Table,
    pub(super) chain: &'a Chain,
    pub(super) entry: &'a ChainEntry,
}

/// A rule, with the chain, table and ruleset that hold it.
#[derive(Clone, Copy)]
pub(super) struct RuleContext<'a> {
    pub(super) id: RulesetId,
    pub(super) ruleset: &'a Ruleset,
    pub(super) table: &'a Table,
    pub(super) chain: &'a Chain,
    pub(super) rule: &'a Rule,
    pub(super) position: usize,
}

/// A plan row for an ipset, a virtual server, a link or a native table.
pub(super) struct PlanRow<'a> {
    pub(super) action: Action,
    pub(super) id: ObjectId,
    pub(super) owner: &'a str,
    pub(super) reason: Reason,
    pub(super) details: String,
}
