//! Convergence: whether kube-proxy already serves in its new mode. Until it does, the old mode's
//! objects are kept.
//!
//! What the kernel holds decides, because what kube-proxy reports is not enough. In ipvs mode the
//! virtual servers exist, and `/proxyMode` reports ipvs, seconds before kube-proxy switches its
//! rules over in a single restore. Until that restore the old rules serve, and removing them fails
//! or drops traffic.

use std::collections::{BTreeMap, BTreeSet};

use crate::kube_proxy::mode::{self, ProxyMode};
use crate::kube_proxy::parity::{ChangedMeanwhile, parity_since};
use crate::kube_proxy::proxy_state::ProxyState;
use crate::kube_proxy::running::RunningMode;
use crate::kube_proxy::services::Services;
use crate::kube_proxy::takeover::Rewrite;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::state::kube_proxy::Mode;
use crate::state::{Family, NodeState};

/// Whether kube-proxy serves in the new mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Convergence {
    /// The new mode serves. The payload is what was no longer expected of it.
    Converged(Vec<ChangedMeanwhile>),
    /// As `Converged`; but a family without services still has the old mode's references, one sentence
    /// each. kube-proxy writes one family after the other, and may yet come to it; or it never does,
    /// where only an earlier kube-proxy wrote that family.
    Late(Vec<String>, Vec<ChangedMeanwhile>),
    /// The new mode does not serve yet. The payload has one sentence for each reason.
    Waiting(Vec<String>),
}

/// What the new mode must serve before the old mode's objects may be removed.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The new mode.
    pub mode: Mode,
    /// What the old mode served before the change of mode.
    pub before: &'a Services,
    /// What of that the old mode served at a later capture, or the API still has, if either is known.
    pub later: Option<&'a Services>,
}

/// What shows, besides the kernel's objects, that kube-proxy runs in the new mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Witness {
    /// The processes of the state, of which exactly one must be a kube-proxy, and the reply of that
    /// one to `GET /proxyMode`; none if it does not reply.
    Reply(Option<String>),
    /// Whether kube-proxy's controller has a process that runs. A rollback asks for no more,
    /// because the processes of others and their replies must not prevent it.
    Controller {
        /// Whether it has one.
        runs: bool,
    },
}

/// Judges whether the new mode serves, from the node's state and a `witness`.
pub fn convergence(
    catalogue: &Catalogue,
    state: &NodeState,
    witness: &Witness,
    expected: Expected<'_>,
) -> Convergence {
    let Expected { mode: new, before, later } = expected;
    let mode = mode::of(new);
    let ownership = Ownership::of(catalogue, state);
    let now = mode.services(state);
    let mut waiting: Vec<String> = match witness {
        Witness::Reply(reported) => {
            processes(state).into_iter().chain(answer(reported.as_deref(), new)).collect()
        }
        Witness::Controller { runs: true } => Vec::new(),
        Witness::Controller { runs: false } => vec!["kube-proxy does not run".into()],
    };
    // What was served before may have been deleted since.
    let families = families(later.unwrap_or(before));
    waiting.extend(own_objects(state, &ownership, mode, &families));
    waiting.extend(mode.missing_addresses(state, before, &now));
    let is_served = |family| families.contains(&family) || mode.has_started(state, family);
    waiting.extend(used_leftovers(state, &ownership, new, is_served));
    let parity = parity_since(before, later, &now);
    waiting.extend(parity.missing.iter().map(ToString::to_string));
    if !waiting.is_empty() {
        return Convergence::Waiting(waiting);
    }
    match used_leftovers(state, &ownership, new, |family| !is_served(family)) {
        late if late.is_empty() => Convergence::Converged(parity.changed),
        late => Convergence::Late(late, parity.changed),
    }
}

/// What is wrong with the processes; `None` if exactly one kube-proxy runs, alone or inside another
/// program (k3s).
fn processes(state: &NodeState) -> Option<String> {
    match ProxyState::of(state) {
        ProxyState::One(_) | ProxyState::PartOf(..) => None,
        ProxyState::Many(all) => {
            let pids: Vec<String> = all.iter().map(|p| p.pid.to_string()).collect();
            let count = all.len();
            Some(format!("{count} kube-proxies run, and there must be one: {}", pids.join(", ")))
        }
        ProxyState::Unknown(why) => Some(format!("whether kube-proxy runs is not known: {why}")),
        ProxyState::Down(_) | ProxyState::Replaced(_) | ProxyState::Gone => {
            Some("no kube-proxy runs in this network namespace".into())
        }
    }
}

fn answer(reported: Option<&str>, mode: Mode) -> Option<String> {
    match reported {
        Some(reported) if reported == mode.name() => None,
        Some(reported) => Some(format!("kube-proxy says that it runs in {reported} mode")),
        None => Some("kube-proxy does not answer to GET /proxyMode".into()),
    }
}

/// The address families of the services that have endpoints.
fn families(before: &Services) -> BTreeSet<Family> {
    before.iter().filter(|(_, s)| !s.backends.is_empty()).map(|(key, _)| key.family()).collect()
}

/// Which of the new mode's own objects are missing, for each family that has services.
fn own_objects(
    state: &NodeState,
    ownership: &Ownership<'_>,
    mode: &dyn ProxyMode,
    families: &BTreeSet<Family>,
) -> Vec<String> {
    let missing: Vec<String> =
        families.iter().filter_map(|family| mode.missing_objects(state, *family)).collect();
    if !missing.is_empty() || families.is_empty() {
        return missing;
    }
    // The objects exist. Besides, kube-proxy's own jumps must lead to the objects, and no other
    // mode may serve beside this mode.
    let running = RunningMode::of(state, ownership);
    if running.mode == Some(mode.mode()) { Vec::new() } else { vec![running.evidence] }
}

/// Chains that the mode `to` uses and that still refer to objects of another mode, in the families
/// that `counts` returns true for.
fn used_leftovers(
    state: &NodeState,
    ownership: &Ownership<'_>,
    to: Mode,
    counts: impl Fn(Family) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for (id, ruleset) in state.rulesets.iter().filter(|(id, _)| counts(id.family)) {
        let rewrite = Rewrite { ownership, id: *id, ruleset, to };
        for table in &ruleset.tables {
            for chain in table.chains.iter().filter(|c| rewrite.uses(table, &c.name) == Some(true))
            {
                // For each kind of reference (to a chain, to an ipset): the first object referred
                // to, and the number of rules.
                let mut dangling: BTreeMap<&str, (String, usize)> = BTreeMap::new();
                let mut count = |refers, to: &str| {
                    dangling.entry(refers).or_insert_with(|| (to.to_owned(), 0)).1 += 1;
                };
                for rule in &chain.rules {
                    if let Some(chain) = rewrite.unused_chain(table, rule) {
                        count("leads to", chain);
                    }
                    if let Some(set) = rewrite.unused_set(rule) {
                        count("matches the set", &set);
                    }
                }
                for (refers, (first, count)) in dangling {
                    let more = match count {
                        1 => String::new(),
                        n => format!(" and {} more", n - 1),
                    };
                    let position = format!("{id} {} {}", table.name, chain.name);
                    found.push(format!("{position} still {refers} {first}{more}"));
                }
            }
        }
    }
    found
}
