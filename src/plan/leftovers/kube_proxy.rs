//! kube-proxy's leftovers: what its running mode or its version does not use.

use std::collections::{BTreeMap, HashMap};

use crate::kube_proxy::mode::{self, ProxyMode};
use crate::kube_proxy::running::{RunningMode, served_by_others};
use crate::owners::attribution::Evidence;
use crate::owners::component::ChainEntry;
use crate::owners::component::KUBE_PROXY;
use crate::owners::expression::Expression;
use crate::plan::Action;
use crate::plan::candidates::{Candidates, ChainIndex, OwnedChain, PlanRow};
use crate::plan::reason::Reason;
use crate::state::Family;
use crate::state::ipvs::Forward;
use crate::state::kube_proxy::Mode;
use crate::state::kube_proxy::delivery::HostProgram;
use crate::state::object::ObjectId;
use crate::state::tools::{Process, Version};

/// Judges the chains of kube-proxy and the kubelet, and the jumps to kube-proxy's chains.
pub(super) fn chains(candidates: &mut Candidates<'_>, running: &RunningMode) {
    let kubelet = kubelet_may_own(candidates);
    for OwnedChain { at, entry, .. } in candidates.chains_of("kubelet") {
        let reason = entry.keep.clone().map_or(Reason::Kubelets, Reason::Catalogue);
        candidates.add_chain(Action::Keep, at, reason);
    }
    let serving = Serving::of(candidates, running);
    let chains = candidates.chains_of(KUBE_PROXY);
    let mut successors = HashMap::new();
    for OwnedChain { at, entry, .. } in &chains {
        let key = (at.id, at.table, entry.replaced_by.as_deref());
        let successor = successors.entry(key).or_insert_with(|| successor(&chains, *at, entry));
        let decided = judge(entry, running, kubelet.as_deref(), successor.as_deref());
        match serving.spare(Some(at.id.family), decided) {
            (Action::Remove, reason) => candidates.propose_chain(*at, reason),
            (action, reason) if !entry.many => candidates.add_chain(action, *at, reason),
            _ => {}
        }
    }
    hooks(candidates, running, &serving);
}

/// The families in which only a mode that does not run serves. Nothing of kube-proxy's is removed
/// there.
struct Serving {
    running: Option<Mode>,
    others: BTreeMap<Family, Mode>,
}

impl Serving {
    fn of(candidates: &Candidates<'_>, running: &RunningMode) -> Serving {
        let others = running.mode.map(|mode| served_by_others(candidates.state, mode));
        Serving { running: running.mode, others: others.unwrap_or_default() }
    }

    /// What to do with an object of this family, or of no family: as `decided`, unless it would be
    /// removed where another mode serves.
    fn spare(&self, family: Option<Family>, decided: (Action, Reason)) -> (Action, Reason) {
        let other = self.others.iter().find(|(served, _)| family.is_none_or(|f| f == **served));
        match (decided, other, self.running) {
            ((Action::Remove, _), Some((served, mode)), Some(running)) => {
                (Action::Keep, Reason::StillServes(*mode, running, *served))
            }
            (decided, ..) => decided,
        }
    }
}

/// What to do with a chain of kube-proxy, and the reason.
fn judge(
    entry: &ChainEntry,
    running: &RunningMode,
    kubelet: Option<&str>,
    successor: Option<&str>,
) -> (Action, Reason) {
    let Some(mode) = running.mode else {
        return (Action::Keep, Reason::ModeUnknown(running.evidence.clone()));
    };
    if !entry.modes.contains(&mode) {
        return match kubelet.filter(|_| entry.shared_with.is_some()) {
            Some(evidence) => (Action::Keep, Reason::KubeletMayUse(evidence.to_owned())),
            None => (Action::Remove, other_modes(entry.modes.clone(), mode, running)),
        };
    }
    if let Some(version) = running.version
        && !entry.in_version(version)
    {
        return (Action::Remove, Reason::NotInVersion(version));
    }
    if let Some(successor) = successor {
        return (Action::Remove, Reason::Replaced(successor.to_owned()));
    }
    let reason = match (&entry.keep, entry.modes.len()) {
        (Some(reason), _) => Reason::Catalogue(reason.clone()),
        (None, 1) => in_use(mode, running),
        (None, _) if running.absence.is_some() => in_use(mode, running),
        (None, _) => Reason::SharedByModes,
    };
    (Action::Keep, reason)
}

/// The reason to keep what `mode` uses, the mode that serves.
fn in_use(mode: Mode, running: &RunningMode) -> Reason {
    running.absence.clone().map_or(Reason::InUse(mode), |why| Reason::Unattended(mode, why))
}

/// The reason to remove what only `modes` use, while `mode` serves.
fn other_modes(modes: Vec<Mode>, mode: Mode, running: &RunningMode) -> Reason {
    match running.absence {
        Some(_) => Reason::OtherModesOfAbsent(modes, mode),
        None => Reason::OtherModes(modes, mode),
    }
}

/// A chain that replaces `entry` in later versions, if the table of `entry` has such a chain with
/// rules.
fn successor(chains: &[OwnedChain<'_>], at: ChainIndex, entry: &ChainEntry) -> Option<String> {
    let expression = Expression::new(entry.replaced_by.as_deref()?).ok()?;
    let live = |c: &&OwnedChain<'_>| {
        (c.at.id, c.at.table) == (at.id, at.table)
            && !c.chain.rules.is_empty()
            && expression.is_match(&c.chain.name)
    };
    chains.iter().find(live).map(|c| c.chain.name.to_string())
}

/// Why the kubelet may still own the chains that it shares with kube-proxy. The kubelet up to 1.26
/// makes KUBE-MARK-DROP and KUBE-POSTROUTING together with KUBE-MARK-MASQ and its canary.
fn kubelet_may_own(candidates: &Candidates<'_>) -> Option<String> {
    // A program that has the kubelet as a part is of the kubelet's version. A supervisor of another
    // process, as rke2 is, tells none.
    let kubelet = |p: &&Process| p.name == "kubelet" || HostProgram::of(p).is_some();
    let mut kubelets = candidates.state.processes.iter().flatten().filter(kubelet);
    let version = kubelets.find_map(|p| Version::find(p.version.as_deref()?));
    if version.is_some_and(|v| (v.major, v.minor) >= (1, 28)) {
        return None;
    }
    let signs = ["KUBE-MARK-DROP", "KUBE-POSTROUTING", "KUBE-KUBELET-CANARY"];
    let mut nat = candidates.state.rulesets.values().filter_map(|r| r.table("nat"));
    let sign = nat.find_map(|t| signs.into_iter().find(|s| t.chain(s).is_some()))?;
    Some(format!("nat {sign}, which it makes too, is there"))
}

/// Judges kube-proxy's jumps from built-in chains.
fn hooks(candidates: &mut Candidates<'_>, running: &RunningMode, serving: &Serving) {
    let Some(mode) = running.mode else { return };
    let Some(component) = candidates.catalogue.component(KUBE_PROXY) else { return };
    for (at, context, to) in candidates.built_in_rules() {
        let owner = candidates.ownership.rule_attribution(
            context.id,
            &context.table.name,
            &context.chain.name,
            context.position,
        );
        let (Evidence::Hook(i), KUBE_PROXY) = (owner.evidence, candidates.ownership.name(owner))
        else {
            continue;
        };
        let Some(hook) = component.hooks.get(usize::from(i)) else { continue };
        let shared = hook.modes.contains(&mode);
        if let Some(chain) = to.filter(|c| candidates.is_candidate(*c)) {
            candidates.propose_rule(at, Some(chain), Reason::LeadsToRemoved(hook.to.clone()));
            continue;
        }
        let outdated = running.version.is_some_and(|version| !hook.in_version(version));
        // The chain that the rule jumps to is kept. If it is also a chain of the running mode, the
        // jump that only another mode writes is removed.
        let entry = candidates.catalogue.chain(&context.table.name, &hook.to);
        let used = entry.is_some_and(|(_, e)| e.modes.contains(&mode));
        if serving.others.contains_key(&context.id.family) {
            continue;
        }
        if !shared && used {
            candidates.propose_rule(at, None, Reason::NoJumpInMode(mode, hook.to.clone()));
        } else if shared && outdated {
            candidates.propose_rule(at, None, Reason::NoJumpInVersion);
        }
    }
}

/// Judges ipsets, virtual servers, links and native tables.
pub(super) fn elsewhere(candidates: &mut Candidates<'_>, running: &RunningMode) {
    let serving = Serving::of(candidates, running);
    sets(candidates, running, &serving);
    servers(candidates, running, &serving);
    links(candidates, running, &serving);
    tables(candidates, running, &serving);
}

/// What to do with a kube-proxy object of a kind that only those modes make for which `uses`
/// returns true, and the reason.
fn of_mode(running: &RunningMode, uses: fn(&dyn ProxyMode) -> bool) -> (Action, Reason) {
    match running.mode {
        None => (Action::Keep, Reason::ModeUnknown(running.evidence.clone())),
        Some(mode) if uses(mode::of(mode)) => (Action::Keep, in_use(mode, running)),
        Some(mode) => {
            let theirs = mode::all().filter(|m| uses(*m)).map(|m| m.mode()).collect();
            (Action::Remove, other_modes(theirs, mode, running))
        }
    }
}

fn sets(candidates: &mut Candidates<'_>, running: &RunningMode, serving: &Serving) {
    let state = candidates.state;
    for set in &state.ipsets.sets {
        if candidates.ownership.set(&set.name).is_none_or(|o| o.name != KUBE_PROXY) {
            continue;
        }
        let decided = of_mode(running, |mode| mode.uses_ipsets());
        match serving.spare(Some(set.family), decided) {
            (Action::Remove, reason) => candidates.propose_set(&set.name, reason),
            (action, reason) => candidates.add(PlanRow {
                action,
                id: ObjectId::Set { family: set.family, name: set.name.as_str().into() },
                owner: KUBE_PROXY,
                reason,
                details: set.kind.clone(),
            }),
        }
    }
}

fn servers(candidates: &mut Candidates<'_>, running: &RunningMode, serving: &Serving) {
    let state = candidates.state;
    let ownership = candidates.ownership;
    for server in &state.ipvs.servers {
        let Some(owner) = ownership.virtual_server(&server.service) else { continue };
        let masquerades = server.reals.iter().all(|r| r.forward == Forward::Masq);
        let decided = of_mode(running, |mode| mode.has_virtual_servers());
        let decided = serving.spare(Some(server.service.family()), decided);
        let (action, reason) = match (owner.name == KUBE_PROXY, decided) {
            (true, (Action::Remove, _)) if !masquerades => {
                (Action::Suspect, Reason::DoesNotMasquerade)
            }
            (true, (Action::Remove, reason)) => (Action::Remove, reason),
            // Virtual servers that kube-proxy keeps get no plan row, because there is one for
            // each service, which is too many to list.
            (true, _) => continue,
            (false, _) => (Action::Keep, Reason::Foreign(owner.reason)),
        };
        candidates.add(PlanRow {
            action,
            id: ObjectId::VirtualServer(server.service),
            owner: owner.name,
            reason,
            details: server.options(),
        });
    }
}

fn links(candidates: &mut Candidates<'_>, running: &RunningMode, serving: &Serving) {
    let state = candidates.state;
    let ownership = candidates.ownership;
    for link in &state.links {
        if ownership.link(&link.name).is_none_or(|o| o.name != KUBE_PROXY) {
            continue;
        }
        let decided = of_mode(running, |mode| mode.binds_addresses());
        let (action, reason) = serving.spare(None, decided);
        let id = ObjectId::Link { name: link.name.as_str().into() };
        let details = link.kind.clone().unwrap_or_default();
        candidates.add(PlanRow { action, id, owner: KUBE_PROXY, reason, details });
    }
}

fn tables(candidates: &mut Candidates<'_>, running: &RunningMode, serving: &Serving) {
    let state = candidates.state;
    for table in state.native_tables() {
        let unexpected = match candidates.catalogue.native_table(table) {
            Some((entry, part)) if candidates.catalogue.at(entry).name == KUBE_PROXY => part,
            _ => continue,
        };
        let family = table.family.as_str().into();
        let name = table.name.as_str().into();
        let id = ObjectId::NativeTable { family, name };
        let decided = serving.spare(id.family(), of_mode(running, |mode| mode.has_own_tables()));
        let refusal = state.nft_messages.refusal(&table.family, &table.name);
        let (action, reason) = match (decided, unexpected, refusal) {
            ((Action::Remove, _), Some(part), _) => {
                (Action::Suspect, Reason::HoldsForeignPart(part))
            }
            ((Action::Remove, _), None, Some(cause)) => {
                (Action::Suspect, Reason::CannotBeRestored(cause.to_owned()))
            }
            (decided, ..) => decided,
        };
        candidates.add(PlanRow { action, id, owner: KUBE_PROXY, reason, details: String::new() });
    }
}
