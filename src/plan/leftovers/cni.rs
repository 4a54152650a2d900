//! Pod networks and what belongs to them: leftovers of components that are gone, and empty chains of
//! host ports.

use crate::owners::backend::LeftBackends;
use crate::owners::component::{ChainEntry, Component, WhenGone};
use crate::owners::content::Reading;
use crate::owners::liveness::{Liveness, liveness};
use crate::plan::Action;
use crate::plan::candidates::{Candidates, OwnedChain, PlanRow, RuleContext, RuleIndex};
use crate::plan::reason::Reason;
use crate::state::object::ObjectId;

/// Judges the objects of each pod network, and of each other component whose leftovers are looked
/// for. The objects are removed if the component is known to be gone and the catalogue says that
/// this is enough evidence (`when_gone: remove`). Otherwise the objects are kept.
pub(super) fn components(candidates: &mut Candidates<'_>) {
    let catalogue = candidates.catalogue;
    for component in catalogue.components().iter().filter(|c| c.is_watched()) {
        let liveness = liveness(component, candidates.state);
        if liveness.is_gone() && component.when_gone == Some(WhenGone::Remove) {
            propose(candidates, component, liveness.evidence());
        } else if component.cni || liveness.is_left() {
            keep(candidates, component, &liveness);
        }
    }
}

fn propose(candidates: &mut Candidates<'_>, component: &Component, evidence: &str) {
    let name = component.name.clone();
    let evidence = evidence.to_owned();
    let reason = || Reason::OwnerGone(name.clone(), evidence.clone());
    for OwnedChain { at, .. } in candidates.chains_of(&component.name) {
        candidates.propose_chain(at, reason());
    }
    for (at, context, to) in candidates.built_in_rules() {
        if owner(candidates, &context) != component.name {
            continue;
        }
        let with = to.filter(|c| candidates.is_candidate(*c));
        // A jump to a chain that goes too needs no other signature.
        if with.is_some() || is_signed(candidates, component, &context) {
            candidates.propose_rule(at, with, reason());
        } else {
            let reason = Reason::OwnerGoneUnsigned(name.clone(), evidence.clone());
            candidates.add_rule(Action::Suspect, at, reason);
        }
    }
    let state = candidates.state;
    for set in &state.ipsets.sets {
        if candidates.ownership.set(&set.name).is_some_and(|o| o.name == component.name) {
            candidates.propose_set(&set.name, reason());
        }
    }
    for mut left in native_tables(candidates, component) {
        let (action, reason) = match left.unlike.take() {
            Some(unlike) => (Action::Suspect, unlike),
            None if left.is_signed => (Action::Remove, reason()),
            None => (Action::Suspect, Reason::OwnerGoneUnsigned(name.clone(), evidence.clone())),
        };
        candidates.add(left.row(action, component, reason));
    }
}

/// A native table that has the name of a component's.
struct NamedTable {
    id: ObjectId,
    /// Whether the catalogue lists what the component's tables consist of.
    is_signed: bool,
    /// Why it cannot go whoever made it: a part that the component does not write, or one that could not
    /// be put back.
    unlike: Option<Reason>,
}

impl NamedTable {
    fn row(self, action: Action, component: &Component, reason: Reason) -> PlanRow<'_> {
        PlanRow { action, id: self.id, owner: &component.name, reason, details: String::new() }
    }
}

fn native_tables(candidates: &Candidates<'_>, component: &Component) -> Vec<NamedTable> {
    let (catalogue, state) = (candidates.catalogue, candidates.state);
    let named = state.native_tables().into_iter().filter_map(|table| {
        let (entry, part) = catalogue.native_table(table)?;
        let (family, name) = (table.family.as_str(), table.name.as_str());
        let refusal = state.nft_messages.refusal(family, name).map(str::to_owned);
        (catalogue.at(entry).name == component.name).then(|| NamedTable {
            id: ObjectId::NativeTable { family: family.into(), name: name.into() },
            is_signed: catalogue.lists_native_content(entry),
            unlike: part
                .map(Reason::HoldsForeignPart)
                .or_else(|| refusal.map(Reason::CannotBeRestored)),
        })
    });
    named.collect()
}

fn keep(candidates: &mut Candidates<'_>, component: &Component, liveness: &Liveness) {
    let name = &component.name;
    let (action, reason) = match liveness {
        Liveness::Alive(e) => (Action::Keep, Reason::OwnerAlive(name.clone(), e.clone())),
        Liveness::SeemsGone(e) | Liveness::Gone(e) => {
            (Action::Suspect, Reason::OwnerSeemsGone(name.clone(), e.clone()))
        }
        Liveness::Unknown(_) if component.alive.processes.is_empty() => {
            (Action::Keep, Reason::NeverRewritten(name.clone()))
        }
        Liveness::Unknown(e) => (Action::Keep, Reason::OwnerUnknown(name.clone(), e.clone())),
    };
    let left = match liveness {
        Liveness::Alive(_) => LeftBackends::of(component, candidates.state, candidates.ownership),
        _ => LeftBackends::default(),
    };
    let judge = |id, entry: &ChainEntry| match left.why(id, entry) {
        Some(why) => (Action::Suspect, Reason::OwnerLeftBackend(name.clone(), why)),
        None => (action, reason.clone()),
    };
    let chains = candidates.chains_of(name);
    for OwnedChain { at, entry, .. } in chains.iter().filter(|c| !c.entry.many) {
        let (action, reason) = judge(at.id, entry);
        candidates.add_chain(action, *at, reason);
    }
    for (at, context, to) in candidates.built_in_rules() {
        if owner(candidates, &context) != name {
            continue;
        }
        let to = to.and_then(|to| chains.iter().find(|chain| chain.at == to));
        let (action, reason) =
            to.map_or((action, reason.clone()), |chain| judge(chain.at.id, chain.entry));
        if action == Action::Suspect {
            candidates.add_rule(action, at, reason);
        }
    }
    let state = candidates.state;
    for set in &state.ipsets.sets {
        if candidates.ownership.set(&set.name).is_some_and(|o| o.name == *name) {
            candidates.add(PlanRow {
                action,
                id: ObjectId::Set { family: set.family, name: set.name.as_str().into() },
                owner: name,
                reason: reason.clone(),
                details: set.kind.clone(),
            });
        }
    }
    if action == Action::Suspect {
        for left in native_tables(candidates, component) {
            candidates.add(left.row(action, component, reason.clone()));
        }
    }
}

/// The name of the component that owns a rule.
pub(super) fn owner<'a>(candidates: &Candidates<'a>, context: &RuleContext<'_>) -> &'a str {
    let (table, chain) = (&context.table.name, &context.chain.name);
    let a = candidates.ownership.rule_attribution(context.id, table, chain, context.position);
    candidates.ownership.name(a)
}

/// True if the rule has a comment that only this component writes, or none and the exact form of one
/// of its rules.
pub(super) fn is_signed(
    candidates: &Candidates<'_>,
    component: &Component,
    context: &RuleContext<'_>,
) -> bool {
    let reading = Reading::of(context.ruleset.words(context.rule));
    if !reading.comments.is_empty() {
        return reading.comments.iter().any(|c| candidates.catalogue.writes_comment(component, c));
    }
    let (table, chain) = (&context.table.name, &context.chain.name);
    candidates.catalogue.writes_rule(component, table, chain, &reading.body)
}

/// Proposes the removal of portmap's chains that have no rules, and of the jumps to these chains.
/// Neither the chains nor the jumps have an effect. They were for pods whose end portmap did not
/// learn of.
pub(super) fn empty_port_chains(candidates: &mut Candidates<'_>) {
    let chains = candidates.chains_of("cni-portmap");
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
                found.push((RuleIndex { chain: *at, position }, target));
            }
        }
    }
    for (jump, target) in found {
        candidates.propose_chain(target.at, Reason::Empty);
        let reason = Reason::LeadsToEmpty(target.chain.name.to_string());
        candidates.propose_rule(jump, Some(target.at), reason);
    }
}
