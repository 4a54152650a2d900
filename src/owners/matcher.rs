//! Gives every object of a node state exactly one owner, or the owner `unknown`.
//!
//! The order of evidence is that of `reference/owners.md`, rule 1.2. A rule in a component's own
//! chain is the component's if it has one of the forms that the component writes there. For a rule
//! in a built-in chain the evidence is, in this order: the jump's target, the comment, the ipset,
//! the link, the bare shape.

use std::collections::BTreeMap;

use crate::owners::attribution::{
    Attribution, ChainOwners, Evidence, KERNEL_ID, NOTHING, OPERATOR_ID, TableOwners, UNOWNED,
    attributed,
};
use crate::owners::catalogue::{Catalogue, EntryId};
use crate::owners::component::{ChainEntry, Component, KUBE_PROXY};
use crate::owners::liveness::liveness;
use crate::owners::rules::Matcher;
use crate::owners::servers::Servers;
use crate::state::ipvs::{VirtualServer, VirtualServerId};
use crate::state::nft::NftTable;
use crate::state::object::ObjectId;
use crate::state::ruleset::Table;
use crate::state::{NodeState, RulesetId};

/// The owner of objects that match no entry of the catalogue.
pub const UNKNOWN: &str = "unknown";
/// The owner of the operator's own rules, in chains such as DOCKER-USER.
pub const OPERATOR: &str = "operator";
/// The owner of built-in chains, which exist without any component.
pub const KERNEL: &str = "kernel";

/// The owner of an object, with the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The component's name, or [`UNKNOWN`], [`OPERATOR`], [`KERNEL`].
    pub name: &'a str,
    /// Which kind of evidence shows the owner.
    pub evidence: Evidence,
    /// The evidence, as a phrase for people.
    pub reason: String,
}

/// How many objects of each kind an owner has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// xtables chains, except built-in ones.
    pub chains: usize,
    /// xtables rules.
    pub rules: usize,
    /// ipsets.
    pub sets: usize,
    /// ipvs virtual servers.
    pub virtual_servers: usize,
    /// Links.
    pub links: usize,
    /// Native nf_tables tables.
    pub tables: usize,
}

/// The owner of each object of one node state.
#[derive(Debug)]
pub struct Ownership<'c> {
    catalogue: &'c Catalogue,
    rulesets: BTreeMap<RulesetId, Vec<TableOwners>>,
    sets: BTreeMap<String, Attribution>,
    links: BTreeMap<String, Attribution>,
    servers: BTreeMap<VirtualServerId, Attribution>,
    tables: BTreeMap<(String, String), Attribution>,
}

impl<'c> Ownership<'c> {
    /// Finds the owner of each object.
    pub fn of(catalogue: &'c Catalogue, state: &NodeState) -> Ownership<'c> {
        let matcher = Matcher { catalogue, absent: absent(catalogue, state) };
        let rulesets =
            state.rulesets.iter().map(|(id, ruleset)| (*id, matcher.ruleset(ruleset))).collect();
        let named =
            |e: Option<EntryId>| e.map_or(NOTHING, |e| attributed(e.component, Evidence::Name));
        let sets = state.ipsets.sets.iter();
        let links = state.links.iter();
        let tables = state.native_tables().into_iter().map(|t| {
            let owner = match catalogue.native_table(t) {
                Some((entry, Some(_))) => {
                    attributed(UNOWNED, Evidence::UnexpectedPart(entry.component))
                }
                found => named(found.map(|(entry, _)| entry)),
            };
            ((t.family.clone(), t.name.clone()), owner)
        });
        Ownership {
            catalogue,
            sets: sets.map(|s| (s.name.clone(), named(catalogue.sets.first(&s.name)))).collect(),
            links: links.map(|l| (l.name.clone(), named(catalogue.links.first(&l.name)))).collect(),
            servers: servers(catalogue, state),
            tables: tables.collect(),
            rulesets,
        }
    }

    /// The catalogue that the owners come from.
    pub fn catalogue(&self) -> &'c Catalogue {
        self.catalogue
    }

    /// The owner of a chain; `None` if the chain does not exist.
    pub fn chain(&self, id: RulesetId, table: &str, chain: &str) -> Option<Owner<'_>> {
        let found = self.chain_owners(id, table, chain)?;
        Some(self.owner(found.chain))
    }

    /// The owner of a rule, given its position in its chain, from 0; `None` if the rule does not
    /// exist.
    pub fn rule(
        &self,
        id: RulesetId,
        table: &str,
        chain: &str,
        position: usize,
    ) -> Option<Owner<'_>> {
        let found = self.chain_owners(id, table, chain)?;
        Some(self.owner(*found.rules.get(position)?))
    }

    /// The owner of an ipset.
    pub fn set(&self, name: &str) -> Option<Owner<'_>> {
        self.sets.get(name).map(|a| self.owner(*a))
    }

    /// The owner of a link.
    pub fn link(&self, name: &str) -> Option<Owner<'_>> {
        self.links.get(name).map(|a| self.owner(*a))
    }

    /// The owner of a virtual server.
    pub fn virtual_server(&self, service: &VirtualServerId) -> Option<Owner<'_>> {
        self.servers.get(service).map(|a| self.owner(*a))
    }

    /// The owner of a native nf_tables table, given nft's name of the family (`ip`, `inet`) and the
    /// table's name.
    pub fn table(&self, family: &str, name: &str) -> Option<Owner<'_>> {
        self.tables.get(&(family.to_owned(), name.to_owned())).map(|a| self.owner(*a))
    }

    /// The owner of an object; `None` if the object is not in this state.
    pub fn of_object(&self, id: &ObjectId) -> Option<Owner<'_>> {
        match id {
            ObjectId::NativeTable { family, name } => self.table(family, name),
            ObjectId::Chain { table, name } => self.chain(table.ruleset, &table.name, name),
            ObjectId::Rule { table, chain, position, .. } => {
                self.rule(table.ruleset, &table.name, chain, *position as usize)
            }
            ObjectId::Set { name, .. } => self.set(name),
            ObjectId::VirtualServer(service) => self.virtual_server(service),
            ObjectId::RealServer(real) => self.virtual_server(&real.service),
            ObjectId::Link { name } => self.link(name),
        }
    }

    /// How many objects each owner has, keyed by owner. Built-in chains are not counted.
    pub fn counts(&self) -> BTreeMap<&str, Counts> {
        let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
        for table in self.rulesets.values().flatten() {
            for chain in &table.chains {
                if chain.chain.component != KERNEL_ID {
                    counts.entry(self.name(chain.chain)).or_default().chains += 1;
                }
                for rule in &chain.rules {
                    counts.entry(self.name(*rule)).or_default().rules += 1;
                }
            }
        }
        for set in self.sets.values() {
            counts.entry(self.name(*set)).or_default().sets += 1;
        }
        for link in self.links.values() {
            counts.entry(self.name(*link)).or_default().links += 1;
        }
        for server in self.servers.values() {
            counts.entry(self.name(*server)).or_default().virtual_servers += 1;
        }
        for table in self.tables.values() {
            counts.entry(self.name(*table)).or_default().tables += 1;
        }
        counts
    }

    /// The attribution of a rule: its owner's index and the evidence, without a phrase for people.
    pub(crate) fn rule_attribution(
        &self,
        id: RulesetId,
        table: &str,
        chain: &str,
        position: usize,
    ) -> Attribution {
        self.rule_attributions(id, table, chain).get(position).copied().unwrap_or(NOTHING)
    }

    /// The attributions of all rules of a chain, in order. See [`Self::rule_attribution`].
    pub(crate) fn rule_attributions(
        &self,
        id: RulesetId,
        table: &str,
        chain: &str,
    ) -> &[Attribution] {
        self.chain_owners(id, table, chain).map_or(&[][..], |c| &c.rules)
    }

    /// The catalogue's entry for a chain, if it has one.
    pub(crate) fn chain_entry(
        &self,
        id: RulesetId,
        table: &str,
        chain: &str,
    ) -> Option<&'c ChainEntry> {
        let entry = self.chain_owners(id, table, chain)?.entry?;
        self.catalogue.at(entry).chains.get(usize::from(entry.item))
    }

    /// The index of a chain among the chains of its table.
    pub(crate) fn chain_index(&self, id: RulesetId, table: &str, chain: &str) -> Option<usize> {
        let table = self.rulesets.get(&id)?.iter().find(|t| &*t.name == table)?;
        table.index.get(chain).copied()
    }

    /// The name of a chain's owner.
    pub(crate) fn chain_name(&self, id: RulesetId, table: &str, chain: &str) -> &'c str {
        self.chain_owners(id, table, chain).map_or(UNKNOWN, |c| self.name(c.chain))
    }

    fn chain_owners(&self, id: RulesetId, table: &str, chain: &str) -> Option<&ChainOwners> {
        let table = self.rulesets.get(&id)?.iter().find(|t| &*t.name == table)?;
        table.index.get(chain).map(|&i| &table.chains[i])
    }

    /// The owner's name.
    pub(crate) fn name(&self, a: Attribution) -> &'c str {
        match a.component {
            UNOWNED => UNKNOWN,
            OPERATOR_ID => OPERATOR,
            KERNEL_ID => KERNEL,
            c => &self.catalogue.components[usize::from(c)].name,
        }
    }

    fn owner(&self, a: Attribution) -> Owner<'_> {
        Owner { name: self.name(a), evidence: a.evidence, reason: self.reason(a) }
    }

    fn reason(&self, a: Attribution) -> String {
        let name = self.name(a);
        match a.evidence {
            Evidence::Name => format!("{name}'s by its name"),
            Evidence::InChain => format!("in a chain of {name}'s"),
            Evidence::ForOperators => "in a chain that is there for operators' rules".into(),
            Evidence::UnexpectedForm(c) => {
                let chain = &self.catalogue.components[usize::from(c)].name;
                format!("in a chain of {chain}'s, which writes no such rule")
            }
            Evidence::UnexpectedPart(c) => {
                let component = &self.catalogue.components[usize::from(c)].name;
                format!("has a name of {component}'s, and a part that this does not write")
            }
            Evidence::Hook(i) => {
                let hooks = self.component(a).map_or(&[][..], |c| &c.hooks);
                let to = hooks.get(usize::from(i)).map_or("", |h| &h.to);
                format!("{name}'s jump to {to}, by its comment")
            }
            Evidence::Target => format!("jumps to a chain of {name}'s"),
            Evidence::Comment => format!("{name}'s by its comment"),
            Evidence::Set => format!("matches a set of {name}'s"),
            Evidence::Link => format!("names a link of {name}'s"),
            Evidence::Shape(i) => {
                let shapes = self.component(a).map_or(&[][..], |c| &c.rules);
                match shapes.get(usize::from(i)) {
                    Some(shape) if shape.weak => {
                        format!("probably {name}'s, by its shape alone (`{}`)", shape.rule)
                    }
                    Some(shape) => format!("{name}'s by its shape (`{}`)", shape.rule),
                    None => format!("{name}'s by its shape"),
                }
            }
            Evidence::ServedByKubeProxy => "on kube-ipvs0 or in kube-proxy's sets".into(),
            Evidence::SoleCandidate => {
                format!("not on kube-ipvs0 nor in kube-proxy's sets, and {name} runs here")
            }
            Evidence::Kernel => "built in".into(),
            Evidence::Nothing => "nothing in the catalogue fits".into(),
        }
    }

    fn component(&self, a: Attribution) -> Option<&Component> {
        self.catalogue.components.get(usize::from(a.component))
    }
}

/// Of each component of the catalogue: whether it is gone, and no link, chain or native table has a
/// name of it either. Only components with a shape for which that matters are looked for.
fn absent(catalogue: &Catalogue, state: &NodeState) -> Vec<bool> {
    let tables = state.native_tables();
    let is_there = |number: u16| {
        let of = |entry: Option<EntryId>| entry.is_some_and(|e| e.component == number);
        let has_chain = |table: &Table| {
            let mut chains = table.chains.iter().filter(|chain| !chain.is_built_in());
            chains.any(|chain| of(catalogue.chain_entry(&table.name, &chain.name)))
        };
        let is_its_table = |table: &&NftTable| of(catalogue.native_table(table).map(|(e, _)| e));
        state.links.iter().any(|link| of(catalogue.links.first(&link.name)))
            || state.rulesets.values().any(|ruleset| ruleset.tables.iter().any(has_chain))
            || tables.iter().any(is_its_table)
    };
    let absent = |(number, component): (u16, &Component)| {
        component.rules.iter().any(|shape| shape.not_alone)
            && liveness(component, state).is_gone()
            && !is_there(number)
    };
    (0..).zip(catalogue.components.iter()).map(absent).collect()
}

/// The owners of the virtual servers. The owner is kube-proxy if kube-proxy serves the address or
/// port; otherwise, it is the component other than kube-proxy that makes virtual servers, if
/// exactly one such component is alive.
fn servers(catalogue: &Catalogue, state: &NodeState) -> BTreeMap<VirtualServerId, Attribution> {
    if state.ipvs.servers.is_empty() {
        return BTreeMap::new();
    }
    let number = |name| catalogue.components.iter().position(|c| c.name == name);
    let proxy = number(KUBE_PROXY).and_then(|i| u16::try_from(i).ok()).unwrap_or(UNOWNED);
    let is_other_maker = |c: &&Component| c.virtual_servers && liveness(c, state).is_alive();
    let mut makers = catalogue.components.iter().filter(is_other_maker);
    let only = match (makers.next(), makers.next()) {
        (Some(one), None) => number(&one.name).and_then(|i| u16::try_from(i).ok()),
        _ => None,
    };
    let served = Servers::of(state);
    let owner = |s: &VirtualServer| match (served.serves(s), only) {
        (true, _) => attributed(proxy, Evidence::ServedByKubeProxy),
        (false, Some(one)) => attributed(one, Evidence::SoleCandidate),
        (false, None) => NOTHING,
    };
    state.ipvs.servers.iter().map(|s| (s.service, owner(s))).collect()
}
