//! Candidates for removal, until it is clear what still refers to them.

mod sets;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::owners::catalogue::Catalogue;
use crate::owners::component::ChainEntry;
use crate::owners::matcher::{Ownership, UNKNOWN};
use crate::plan::{About, Action, Object, ObjectKind};
use crate::state::ruleset::{Chain, Name, Rule, Ruleset, Table};
use crate::state::shared_str::StrSlice;
use crate::state::{Family, NodeState, RulesetId};

/// A chain, by its context in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::plan) struct ChainIndex {
    pub(in crate::plan) id: RulesetId,
    pub(in crate::plan) table: usize,
    pub(in crate::plan) chain: usize,
}

/// A rule, by its chain and its position in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::plan) struct RuleIndex {
    pub(in crate::plan) chain: ChainIndex,
    pub(in crate::plan) position: usize,
}

struct RuleCandidate {
    reason: String,
    /// It goes only together with that chain.
    with: Option<ChainIndex>,
}

/// What may go, and what was found to stay.
pub(in crate::plan) struct Candidates<'a> {
    pub(in crate::plan) catalogue: &'a Catalogue,
    pub(in crate::plan) state: &'a NodeState,
    pub(in crate::plan) ownership: &'a Ownership<'a>,
    by_owner: HashMap<&'a str, Vec<ChainIndex>>,
    chains: BTreeMap<ChainIndex, StrSlice>,
    rules: BTreeMap<RuleIndex, RuleCandidate>,
    sets: BTreeMap<String, String>,
    abouts: BTreeSet<Arc<About>>,
    rows: Vec<Object>,
}

impl<'a> Candidates<'a> {
    pub(in crate::plan) fn new(
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
            abouts: BTreeSet::new(),
            rows: Vec::new(),
        };
        for (at, _, table, chain) in candidates.all_chains() {
            let owner = candidates.owner(at.id, table, chain);
            candidates.by_owner.entry(owner).or_default().push(at);
        }
        candidates
    }

    /// The chains of an owner, each with what the catalogue says of it.
    pub(in crate::plan) fn chains_of(&self, owner: &str) -> Vec<OwnedChain<'a>> {
        let owned = |at: &ChainIndex| {
            let (_, table, chain) = self.chain(*at)?;
            let entry = self.ownership.chain_entry(at.id, &table.name, &chain.name)?;
            Some(OwnedChain { at: *at, table, chain, entry })
        };
        self.by_owner.get(owner).into_iter().flatten().filter_map(owned).collect()
    }

    /// Every chain of the node, with its table.
    pub(in crate::plan) fn all_chains(
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

    /// Every rule of the built-in chains, with its target's chain if it leads to one.
    pub(in crate::plan) fn built_in_rules(
        &self,
    ) -> impl Iterator<Item = (RuleIndex, RuleContext<'a>, Option<ChainIndex>)> + use<'a> {
        let ownership = self.ownership;
        let built_in = self.all_chains().filter(|(.., chain)| chain.is_built_in());
        built_in.flat_map(move |(at, ruleset, table, chain)| {
            chain.rules.iter().enumerate().map(move |(position, rule)| {
                let context = |to: &Name| ownership.chain_index(at.id, &table.name, to);
                let to = rule.target.as_ref().and_then(context);
                let to = to.map(|chain| ChainIndex { chain, ..at });
                let context = RuleContext { id: at.id, ruleset, table, chain, rule, position };
                (RuleIndex { chain: at, position }, context, to)
            })
        })
    }

    /// The name of the owner of a chain.
    pub(in crate::plan) fn owner(&self, id: RulesetId, table: &Table, chain: &Chain) -> &'a str {
        self.ownership.chain_name(id, &table.name, &chain.name)
    }

    pub(in crate::plan) fn propose_chain(&mut self, at: ChainIndex, reason: impl Into<String>) {
        let reason = StrSlice::from(reason.into());
        // Thousands of chains go for one reason.
        let last = self.chains.last_key_value().map(|(_, last)| last).filter(|l| **l == reason);
        let reason = last.cloned().unwrap_or(reason);
        self.chains.insert(at, reason);
    }

    pub(in crate::plan) fn is_candidate(&self, at: ChainIndex) -> bool {
        self.chains.contains_key(&at)
    }

    /// A rule in a chain that stays may go, `with` a chain if it leads there.
    pub(in crate::plan) fn propose_rule(
        &mut self,
        at: RuleIndex,
        with: Option<ChainIndex>,
        reason: impl Into<String>,
    ) {
        self.rules.insert(at, RuleCandidate { reason: reason.into(), with });
    }

    pub(in crate::plan) fn propose_set(&mut self, name: &str, reason: impl Into<String>) {
        self.sets.insert(name.to_owned(), reason.into());
    }

    pub(in crate::plan) fn keep_chain(&mut self, at: ChainIndex, reason: impl Into<String>) {
        let row = self.chain_row(Action::Keep, at, reason.into().into());
        self.rows.extend(row);
    }

    pub(in crate::plan) fn keep_rule(&mut self, at: RuleIndex, reason: impl Into<String>) {
        let row = self.rule_row(Action::Keep, at, &reason.into());
        self.rows.extend(row);
    }

    /// A row for something that is neither a chain nor a rule.
    pub(in crate::plan) fn row(&mut self, action: Action, kind: ObjectKind, row: PlanRow<'_>) {
        let about = self.about(About {
            family: row.family,
            backend: row.backend.into(),
            table: None,
            owner: row.owner.into(),
            reason: row.reason.into(),
        });
        let (name, text) = (row.name.into(), row.text.into());
        self.rows.push(Object { action, kind, about, name, position: None, text });
    }

    /// Thousands of objects have the same in common: it is kept once.
    fn about(&mut self, about: About) -> Arc<About> {
        if let Some(known) = self.abouts.get(&about) {
            return known.clone();
        }
        let about = Arc::new(about);
        self.abouts.insert(about.clone());
        about
    }

    /// Takes back every candidate that something else still needs, and lists the rest, sorted.
    pub(in crate::plan) fn resolve(mut self) -> Vec<Object> {
        let kept = self.kept();
        for (at, reason) in &kept {
            let row = self.chain_row(Action::Keep, *at, reason.as_str().into());
            self.rows.extend(row);
            self.chains.remove(at);
        }
        let rules = std::mem::take(&mut self.rules);
        let (goes, stays): (Vec<_>, Vec<_>) = rules
            .into_iter()
            .partition(|(_, r)| r.with.is_none_or(|chain| self.chains.contains_key(&chain)));
        for (at, _) in stays {
            let reason = "leads to a chain that stays".to_owned();
            let row = self.rule_row(Action::Keep, at, &reason);
            self.rows.extend(row);
        }
        let goes: BTreeMap<RuleIndex, String> = goes
            .into_iter()
            .filter(|(at, _)| !self.chains.contains_key(&at.chain))
            .map(|(at, rule)| (at, rule.reason))
            .collect();
        for (at, reason) in &goes {
            let row = self.rule_row(Action::Remove, *at, reason);
            self.rows.extend(row);
        }
        self.removed_chains();
        let removed = |at: &RuleIndex| goes.contains_key(at) || self.chains.contains_key(&at.chain);
        let rows = sets::rows(&self, &self.sets, removed);
        self.rows.extend(rows);
        // Most of them are sorted already, which this makes use of.
        self.rows.sort();
        self.rows.dedup();
        self.rows
    }

    fn removed_chains(&mut self) {
        let chains = std::mem::take(&mut self.chains);
        let rules = |at: &ChainIndex| self.chain(*at).map_or(0, |(_, _, c)| c.rules.len());
        self.rows.reserve_exact(chains.keys().map(|at| 1 + rules(at)).sum());
        // In the order of rows: by name, all chains before all rules.
        let mut sorted: Vec<(&Name, ChainIndex, &StrSlice)> = chains
            .iter()
            .filter_map(|(at, reason)| Some((&self.chain(*at)?.2.name, *at, reason)))
            .collect();
        sorted.sort_unstable();
        let start = self.rows.len();
        for (_, at, reason) in &sorted {
            let row = self.chain_row(Action::Remove, *at, StrSlice::clone(reason));
            self.rows.extend(row);
        }
        let end = self.rows.len();
        for (i, (_, at, _)) in (start..end).zip(&sorted) {
            let Some((ruleset, _, chain)) = self.chain(*at) else { continue };
            // A chain goes only with rules of its own owner: they share what is said of it.
            let row = self.rows[i].clone();
            self.rows.extend((0..).zip(&chain.rules).map(|(position, rule)| Object {
                kind: ObjectKind::Rule,
                position: Some(position),
                text: ruleset.shared_text(rule),
                ..row.clone()
            }));
        }
        self.chains = chains;
    }

    /// The candidates that stay, each with the reason.
    fn kept(&self) -> BTreeMap<ChainIndex, String> {
        let mut kept: BTreeMap<ChainIndex, String> = BTreeMap::new();
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
        kept: &mut BTreeMap<ChainIndex, String>,
        queue: &mut Vec<ChainIndex>,
    ) {
        let Some(target) = &rule.target else { return };
        let Some(&to) = names.get(&(from.id, from.table, &**target)) else { return };
        if let std::collections::btree_map::Entry::Vacant(entry) = kept.entry(to) {
            entry.insert(format!("still referenced by `{}`", ruleset.rule_text(rule)));
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

    /// Why a chain stays that holds a rule of another owner.
    fn foreign_rule(&self, at: ChainIndex) -> Option<String> {
        let (ruleset, table, chain) = self.chain(at)?;
        let owner = self.owner(at.id, table, chain);
        let owners = self.ownership.rule_attributions(at.id, &table.name, &chain.name);
        chain.rules.iter().zip(owners).find_map(|(rule, a)| {
            let other = self.ownership.name(*a);
            let whose = if other == UNKNOWN { "unknown owner" } else { other };
            let text = ruleset.rule_text(rule);
            (other != owner).then(|| format!("holds a rule of {whose}: `{text}`"))
        })
    }

    fn chain(&self, at: ChainIndex) -> Option<(&'a Ruleset, &'a Table, &'a Chain)> {
        let ruleset = self.state.rulesets.get(&at.id)?;
        let table = ruleset.tables.get(at.table)?;
        Some((ruleset, table, table.chains.get(at.chain)?))
    }

    fn chain_row(&mut self, action: Action, at: ChainIndex, reason: StrSlice) -> Option<Object> {
        let (_, table, chain) = self.chain(at)?;
        let owner = self.owner(at.id, table, chain);
        let about = self.about(in_table(at.id, table, owner, reason));
        let (kind, name) = (ObjectKind::Chain, chain.name.clone());
        // No text: an empty part of one that there is anyhow.
        let text = name.empty();
        Some(Object { action, kind, about, name, position: None, text })
    }

    fn rule_row(&mut self, action: Action, at: RuleIndex, reason: &str) -> Option<Object> {
        let (ruleset, table, chain) = self.chain(at.chain)?;
        let rule = chain.rules.get(at.position)?;
        let id = at.chain.id;
        let owner = self.ownership.rule_attribution(id, &table.name, &chain.name, at.position);
        let owner = self.ownership.name(owner);
        let about = self.about(in_table(id, table, owner, reason.into()));
        let (kind, position) = (ObjectKind::Rule, u32::try_from(at.position).ok());
        let (name, text) = (chain.name.clone(), ruleset.shared_text(rule));
        Some(Object { action, kind, about, name, position, text })
    }
}

fn in_table(id: RulesetId, table: &Table, owner: &str, reason: StrSlice) -> About {
    About {
        family: Some(id.family),
        backend: id.backend.to_string().into(),
        table: Some(StrSlice::from(&*table.name)),
        owner: owner.into(),
        reason,
    }
}

/// A chain that the catalogue knows.
pub(in crate::plan) struct OwnedChain<'a> {
    pub(in crate::plan) at: ChainIndex,
    pub(in crate::plan) table: &'a Table,
    pub(in crate::plan) chain: &'a Chain,
    pub(in crate::plan) entry: &'a ChainEntry,
}

/// A rule with all that it stands in.
#[derive(Clone, Copy)]
pub(in crate::plan) struct RuleContext<'a> {
    pub(in crate::plan) id: RulesetId,
    pub(in crate::plan) ruleset: &'a Ruleset,
    pub(in crate::plan) table: &'a Table,
    pub(in crate::plan) chain: &'a Chain,
    pub(in crate::plan) rule: &'a Rule,
    pub(in crate::plan) position: usize,
}

/// What a row says of a set, a virtual server, a link or a table.
pub(in crate::plan) struct PlanRow<'a> {
    pub(in crate::plan) family: Option<Family>,
    pub(in crate::plan) backend: &'a str,
    pub(in crate::plan) name: &'a str,
    pub(in crate::plan) text: String,
    pub(in crate::plan) owner: &'a str,
    pub(in crate::plan) reason: String,
}
