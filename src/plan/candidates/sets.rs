//! ipsets: a candidate is removed if no kept rule matches it and no kept `list:set` has it as a
//! member.

use std::collections::{BTreeSet, HashMap};

use crate::plan::Action;
use crate::plan::candidates::{Candidates, PlanRow, RuleIndex};
use crate::plan::reason::Reason;
use crate::state::ipset::IpSet;
use crate::state::object::ObjectId;

impl Candidates<'_> {
    /// Adds a plan row for each candidate ipset, to remove it or to keep it because it is still
    /// needed. `removed` are the rules that are removed from chains that remain.
    pub(super) fn add_sets(&mut self, removed: &BTreeSet<RuleIndex>) {
        if self.sets.is_empty() {
            return;
        }
        let mut needed = self.sets_of_rules(removed);
        let kept = |list: &&IpSet| {
            list.kind == "list:set"
                && (!self.sets.contains_key(&list.name) || needed.contains_key(&list.name))
        };
        let mut of_lists = HashMap::new();
        for list in self.state.ipsets.sets.iter().filter(kept) {
            let members = list.entries.iter().filter_map(|entry| entry.split(' ').next());
            let reason = || Reason::MemberOf(list.name.clone());
            of_lists.extend(members.map(|member| (member.to_owned(), reason())));
        }
        for (name, reason) in std::mem::take(&mut self.sets) {
            let Some(set) = self.state.ipsets.get(&name) else { continue };
            let kept = needed.remove(&name).or_else(|| of_lists.remove(&name));
            self.add(PlanRow {
                action: if kept.is_some() { Action::Keep } else { Action::Remove },
                id: ObjectId::Set { family: set.family, name: name.as_str().into() },
                owner: self.ownership.set(&name).map_or("", |owner| owner.name),
                reason: kept.unwrap_or(reason),
                details: set.kind.clone(),
            });
        }
    }

    /// The ipsets that remaining rules match, each with the first such rule as the reason.
    fn sets_of_rules(&self, removed: &BTreeSet<RuleIndex>) -> HashMap<String, Reason> {
        let mut needed = HashMap::new();
        for (at, ruleset, _, chain) in self.all_chains().filter(|(at, ..)| !self.is_candidate(*at))
        {
            for (position, rule) in chain.rules.iter().enumerate() {
                if removed.contains(&RuleIndex { chain: at, position }) {
                    continue;
                }
                for set in ruleset.words(rule).sets() {
                    let reason = || Reason::ReferencedBy(ruleset.rule_text(rule).to_owned());
                    needed.entry(set.into_owned()).or_insert_with(reason);
                }
            }
        }
        needed
    }
}
