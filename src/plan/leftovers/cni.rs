//! Pod networks: what a component left behind that is gone, and empty host-port chains.

use crate::owners::component::Component;
use crate::owners::content::Reading;
use crate::owners::life::{self, Life};
use crate::plan::leftovers::draft::{Draft, OwnedChain, Place, Row, RuleAt};
use crate::plan::{Action, ObjectKind};

/// Each component that makes pod networks: all of it goes if it is known to be gone and the
/// catalogue says that this is proof enough, else it stays.
pub(super) fn components(draft: &mut Draft<'_>) {
    let catalogue = draft.catalogue;
    for component in catalogue.components().iter().filter(|c| c.cni) {
        let life = life::of(component, draft.state);
        if life.is_gone() && component.removed_when_gone {
            remove(draft, component, life.evidence());
        } else {
            keep(draft, component, &life);
        }
    }
}

fn remove(draft: &mut Draft<'_>, component: &Component, evidence: &str) {
    let reason = || format!("{} is gone: {evidence}", component.name);
    for OwnedChain { at, .. } in draft.chains_of(&component.name) {
        draft.may_remove_chain(at, reason());
    }
    for (at, place, to) in draft.built_in_rules() {
        if owner(draft, &place) != component.name {
            continue;
        }
        if is_signed(draft, component, &place) {
            let with = to.filter(|c| draft.is_candidate(*c));
            draft.may_remove_rule(at, with, reason());
        } else {
            let reason = format!("suspected: {}, but nothing proves the rule its own", reason());
            draft.keep_rule(at, reason);
        }
    }
    let state = draft.state;
    for set in &state.ipsets.sets {
        if draft.ownership.set(&set.name).is_some_and(|o| o.name == component.name) {
            draft.may_remove_set(&set.name, reason());
        }
    }
}

fn keep(draft: &mut Draft<'_>, component: &Component, life: &Life) {
    let name = &component.name;
    let reason = match life {
        Life::Alive(evidence) => format!("{name}'s, which lives: {evidence}"),
        Life::Gone(evidence) => format!("suspected: {name} seems gone: {evidence}"),
        Life::Unknown(_) if component.alive.processes.is_empty() => {
            format!("{name}'s, which never writes it again by itself")
        }
        Life::Unknown(evidence) => format!("{name}'s; whether it lives is not known: {evidence}"),
    };
    for OwnedChain { at, .. } in draft.chains_of(name).into_iter().filter(|c| !c.entry.many) {
        draft.keep_chain(at, reason.clone());
    }
    let state = draft.state;
    for set in &state.ipsets.sets {
        if draft.ownership.set(&set.name).is_some_and(|o| o.name == *name) {
            let (family, text) = (Some(set.family), set.kind.clone());
            let (backend, owner, reason) = ("ipset", name.as_str(), reason.clone());
            let row = Row { family, backend, name: &set.name, text, owner, reason };
            draft.row(Action::Keep, ObjectKind::Set, row);
        }
    }
}

/// The name of the owner of a rule.
pub(super) fn owner<'a>(draft: &Draft<'a>, place: &Place<'_>) -> &'a str {
    let (table, chain) = (&place.table.name, &place.chain.name);
    let a = draft.ownership.rule_attribution(place.id, table, chain, place.position);
    draft.ownership.name(a)
}

/// True if the rule carries a comment that only the component writes.
pub(super) fn is_signed(draft: &Draft<'_>, component: &Component, place: &Place<'_>) -> bool {
    let reading = Reading::of(place.ruleset.words(place.rule));
    reading.comments.iter().any(|c| draft.catalogue.writes_comment(component, c))
}

/// portmap's chain of a pod without a rule does nothing, and neither does the jump to it: a pod
/// whose end was missed.
pub(super) fn empty_port_chains(draft: &mut Draft<'_>) {
    let chains = draft.chains_of("cni-portmap");
    let mut found = Vec::new();
    for OwnedChain { at, chain, .. } in chains.iter().filter(|c| !c.entry.many) {
        for (position, rule) in chain.rules.iter().enumerate() {
            let empty = |c: &&OwnedChain<'_>| {
                (c.at.id, c.at.table) == (at.id, at.table)
                    && c.entry.many
                    && c.chain.rules.is_empty()
                    && rule.target.as_ref() == Some(&c.chain.name)
            };
            if let Some(target) = chains.iter().find(empty) {
                found.push((RuleAt { chain: *at, position }, target));
            }
        }
    }
    for (jump, target) in found {
        draft.may_remove_chain(target.at, "holds no rule, so its jumps lead nowhere");
        let reason = format!("leads to {}, which holds no rule", target.chain.name);
        draft.may_remove_rule(jump, Some(target.at), reason);
    }
}
