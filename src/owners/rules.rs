//! The owner of each chain and rule of one ruleset.

use std::collections::HashMap;

use crate::owners::attribution::{
    Attribution, ChainOwners, Evidence, KERNEL_ID, NOTHING, OPERATOR_ID, TableOwners, UNOWNED,
    attributed,
};
use crate::owners::catalogue::{Catalogue, EntryId};
use crate::owners::component::Shape;
use crate::owners::content::Reading;
use crate::owners::template::Template;
use crate::state::ruleset::{Chain, Name, Rule, Ruleset, Table};

/// Attributes the chains and rules of a ruleset to their owners.
pub(super) struct Matcher<'c> {
    pub(super) catalogue: &'c Catalogue,
    /// Of each component, by its number: nothing of it is on the node but what rules look like.
    pub(super) absent: Vec<bool>,
}

/// Values that are computed only once for each ruleset.
#[derive(Default)]
struct Memory {
    /// For a shape that requires a second rule, and for one template field: the values that this
    /// field has in the rules that match as the second rule. Keyed by shape and field.
    beside: HashMap<(EntryId, String), Vec<String>>,
}

impl Matcher<'_> {
    pub(super) fn ruleset(&self, ruleset: &Ruleset) -> Vec<TableOwners> {
        let mut memory = Memory::default();
        ruleset.tables.iter().map(|t| self.table(ruleset, t, &mut memory)).collect()
    }

    fn table(&self, ruleset: &Ruleset, table: &Table, memory: &mut Memory) -> TableOwners {
        let index: HashMap<Name, usize> =
            table.chains.iter().enumerate().map(|(i, c)| (c.name.clone(), i)).collect();
        let entries: Vec<Option<EntryId>> = table
            .chains
            .iter()
            .map(|c| {
                if c.is_built_in() {
                    None
                } else {
                    self.catalogue.chain_entry(&table.name, &c.name)
                }
            })
            .collect();
        let mut chains = Vec::with_capacity(table.chains.len());
        let mut reading = Reading::default();
        for (chain, entry) in table.chains.iter().zip(&entries) {
            let owner = match entry {
                _ if chain.is_built_in() => attributed(KERNEL_ID, Evidence::Kernel),
                Some(e) => attributed(e.component, Evidence::Name),
                None => NOTHING,
            };
            let mut rules = Vec::with_capacity(chain.rules.len());
            for rule in &chain.rules {
                let at = RuleRef { ruleset, table, chain, rule };
                let target = rule.target.as_ref().and_then(|t| index.get(t));
                let target = target.and_then(|&i| entries[i]);
                rules.push(match entry {
                    _ if chain.is_built_in() => {
                        reading.read(ruleset.words(rule));
                        self.in_built_in(&at, &reading, target, memory)
                    }
                    Some(e) => self.in_chain(&at, &mut reading, *e),
                    None => NOTHING,
                });
            }
            chains.push(ChainOwners { chain: owner, entry: *entry, rules });
        }
        TableOwners { name: table.name.clone(), index, chains }
    }

    fn in_chain<'r>(
        &self,
        at: &RuleRef<'r>,
        reading: &mut Reading<'r>,
        entry: EntryId,
    ) -> Attribution {
        let Some(content) = self.catalogue.content(entry) else {
            return attributed(entry.component, Evidence::InChain);
        };
        reading.read(at.ruleset.words(at.rule));
        if content.fits(reading) {
            attributed(entry.component, Evidence::InChain)
        } else if content.operator {
            attributed(OPERATOR_ID, Evidence::ForOperators)
        } else {
            attributed(UNOWNED, Evidence::UnexpectedForm(entry.component))
        }
    }

    fn in_built_in(
        &self,
        at: &RuleRef<'_>,
        rule: &Reading<'_>,
        target: Option<EntryId>,
        memory: &mut Memory,
    ) -> Attribution {
        let catalogue = self.catalogue;
        let (table, chain) = (&*at.table.name, &*at.chain.name);
        if let Some(target) = &at.rule.target
            && let Some(hook) = catalogue.hook(table, chain, target, &rule.comments)
        {
            return attributed(hook.component, Evidence::Hook(hook.item));
        }
        let loose = |e: &EntryId| !catalogue.at(*e).strict;
        if let Some(owner) = target.filter(loose) {
            return attributed(owner.component, Evidence::Target);
        }
        let comment = |c| catalogue.comments.first(c);
        if let Some(owner) = rule.comments.iter().find_map(|c| comment(c)) {
            return attributed(owner.component, Evidence::Comment);
        }
        let words = at.ruleset.words(at.rule);
        let set = |s: &str| catalogue.sets.all(s).find(loose);
        if let Some(owner) = words.sets().iter().find_map(|s| set(s)) {
            return attributed(owner.component, Evidence::Set);
        }
        let link = |l: &str| catalogue.links.all(l).find(loose);
        if let Some(owner) = links(&rule.body).find_map(link) {
            return attributed(owner.component, Evidence::Link);
        }
        for (entry, shape, template) in catalogue.shapes() {
            // If no catalogue file has a rule's comment, another program wrote the rule, so a weak
            // shape is no evidence.
            let silent = rule.comments.is_empty() || !shape.weak;
            let alone = shape.not_alone && self.absent[usize::from(entry.component)];
            if silent
                && !alone
                && shape.allows_chain(table, chain)
                && self.fits(at, entry, shape, template, rule, memory)
            {
                return attributed(entry.component, Evidence::Shape(entry.item));
            }
        }
        NOTHING
    }

    fn fits(
        &self,
        at: &RuleRef<'_>,
        entry: EntryId,
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
                let table = at.ruleset.table(&beside.table);
                let chain = table.and_then(|t| t.chain(&beside.chain));
                let rules = chain.iter().flat_map(|c| &c.rules);
                let bodies = rules.map(|r| Reading::of(at.ruleset.words(r)).body);
                bodies.filter_map(|b| Some((*other.captures(&b)?.get(field)?).to_owned())).collect()
            });
            known.iter().any(|k| k == value)
        })
    }
}

struct RuleRef<'r> {
    ruleset: &'r Ruleset,
    table: &'r Table,
    chain: &'r Chain,
    rule: &'r Rule,
}

/// The links that a rule's options name.
fn links(body: &str) -> impl Iterator<Item = &str> {
    let words = || body.split(' ');
    let option = |w: &&str| *w == "-i" || *w == "-o";
    words().zip(words().skip(1)).filter(move |(w, _)| option(w)).map(|(_, link)| link)
}
