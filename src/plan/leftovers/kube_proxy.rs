//! What kube-proxy no longer uses, by mode and version.

use std::collections::HashMap;

use crate::kube_proxy::mode::{self, ProxyMode};
use crate::kube_proxy::running::RunningMode;
use crate::owners::component::{ChainEntry, minor_version};
use crate::owners::expression::Expression;
use crate::owners::liveness;
use crate::owners::matcher::Evidence;
use crate::plan::candidates::{Candidates, ChainIndex, OwnedChain, PlanRow};
use crate::plan::{Action, ObjectKind};
use crate::state::Family;
use crate::state::ipvs::Forward;
use crate::state::tools::Version;

const NAME: &str = "kube-proxy";

enum Verdict {
    Goes(String),
    Stays(String),
}
use Verdict::{Goes, Stays};

/// Chains of kube-proxy's and of the kubelet's, and the jumps to them.
pub(super) fn chains(candidates: &mut Candidates<'_>, running: &RunningMode) {
    let kubelet = kubelet_may_own(candidates);
    for OwnedChain { at, entry, .. } in candidates.chains_of("kubelet") {
        let reason = entry.keep.as_deref().unwrap_or("the kubelet's");
        candidates.keep_chain(at, reason);
    }
    let chains = candidates.chains_of(NAME);
    let mut successors = HashMap::new();
    for OwnedChain { at, entry, .. } in &chains {
        let key = (at.id, at.table, entry.replaced_by.as_deref());
        let successor = successors.entry(key).or_insert_with(|| successor(&chains, *at, entry));
        match judge(entry, running, kubelet.as_deref(), successor.as_deref()) {
            Goes(reason) => candidates.propose_chain(*at, reason),
            Stays(reason) if !entry.many => candidates.keep_chain(*at, reason),
            Stays(_) => {}
        }
    }
    hooks(candidates, running);
}

fn judge(
    entry: &ChainEntry,
    running: &RunningMode,
    kubelet: Option<&str>,
    successor: Option<&str>,
) -> Verdict {
    let Some(mode) = running.mode else {
        return Stays(format!("which mode of kube-proxy runs is not clear: {}", running.evidence));
    };
    if !entry.modes.contains(&mode) {
        if entry.shared_with.is_some()
            && let Some(evidence) = kubelet
        {
            return Stays(format!("the kubelet up to 1.26 writes it too, and {evidence}"));
        }
        let modes: Vec<&str> = entry.modes.iter().map(|m| m.name()).collect();
        let modes = modes.join(" and ");
        return Goes(format!("of {modes} mode; kube-proxy runs in {mode} mode"));
    }
    if let Some(version) = running.version
        && !entry.in_version(version)
    {
        return Goes(format!("kube-proxy {version} has no such chain"));
    }
    if let Some(successor) = successor {
        return Goes(format!("{successor} stands in its context, so a later version runs"));
    }
    Stays(match (&entry.keep, entry.modes.len()) {
        (Some(reason), _) => reason.clone(),
        (None, 1) => format!("kube-proxy runs in {mode} mode and uses it"),
        (None, _) => "shared by iptables and ipvs mode".into(),
    })
}

/// A chain of a later version, in the same table, that does what `entry` did.
fn successor(chains: &[OwnedChain<'_>], at: ChainIndex, entry: &ChainEntry) -> Option<String> {
    let expression = Expression::new(entry.replaced_by.as_deref()?).ok()?;
    let live = |c: &&OwnedChain<'_>| {
        (c.at.id, c.at.table) == (at.id, at.table)
            && !c.chain.rules.is_empty()
            && expression.is_match(&c.chain.name)
    };
    chains.iter().find(live).map(|c| c.chain.name.to_string())
}

/// Why the kubelet may still own the shared chains: up to 1.26 it makes KUBE-MARK-DROP and
/// KUBE-POSTROUTING together with KUBE-MARK-MASQ, and its canary beside them.
fn kubelet_may_own(candidates: &Candidates<'_>) -> Option<String> {
    let version = candidates
        .catalogue
        .component("kubelet")
        .and_then(|c| liveness::process(c, candidates.state))
        .filter(|p| p.name == "kubelet")
        .and_then(|p| Version::find(p.version.as_deref()?));
    if version.is_some_and(|v| (v.major, v.minor) >= (1, 28)) {
        return None;
    }
    let signs = ["KUBE-MARK-DROP", "KUBE-POSTROUTING", "KUBE-KUBELET-CANARY"];
    let mut nat = candidates.state.rulesets.values().filter_map(|r| r.table("nat"));
    let sign = nat.find_map(|t| signs.into_iter().find(|s| t.chain(s).is_some()))?;
    Some(format!("nat {sign}, which it makes too, is there"))
}

/// kube-proxy's jumps from the built-in chains.
fn hooks(candidates: &mut Candidates<'_>, running: &RunningMode) {
    let Some(mode) = running.mode else { return };
    let Some(component) = candidates.catalogue.component(NAME) else { return };
    for (at, context, to) in candidates.built_in_rules() {
        let owner = candidates.ownership.rule_attribution(
            context.id,
            &context.table.name,
            &context.chain.name,
            context.position,
        );
        let (Evidence::Hook(i), NAME) = (owner.why, candidates.ownership.name(owner)) else {
            continue;
        };
        let Some(hook) = component.hooks.get(usize::from(i)) else { continue };
        let shared = hook.modes.contains(&mode);
        if let Some(chain) = to.filter(|c| candidates.is_candidate(*c)) {
            candidates.propose_rule(at, Some(chain), format!("leads to {}, which goes", hook.to));
            continue;
        }
        let after = |until: &str| minor_version(until);
        let outdated = match (running.version, hook.until.as_deref().and_then(after)) {
            (Some(version), Some(until)) => (version.major, version.minor) > until,
            _ => false,
        };
        // The chain stays. The other mode's jump to it goes if this mode has the chain as its own.
        let entry = candidates.catalogue.chain(&context.table.name, &hook.to);
        let used = entry.is_some_and(|(_, e)| e.modes.contains(&mode));
        if !shared && used {
            candidates.propose_rule(
                at,
                None,
                format!("{mode} mode does not jump to {} so", hook.to),
            );
        } else if shared && outdated {
            let reason = "a later version of kube-proxy runs, which has no such jump";
            candidates.propose_rule(at, None, reason);
        }
    }
}

/// Sets, virtual servers, links and native tables.
pub(super) fn elsewhere(candidates: &mut Candidates<'_>, running: &RunningMode) {
    sets(candidates, running);
    servers(candidates, running);
    links(candidates, running);
    tables(candidates, running);
}

/// Whether an object goes that only some modes use, and why.
fn of_mode(running: &RunningMode, uses: fn(&dyn ProxyMode) -> bool) -> Verdict {
    match running.mode {
        None => Stays(format!("which mode of kube-proxy runs is not clear: {}", running.evidence)),
        Some(mode) if uses(mode::of(mode)) => {
            Stays(format!("kube-proxy runs in {mode} mode and uses it"))
        }
        Some(mode) => {
            let theirs = mode::all().filter(|m| uses(*m)).map(|m| m.mode().name());
            let theirs = theirs.collect::<Vec<_>>().join(" and ");
            Goes(format!("of {theirs} mode; kube-proxy runs in {mode} mode"))
        }
    }
}

fn sets(candidates: &mut Candidates<'_>, running: &RunningMode) {
    let state = candidates.state;
    for set in &state.ipsets.sets {
        if candidates.ownership.set(&set.name).is_none_or(|o| o.name != NAME) {
            continue;
        }
        match of_mode(running, |mode| mode.uses_ipsets()) {
            Goes(reason) => candidates.propose_set(&set.name, reason),
            Stays(reason) => {
                let (family, name, text) = (Some(set.family), &*set.name, set.kind.clone());
                let row = PlanRow { family, backend: "ipset", name, text, owner: NAME, reason };
                candidates.row(Action::Keep, ObjectKind::Set, row);
            }
        }
    }
}

fn servers(candidates: &mut Candidates<'_>, running: &RunningMode) {
    let (state, ownership) = (candidates.state, candidates.ownership);
    for (context, server) in state.ipvs.servers.iter().enumerate() {
        let Some(owner) = ownership.virtual_server(context) else { continue };
        let masquerades = server.reals.iter().all(|r| r.forward == Forward::Masq);
        let (action, reason) =
            match (owner.name == NAME, of_mode(running, |mode| mode.has_virtual_servers())) {
                (true, Goes(reason)) if masquerades => (Action::Remove, reason),
                (true, Goes(_)) => (
                    Action::Keep,
                    "suspected: kube-proxy's by its address, but it does not masquerade".into(),
                ),
                // One a service: too many to list.
                (true, Stays(_)) => continue,
                (false, _) => (Action::Keep, owner.reason),
            };
        let row = PlanRow {
            family: Some(server.service.family()),
            backend: "ipvs",
            name: &server.service.to_string(),
            text: format!("{} {}", server.service, server.options()),
            owner: owner.name,
            reason,
        };
        candidates.row(action, ObjectKind::VirtualServer, row);
    }
}

fn links(candidates: &mut Candidates<'_>, running: &RunningMode) {
    let (state, ownership) = (candidates.state, candidates.ownership);
    for link in &state.links {
        if ownership.link(&link.name).is_none_or(|o| o.name != NAME) {
            continue;
        }
        let (action, reason) = match of_mode(running, |mode| mode.binds_addresses()) {
            Goes(reason) => (Action::Remove, reason),
            Stays(reason) => (Action::Keep, reason),
        };
        let text = link.kind.clone().unwrap_or_default();
        let (family, backend) = (None, "link");
        let row = PlanRow { family, backend, name: &link.name, text, owner: NAME, reason };
        candidates.row(action, ObjectKind::Link, row);
    }
}

fn tables(candidates: &mut Candidates<'_>, running: &RunningMode) {
    let (state, ownership) = (candidates.state, candidates.ownership);
    for table in state.native_tables() {
        if ownership.table(&table.family, &table.name).is_none_or(|o| o.name != NAME) {
            continue;
        }
        let (action, reason) = match of_mode(running, |mode| mode.has_own_tables()) {
            Goes(reason) => (Action::Remove, reason),
            Stays(reason) => (Action::Keep, reason),
        };
        let family = Family::ALL.into_iter().find(|f| f.nft() == table.family);
        let text = format!("table {} {}", table.family, table.name);
        let row = PlanRow { family, backend: "nft", name: &table.name, text, owner: NAME, reason };
        candidates.row(action, ObjectKind::Table, row);
    }
}
