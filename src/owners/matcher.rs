//! Gives every object of a node state exactly one owner, or `unknown`.
//!
//! The order is that of `reference/owners.md`, rule 1.2: in a chain of its own, the chain's owner,
//! if the rule looks like one of its; in a built-in chain the jump's target, the comment, the
//! ipset, the link, the bare shape.

use std::collections::{BTreeMap, HashMap};

use crate::owners::catalogue::{Catalogue, Component, Entry, Shape};
use crate::owners::content::Reading;
use crate::owners::life;
use crate::owners::servers::Servers;
use crate::owners::template::Template;
use crate::state::ruleset::{Chain, Name, Rule, Ruleset, Table};
use crate::state::{NodeState, RulesetId};

/// The owner of what the catalogue does not know.
pub const UNKNOWN: &str = "unknown";
/// The owner of what an operator put into a chain that is there for operators.
pub const OPERATOR: &str = "operator";
/// The owner of built-in chains.
pub const KERNEL: &str = "kernel";

/// Why an object has the owner it has: the entry of the catalogue that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its own name.
    Name,
    /// It stands in the owner's chain.
    InChain,
    /// It stands in a chain whose content is the operator's.
    ForOperators,
    /// It stands in a chain of that component's, which writes no such rules.
    NotItsForm(u16),
    /// It is the owner's hook of that number.
    Hook(u16),
    /// It jumps to the owner's chain.
    Target,
    /// Its comment.
    Comment,
    /// The ipset it matches.
    Set,
    /// The link it matches.
    Link,
    /// It has the owner's shape of that number.
    Shape(u16),
    /// It is kube-proxy's by its address, or port, in kube-ipvs0 or the sets.
    Served,
    /// The owner alone makes such objects and runs here.
    OnlyOne,
    /// It is part of the kernel.
    Kernel,
    /// Nothing in the catalogue fits.
    Nothing,
}

/// A component's number, with why; the last numbers stand for operator, kernel and unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attribution {
    pub(crate) component: u16,
    pub(crate) why: Why,
}

const NO_ONE: u16 = u16::MAX;
const THE_OPERATOR: u16 = u16::MAX - 1;
const THE_KERNEL: u16 = u16::MAX - 2;

pub(crate) const fn attributed(component: u16, why: Why) -> Attribution {
    Attribution { component, why }
}

pub(crate) const NOTHING: Attribution = attributed(NO_ONE, Why::Nothing);

/// An owner, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner<'a> {
    /// The component's name, or [`UNKNOWN`], [`OPERATOR`], [`KERNEL`].
    pub name: &'a str,
    /// Why, as data.
    pub why: Why,
    /// Why, in words.
    pub reason: String,
}

/// How many objects an owner has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// xtables chains, built-in ones aside.
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

#[derive(Debug)]
struct ChainOwners {
    chain: Attribution,
    rules: Vec<Attribution>,
}

#[derive(Debug)]
struct TableOwners {
    name: Name,
    index: HashMap<Name, usize>,
    chains: Vec<ChainOwners>,
}

/// The owner of each object of one node state.
#[derive(Debug)]
pub struct Ownership<'c> {
    catalogue: &'c Catalogue,
    rulesets: BTreeMap<RulesetId, Vec<TableOwners>>,
    sets: BTreeMap<String, Attribution>,
    links: BTreeMap<String, Attribution>,
    servers: Vec<Attribution>,
    tables: BTreeMap<(String, String), Attribution>,
}

impl<'c> Ownership<'c> {
    /// Finds the owner of each object.
    pub fn of(catalogue: &'c Catalogue, state: &NodeState) -> Ownership<'c> {
        let matcher = Matcher { catalogue };
        let rulesets =
            state.rulesets.iter().map(|(id, ruleset)| (*id, matcher.ruleset(ruleset))).collect();
        let named = |e: Option<Entry>| e.map_or(NOTHING, |e| attributed(e.component, Why::Name));
        let sets = state.ipsets.sets.iter();
        let links = state.links.iter();
        let tables = state.native_tables().into_iter().map(|t| {
            let name = format!("{} {}", t.family, t.name);
            ((t.family.clone(), t.name.clone()), named(catalogue.nft_tables.first(&name)))
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

    /// The catalogue it was found with.
    pub fn catalogue(&self) -> &'c Catalogue {
        self.catalogue
    }

    /// The owner of a chain; none if there is no such chain.
    pub fn chain(&self, id: RulesetId, table: &str, chain: &str) -> Option<Owner<'_>> {
        let found = self.chain_owners(id, table, chain)?;
        Some(self.owner(found.chain))
    }

    /// The owner of a rule by its position in its chain, from 0; none if there is no such rule.
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

    /// The owner of a virtual server, by its place in the state.
    pub fn virtual_server(&self, place: usize) -> Option<Owner<'_>> {
        self.servers.get(place).map(|a| self.owner(*a))
    }

    /// The owner of a native nf_tables table, by nft's family and its name.
    pub fn table(&self, family: &str, name: &str) -> Option<Owner<'_>> {
        self.tables.get(&(family.to_owned(), name.to_owned())).map(|a| self.owner(*a))
    }

    /// How many objects each owner has, built-in chains aside.
    pub fn counts(&self) -> BTreeMap<&str, Counts> {
        let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
        for table in self.rulesets.values().flatten() {
            for chain in &table.chains {
                if chain.chain.component != THE_KERNEL {
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
        for server in &self.servers {
            counts.entry(self.name(*server)).or_default().virtual_servers += 1;
        }
        for table in self.tables.values() {
            counts.entry(self.name(*table)).or_default().tables += 1;
        }
        counts
    }

    /// The component that owns a rule, without words.
    pub(crate) fn rule_attribution(
        &self,
        id: RulesetId,
        table: &str,
        chain: &str,
        position: usize,
    ) -> Attribution {
        let found = self.chain_owners(id, table, chain);
        found.and_then(|c| c.rules.get(position)).copied().unwrap_or(NOTHING)
    }

    /// The name of a chain's owner.
    pub(crate) fn chain_name(&self, id: RulesetId, table: &str, chain: &str) -> &'c str {
        self.chain_owners(id, table, chain).map_or(UNKNOWN, |c| self.name(c.chain))
    }

    fn chain_owners(&self, id: RulesetId, table: &str, chain: &str) -> Option<&ChainOwners> {
        let table = self.rulesets.get(&id)?.iter().find(|t| &*t.name == table)?;
        table.index.get(chain).map(|&i| &table.chains[i])
    }

    /// The name of an owner.
    pub(crate) fn name(&self, a: Attribution) -> &'c str {
        match a.component {
            NO_ONE => UNKNOWN,
            THE_OPERATOR => OPERATOR,
            THE_KERNEL => KERNEL,
            c => &self.catalogue.components[usize::from(c)].name,
        }
    }

    fn owner(&self, a: Attribution) -> Owner<'_> {
        Owner { name: self.name(a), why: a.why, reason: self.reason(a) }
    }

    fn reason(&self, a: Attribution) -> String {
        let name = self.name(a);
        match a.why {
            Why::Name => format!("{name}'s by its name"),
            Why::InChain => format!("in a chain of {name}'s"),
            Why::ForOperators => "in a chain that is there for operators' rules".into(),
            Why::NotItsForm(c) => {
                let chain = &self.catalogue.components[usize::from(c)].name;
                format!("in a chain of {chain}'s, which writes no such rule")
            }
            Why::Hook(i) => {
                let hooks = self.component(a).map_or(&[][..], |c| &c.hooks);
                let to = hooks.get(usize::from(i)).map_or("", |h| &h.to);
                format!("{name}'s jump to {to}, by its comment")
            }
            Why::Target => format!("jumps to a chain of {name}'s"),
            Why::Comment => format!("{name}'s by its comment"),
            Why::Set => format!("matches a set of {name}'s"),
            Why::Link => format!("names a link of {name}'s"),
            Why::Shape(i) => {
                let shapes = self.component(a).map_or(&[][..], |c| &c.rules);
                match shapes.get(usize::from(i)) {
                    Some(shape) if shape.weak => {
                        format!("probably {name}'s, by its shape alone (`{}`)", shape.rule)
                    }
                    Some(shape) => format!("{name}'s by its shape (`{}`)", shape.rule),
                    None => format!("{name}'s by its shape"),
                }
            }
            Why::Served => "on kube-ipvs0 or in kube-proxy's sets".into(),
            Why::OnlyOne => {
                format!("not on kube-ipvs0 nor in kube-proxy's sets, and {name} runs here")
            }
            Why::Kernel => "built in".into(),
            Why::Nothing => "nothing in the catalogue fits".into(),
        }
    }

    fn component(&self, a: Attribution) -> Option<&Component> {
        self.catalogue.components.get(usize::from(a.component))
    }
}

/// The owners of the virtual servers, in the order of the state.
fn servers(catalogue: &Catalogue, state: &NodeState) -> Vec<Attribution> {
    if state.ipvs.servers.is_empty() {
        return Vec::new();
    }
    let number = |name| catalogue.components.iter().position(|c| c.name == name);
    let proxy = number("kube-proxy").and_then(|i| u16::try_from(i).ok()).unwrap_or(NO_ONE);
    let other = |c: &&Component| c.virtual_servers && life::of(c, state).is_alive();
    let mut others = catalogue.components.iter().filter(other);
    let only = match (others.next(), others.next()) {
        (Some(one), None) => number(&one.name).and_then(|i| u16::try_from(i).ok()),
        _ => None,
    };
    let served = Servers::of(state);
    let owner = |s| match (served.serves(s), only) {
        (true, _) => attributed(proxy, Why::Served),
        (false, Some(one)) => attributed(one, Why::OnlyOne),
        (false, None) => NOTHING,
    };
    state.ipvs.servers.iter().map(owner).collect()
}

struct Matcher<'c> {
    catalogue: &'c Catalogue,
}

/// What is looked up again and again in one ruleset.
#[derive(Default)]
struct Memory {
    /// The networks that a shape was found with, by the shape's place and the field.
    beside: HashMap<(Entry, String), Vec<String>>,
}

impl Matcher<'_> {
    fn ruleset(&self, ruleset: &Ruleset) -> Vec<TableOwners> {
        let mut memory = Memory::default();
        ruleset.tables.iter().map(|t| self.table(ruleset, t, &mut memory)).collect()
    }

    fn table(&self, ruleset: &Ruleset, table: &Table, memory: &mut Memory) -> TableOwners {
        let entry = |c: &Chain| match c.is_built_in() {
            true => None,
            false => self.catalogue.chain_entry(&table.name, &c.name),
        };
        let index: HashMap<Name, usize> =
            table.chains.iter().enumerate().map(|(i, c)| (c.name.clone(), i)).collect();
        let entries: Vec<Option<Entry>> = table.chains.iter().map(entry).collect();
        let mut chains = Vec::with_capacity(table.chains.len());
        let mut reading = Reading::default();
        for (chain, entry) in table.chains.iter().zip(&entries) {
            let owner = match entry {
                _ if chain.is_built_in() => attributed(THE_KERNEL, Why::Kernel),
                Some(e) => attributed(e.component, Why::Name),
                None => NOTHING,
            };
            let mut rules = Vec::with_capacity(chain.rules.len());
            for rule in &chain.rules {
                let place = Place { ruleset, table, chain, rule };
                let target = rule.target.as_ref().and_then(|t| index.get(t));
                let target = target.and_then(|&i| entries[i]);
                rules.push(match entry {
                    _ if chain.is_built_in() => {
                        reading.read(ruleset.words(rule));
                        self.in_built_in(&place, &reading, target, memory)
                    }
                    Some(e) => self.in_chain(&place, &mut reading, *e),
                    None => NOTHING,
                });
            }
            chains.push(ChainOwners { chain: owner, rules });
        }
        TableOwners { name: table.name.clone(), index, chains }
    }

    fn in_chain<'r>(
        &self,
        place: &Place<'r>,
        reading: &mut Reading<'r>,
        entry: Entry,
    ) -> Attribution {
        let Some(content) = self.catalogue.content(entry) else {
            return attributed(entry.component, Why::InChain);
        };
        reading.read(place.ruleset.words(place.rule));
        match content.fits(reading) {
            true => attributed(entry.component, Why::InChain),
            false if content.operator => attributed(THE_OPERATOR, Why::ForOperators),
            false => attributed(NO_ONE, Why::NotItsForm(entry.component)),
        }
    }

    fn in_built_in(
        &self,
        place: &Place<'_>,
        rule: &Reading<'_>,
        target: Option<Entry>,
        memory: &mut Memory,
    ) -> Attribution {
        let catalogue = self.catalogue;
        let (table, chain) = (&*place.table.name, &*place.chain.name);
        if let Some(target) = &place.rule.target
            && let Some(hook) = catalogue.hook(table, chain, target, &rule.comments)
        {
            return attributed(hook.component, Why::Hook(hook.item));
        }
        let loose = |e: &Entry| !catalogue.at(*e).strict;
        if let Some(owner) = target.filter(loose) {
            return attributed(owner.component, Why::Target);
        }
        let comment = |c| catalogue.comments.first(c);
        if let Some(owner) = rule.comments.iter().find_map(|c| comment(c)) {
            return attributed(owner.component, Why::Comment);
        }
        let words = place.ruleset.words(place.rule);
        let set = |s: &str| catalogue.sets.all(s).find(loose);
        if let Some(owner) = words.sets().iter().find_map(|s| set(s)) {
            return attributed(owner.component, Why::Set);
        }
        let link = |l: &str| catalogue.links.all(l).find(loose);
        if let Some(owner) = links(&rule.body).find_map(link) {
            return attributed(owner.component, Why::Link);
        }
        for (entry, shape, template) in catalogue.shapes() {
            if stands(shape, table, chain) && self.fits(place, entry, shape, template, rule, memory)
            {
                return attributed(entry.component, Why::Shape(entry.item));
            }
        }
        NOTHING
    }

    fn fits(
        &self,
        place: &Place<'_>,
        entry: Entry,
        shape: &Shape,
        template: &Template,
        rule: &Reading<'_>,
        memory: &mut Memory,
    ) -> bool {
        let Some(fields) = template.captures(&rule.body) else { return false };
        let Some(beside) = &shape.beside else { return true };
        let component = &self.catalogue.at(entry).name;
        let Some((_, other)) = self.catalogue.shape(component, &beside.rule) else { return false };
        fields.iter().all(|(field, value)| {
            let known = memory.beside.entry((entry, field.clone())).or_insert_with(|| {
                let table = place.ruleset.table(&beside.table);
                let chain = table.and_then(|t| t.chain(&beside.chain));
                let rules = chain.iter().flat_map(|c| &c.rules);
                let bodies = rules.map(|r| Reading::of(place.ruleset.words(r)).body);
                bodies.filter_map(|b| Some((*other.captures(&b)?.get(field)?).to_owned())).collect()
            });
            known.iter().any(|k| k == value)
        })
    }
}

struct Place<'r> {
    ruleset: &'r Ruleset,
    table: &'r Table,
    chain: &'r Chain,
    rule: &'r Rule,
}

fn stands(shape: &Shape, table: &str, chain: &str) -> bool {
    shape.table.as_ref().is_none_or(|t| t == table)
        && (shape.chains.is_empty() || shape.chains.iter().any(|c| c == chain))
}

/// The links that a rule's body names.
fn links(body: &str) -> impl Iterator<Item = &str> {
    let words = || body.split(' ');
    let option = |w: &&str| *w == "-i" || *w == "-o";
    words().zip(words().skip(1)).filter(move |(w, _)| option(w)).map(|(_, link)| link)
}
