//! Convergence: whether kube-proxy serves in its new mode, so that what the old one left can go.
//!
//! It is seen in the kernel, not believed. In ipvs mode the virtual servers are there, and
//! `/proxyMode` says ipvs, seconds before the one restore that takes over: until then the old rules
//! serve, and removing them fails or hurts.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use crate::owners::catalogue::Catalogue;
use crate::owners::life;
use crate::owners::matcher::Ownership;
use crate::owners::mode;
use crate::plan::parity::{Changed, parity_since};
use crate::plan::services::{Place, ServiceKey, Services, services};
use crate::state::kube_proxy::{CommandLine, Mode};
use crate::state::ruleset::Chain;
use crate::state::tools::Process;
use crate::state::{Family, NodeState, RulesetId};

/// Whether the new mode serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Convergence {
    /// It does; with what the old mode lost too, for the report.
    Converged(Vec<Changed>),
    /// Not yet, and why, one sentence each.
    Waiting(Vec<String>),
}

/// What the new mode is held against.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The mode.
    pub mode: Mode,
    /// What the old mode served before the change.
    pub before: &'a Services,
    /// What it served at a later moment, if it was looked at again.
    pub later: Option<&'a Services>,
}

const NAME: &str = "kube-proxy";

/// Judges a node by its state and by what kube-proxy answered to `GET /proxyMode`.
pub fn convergence(
    catalogue: &Catalogue,
    state: &NodeState,
    said: Option<&str>,
    expected: Expected<'_>,
) -> Convergence {
    let Expected { mode, before, later } = expected;
    let ownership = Ownership::of(catalogue, state);
    let now = services(state, mode);
    let mut waiting: Vec<String> = processes(catalogue, state).into_iter().collect();
    waiting.extend(answer(said, mode));
    let families = families(before);
    waiting.extend(own_objects(state, &ownership, mode, &families));
    if mode == Mode::Ipvs {
        waiting.extend(unbound(state, before, &now));
    }
    let is_served = |family| families.contains(&family) || has_begun(state, mode, family);
    waiting.extend(used_leftovers(state, &ownership, mode, is_served));
    let parity = parity_since(before, later, &now);
    waiting.extend(parity.missing.iter().map(ToString::to_string));
    match waiting.is_empty() {
        true => Convergence::Converged(parity.changed),
        false => Convergence::Waiting(waiting),
    }
}

/// The kube-proxy processes that serve, of those in this network namespace.
fn instances(processes: &[Process]) -> Vec<&Process> {
    let cleans = |p: &Process| CommandLine::parse(&p.args).is_ok_and(|line| line.cleanup);
    processes.iter().filter(|p| p.name == NAME && !cleans(p)).collect()
}

/// What is wrong with the processes: there must be one, by itself or as a part of another (k3s).
fn processes(catalogue: &Catalogue, state: &NodeState) -> Option<String> {
    let Some(all) = &state.processes else { return Some("the processes are not known".into()) };
    let own = instances(all);
    match own.len() {
        1 => None,
        0 => {
            let hosts = catalogue.component(NAME).and_then(|c| life::process(c, state));
            let embedded = hosts.is_some_and(|p| p.name != NAME);
            (!embedded).then(|| "no kube-proxy runs in this network namespace".into())
        }
        n => {
            let pids: Vec<String> = own.iter().map(|p| p.pid.to_string()).collect();
            Some(format!("{n} kube-proxies run, and there must be one: {}", pids.join(", ")))
        }
    }
}

fn answer(said: Option<&str>, mode: Mode) -> Option<String> {
    match said {
        Some(said) if said == mode.name() => None,
        Some(said) => Some(format!("kube-proxy says that it runs in {said} mode")),
        None => Some("kube-proxy does not answer to GET /proxyMode".into()),
    }
}

/// The families that have services.
fn families(before: &Services) -> BTreeSet<Family> {
    let family = |key: &ServiceKey| match key.place {
        Place::Address(IpAddr::V4(_)) => Family::Ipv4,
        Place::Address(IpAddr::V6(_)) => Family::Ipv6,
        Place::Node(family) => family,
    };
    before.iter().filter(|(_, s)| !s.backends.is_empty()).map(|(key, _)| family(key)).collect()
}

/// What is not there yet of the mode's own, for each family that has services.
fn own_objects(
    state: &NodeState,
    ownership: &Ownership<'_>,
    mode: Mode,
    families: &BTreeSet<Family>,
) -> Vec<String> {
    let in_place = |family: Family| match mode {
        Mode::Iptables => {
            let mut rules = kube_services(state, family).flat_map(|(_, chain)| &chain.rules);
            let found =
                rules.any(|r| r.target.as_ref().is_some_and(|t| t.starts_with("KUBE-SVC-")));
            (!found).then(|| format!("{family}: nat KUBE-SERVICES leads to no service"))
        }
        Mode::Ipvs => cut_over(state, family),
        Mode::Nftables => {
            let found = state.nft.get(family.nft(), NAME).is_some();
            (!found).then(|| format!("{family}: there is no table {} {NAME}", family.nft()))
        }
        Mode::Userspace => Some("userspace mode cannot be judged".into()),
    };
    let missing: Vec<String> = families.iter().filter_map(|f| in_place(*f)).collect();
    if !missing.is_empty() || families.is_empty() {
        return missing;
    }
    // Hooked in, written by kube-proxy, and no other mode serves beside it.
    let running = mode::running(state, ownership);
    match running.mode == Some(mode) {
        true => Vec::new(),
        false => vec![running.evidence],
    }
}

/// The chain nat KUBE-SERVICES of a family, in either backend.
fn kube_services(state: &NodeState, family: Family) -> impl Iterator<Item = (RulesetId, &Chain)> {
    let of_family = state.rulesets.iter().filter(move |(id, _)| id.family == family);
    of_family.filter_map(|(id, r)| Some((*id, r.table("nat")?.chain("KUBE-SERVICES")?)))
}

fn cluster_set(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "KUBE-CLUSTER-IP",
        Family::Ipv6 => "KUBE-6-CLUSTER-IP",
    }
}

/// True if the mode writes this family, by what it makes at its start. A family that only an
/// earlier kube-proxy wrote is not waited for: nobody will write it anew.
fn has_begun(state: &NodeState, mode: Mode, family: Family) -> bool {
    match mode {
        Mode::Ipvs => state.ipsets.get(cluster_set(family)).is_some(),
        Mode::Iptables => {
            state.rulesets.iter().filter(|(id, _)| id.family == family).any(|(_, ruleset)| {
                ruleset.table("nat").is_some_and(|t| t.chain("KUBE-PROXY-CANARY").is_some())
            })
        }
        Mode::Nftables | Mode::Userspace => false,
    }
}

/// What is missing of ipvs mode's one restore: its rules in nat KUBE-SERVICES, by their set.
fn cut_over(state: &NodeState, family: Family) -> Option<String> {
    let set = cluster_set(family);
    if state.ipsets.get(set).is_none_or(|s| s.entries.is_empty()) {
        return Some(format!("{family}: the set {set} is empty"));
    }
    let found = kube_services(state, family).any(|(id, chain)| {
        let matches = |r| state.rulesets[&id].words(r).sets().iter().any(|s| s == set);
        chain.rules.iter().any(matches)
    });
    (!found).then(|| format!("{family}: nat KUBE-SERVICES does not match the set {set} yet"))
}

/// Addresses that virtual servers serve but no link has, so that no packet comes to them.
fn unbound(state: &NodeState, before: &Services, now: &Services) -> Vec<String> {
    if state.links.is_empty() {
        return vec!["the links are not known".into()];
    }
    let links = state.links.iter().flat_map(|l| &l.addresses);
    let bound: HashSet<IpAddr> = links.map(ipnet::IpNet::addr).collect();
    let served = now.keys().filter(|key| before.contains_key(key));
    let missing: BTreeSet<IpAddr> =
        served.filter_map(ServiceKey::address).filter(|a| !bound.contains(a)).collect();
    missing.iter().map(|a| format!("{a} is not on kube-ipvs0 yet")).collect()
}

/// Chains that the mode uses and that still refer to what only another mode uses.
fn used_leftovers(
    state: &NodeState,
    ownership: &Ownership<'_>,
    mode: Mode,
    is_served: impl Fn(Family) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for (id, ruleset) in state.rulesets.iter().filter(|(id, _)| is_served(id.family)) {
        for table in &ruleset.tables {
            // Whether it is kube-proxy's, and this mode's.
            let is_used = |chain: &str| -> Option<bool> {
                let entry = ownership.chain_entry(*id, &table.name, chain)?;
                let own = ownership.chain_name(*id, &table.name, chain) == NAME;
                own.then(|| entry.modes.is_empty() || entry.modes.contains(&mode))
            };
            for chain in table.chains.iter().filter(|c| is_used(&c.name) == Some(true)) {
                // The first of each kind, and how many.
                let mut to: BTreeMap<&str, (String, usize)> = BTreeMap::new();
                for rule in &chain.rules {
                    let left = |t: &&str| is_used(t) == Some(false);
                    if let Some(target) = rule.target.as_deref().filter(left) {
                        to.entry("leads to").or_insert_with(|| (target.to_owned(), 0)).1 += 1;
                    }
                    if mode == Mode::Ipvs || !ruleset.rule_text(rule).contains("--match-set") {
                        continue;
                    }
                    let own = |s: &str| ownership.set(s).is_some_and(|o| o.name == NAME);
                    if let Some(set) = ruleset.words(rule).sets().iter().find(|s| own(s)) {
                        let entry = to.entry("matches the set");
                        entry.or_insert_with(|| (set.to_string(), 0)).1 += 1;
                    }
                }
                for (refers, (first, count)) in to {
                    let more = match count {
                        1 => String::new(),
                        n => format!(" and {} more", n - 1),
                    };
                    let place = format!("{id} {} {}", table.name, chain.name);
                    found.push(format!("{place} still {refers} {first}{more}"));
                }
            }
        }
    }
    found
}
