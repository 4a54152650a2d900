//! A whole run in a private namespace that holds a node's state: load the state, verify, apply the
//! edits, verify, roll back, verify.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::event::{Claim, Moment, Outcome, Silent, Sink, Task};
use crate::kube_proxy::takeover::predict_takeover;
use crate::node::capture::Extent;
use crate::node::observe::observe_tolerant;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::owners::component::KUBE_PROXY;
use crate::plan::Plan;
use crate::plan::change::{Direction, Edit, Target, detach, edits};
use crate::plan::invariants::{remaining_state, unexpected_changes};
use crate::plan::leftovers::{CleanupScope, leftovers_after};
use crate::run::Context;
use crate::run::apply_edits::execute;
use crate::run::payload::replay;
use crate::run::sandbox::RehearsalReport;
use crate::run::sandbox::bridge;
use crate::run::sandbox::links::create_stand_ins;
use crate::run::sandbox::load::load;
use crate::run::sandbox::packet_probe::Hosts;
use crate::run::sandbox::packets::CarriedPackets;
use crate::run::stored::{parse_snapshot, write_snapshot};
use crate::run::undo_edits::undo_edits;
use crate::state::NodeState;
use crate::state::ipset::IpSets;
use crate::state::kube_proxy::Mode;
use crate::state::nft::{NftTable, NftTables};
use crate::state::nft_messages::TableMessages;
use crate::state::stage::RunStage;
use crate::store::Store;
use crate::store::journal::{self, Journal};
use crate::store::run::{CleanupOptions, RunKind};
use crate::store::snapshots::Snapshot;

/// Mounts a `/run` of our own, for locks, named namespaces and the store of the rehearsal. It hides
/// the `/run` of the node.
fn own_run() -> Result<()> {
    use rustix::mount::{MountFlags, mount};
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID, c"mode=0755")
        .map_err(|e| Error::io("/run", &e.into()))
}

fn state_in(dir: &Path) -> Result<NodeState> {
    parse_snapshot(Snapshot::load(dir)?.files)
}

/// What is rehearsed: where its edits come from.
pub(super) enum Rehearsal {
    /// The removal of leftovers.
    CleanUp,
    /// The edits that the caller gives, such as the remedies of checks.
    Edits(Vec<Edit>),
    /// The removal of the leftovers that exist after kube-proxy has moved to that mode.
    Leaving(Mode),
}

/// The folder of a snapshot, held open because our own `/run` may hide its path. A node state is as
/// large as the node's rules, so it is read from this folder again rather than kept in memory.
struct SnapshotFolder {
    folder: File,
    /// The mode after a takeover; none if no takeover is rehearsed.
    to: Option<Mode>,
}

impl SnapshotFolder {
    fn open(dir: &Path, to: Option<Mode>) -> Result<SnapshotFolder> {
        let folder = File::open(dir).map_err(|e| Error::io(dir, &e))?;
        Ok(SnapshotFolder { folder, to })
    }

    /// The state of the snapshot.
    fn captured(&self) -> Result<NodeState> {
        state_in(Path::new(&format!("/proc/self/fd/{}", self.folder.as_raw_fd())))
    }

    /// The state after the takeover, if one is rehearsed; else that of the snapshot.
    fn state(&self) -> Result<NodeState> {
        let state = self.captured()?;
        match self.to {
            None => Ok(state),
            Some(to) => predict_takeover(&Catalogue::builtin()?, &state, to),
        }
    }
}

/// Loads the snapshot in `dir`, captures the result, and compares both.
pub(super) fn validate(dir: &Path, tools: &Tools) -> Result<RehearsalReport> {
    let folder = SnapshotFolder::open(dir, None)?;
    let given = folder.state()?;
    own_run()?;
    let unsupported = load(&given, tools)?.into_names();
    let loaded = given.fingerprint();
    let messages = given.nft_messages.clone();
    drop(given);
    let now = observe_tolerant(tools, Extent::Objects, &Silent)?;
    same_messages("the snapshot", &messages, &now.nft_messages)?;
    if unsupported.is_empty() && now.fingerprint() != loaded {
        same_rules("the snapshot", &folder.state()?, &now, &[])?;
    }
    Ok(RehearsalReport { unsupported, ..RehearsalReport::default() })
}

/// Fails on the first difference in rules or ipsets that `edits` do not explain. Returns how many
/// rules the edits do not concern.
fn same_rules(what: &str, before: &NodeState, after: &NodeState, edits: &[Edit]) -> Result<usize> {
    let ids = before.rulesets.keys().chain(after.rulesets.keys());
    for id in ids {
        let (a, b) = (before.rulesets.get(id), after.rulesets.get(id));
        if let Some(difference) = unexpected_changes(*id, a, b, edits).first() {
            let cause = "differs after it was restored in a private namespace";
            return Err(Error::new(Kind::Rehearsal, difference.to_string(), cause).hint(format!(
                "{what} cannot be relied on with the tools of this node; nothing was changed"
            )));
        }
    }
    let before_and_after = before.named_differences(after);
    if let Some(difference) = before_and_after.first() {
        let cause = "an object that rules name differs";
        return Err(Error::new(Kind::Rehearsal, difference.to_string(), cause));
    }
    let sets = edits.iter().all(|e| matches!(e.target, Target::Table(_)));
    if let Some(difference) = before.ipsets.differences(&after.ipsets).first().filter(|_| sets) {
        return Err(Error::new(Kind::Rehearsal, difference, "an ipset differs"));
    }
    Ok(rules(after).saturating_sub(edits.iter().map(Edit::rules_added).sum()))
}

/// Fails if a native table that was loaded is not made of the same parts again.
fn same_messages(what: &str, before: &TableMessages, after: &TableMessages) -> Result<()> {
    match before.changed(after).first() {
        None => Ok(()),
        Some((family, name)) => {
            let object = format!("nft table {family} {name}");
            let cause = "differs after it was restored in a private namespace";
            Err(Error::new(Kind::Rehearsal, object, cause)
                .hint(format!("{what} cannot be relied on with this kernel; nothing was changed")))
        }
    }
}

/// Fails on the first difference between the native tables of this namespace, but for those that
/// `edits` remove.
fn same_native_tables(before: &NftTables, after: &NftTables, edits: &[Edit]) -> Result<()> {
    let is_removed = |table: &&NftTable| {
        edits.iter().any(|edit| match (&edit.target, edit.direction) {
            (Target::NativeTable(t), Direction::Remove) => {
                (&t.family, &t.name) == (&table.family, &table.name)
            }
            _ => false,
        })
    };
    let kept = before.tables.iter().filter(|table| !is_removed(table)).cloned().collect();
    let kept = NftTables { tables: kept, other: Vec::new() };
    match kept.differences(after).first() {
        None => Ok(()),
        Some(difference) => Err(Error::new(Kind::Rehearsal, difference, "a native table differs")),
    }
}

/// Whether the rules that two states have in common have the same text, byte for byte. The caller
/// has already verified that they mean the same.
fn same_bytes(a: &NodeState, b: &NodeState) -> bool {
    fn texts(state: &NodeState) -> BTreeSet<&str> {
        let rules = state.rulesets.values().flat_map(|r| r.tables.iter().map(move |t| (r, t)));
        rules.flat_map(|(r, t)| t.rules().map(|(_, _, rule)| r.rule_text(rule))).collect()
    }
    let (a, b) = (texts(a), texts(b));
    a.is_superset(&b) || b.is_superset(&a)
}

/// The claims that were verified so far. Each is reported as soon as it is verified.
struct Claims<'a> {
    sink: &'a dyn Sink,
    all: Vec<Claim>,
}

impl Claims<'_> {
    fn verified(&mut self, claim: Claim) {
        self.sink.verified(claim.clone());
        self.all.push(claim);
    }

    fn packets(&mut self, when: Moment, hosts: Option<&Hosts>) -> Result<()> {
        for path in hosts.map(Hosts::probe).transpose()?.into_iter().flatten() {
            self.verified(Claim::Packet { when, path });
        }
        Ok(())
    }
}

/// Loads the snapshot in `dir`, applies the edits, rolls them back, and verifies both.
pub(super) fn rehearse(
    dir: &Path,
    rehearsal: Rehearsal,
    tools: &Tools,
    sink: &dyn Sink,
) -> Result<RehearsalReport> {
    let to = match rehearsal {
        Rehearsal::Leaving(to) => Some(to),
        Rehearsal::CleanUp | Rehearsal::Edits(_) => None,
    };
    let folder = SnapshotFolder::open(dir, to)?;
    let given = folder.state()?;
    own_run()?;
    let mut claims = Claims { sink, all: Vec::new() };

    let task = Task::Load;
    sink.started(&task);
    create_stand_ins(&given, tools)?;
    let unsupported = load(&given, tools)?;
    let mut hosts = Hosts::attach(&given, tools)?;
    let captured = given.fingerprint();
    let messages = given.nft_messages.clone();
    drop(given);
    let now = observe_tolerant(tools, Extent::Objects, &Silent)?;
    same_messages("the capture", &messages, &now.nft_messages)?;
    let all_rules = unsupported.lines.is_empty();
    let unsupported = unsupported.into_names();
    let loaded = if all_rules {
        if now.fingerprint() != captured {
            same_rules("the capture", &folder.state()?, &now, &[])?;
        }
        Outcome::Loaded { rules: rules(&now), less: to.map(|to| to.to_string()) }
    } else {
        Outcome::LoadedPartly { unsupported: unsupported.len() }
    };
    sink.finished(&task, loaded.clone());
    claims.all.push(Claim::Loaded { outcome: loaded });
    let store = Store::open(Some(Path::new("/run/proxyshift-store")))?;
    let catalogue = Catalogue::builtin()?;
    if let Some(to) = to
        && let Some(attempt) = bridge::try_out(&catalogue, &folder.captured()?, to, tools)?
    {
        claims.verified(Claim::Bridge { frontends: attempt.frontends });
        let CarriedPackets { carried, all, untried } = attempt.packets;
        claims.verified(Claim::Carried { carried, all, untried });
    }
    let context = Context {
        tools,
        store: &store,
        catalogue: &catalogue,
        sink,
        lock_wait: Duration::from_secs(5),
    };
    // The state of this snapshot was just loaded into the namespace, so the snapshot is known to
    // restore.
    let snapshot = write_snapshot(&context, &now, "rehearsal")?;
    let before = now.fingerprint();
    drop(now);
    match &mut hosts {
        None => sink.note("the node has no docker bridge whose packets could be followed"),
        Some(hosts) => {
            let (passed, failed) = hosts.baseline();
            for path in passed {
                claims.verified(Claim::Packet { when: Moment::Before, path });
            }
            for e in failed {
                sink.warning(format!("{e}, before anything was changed; it is not judged further"));
            }
        }
    }

    let (what, after) = match rehearsal {
        Rehearsal::Edits(_) => ("the remedies", Moment::AfterFix),
        Rehearsal::CleanUp | Rehearsal::Leaving(_) => ("the clean-up", Moment::AfterCleanup),
    };
    let mut unrehearsed = Vec::new();
    let edits = match rehearsal {
        Rehearsal::Edits(edits) => edits,
        Rehearsal::CleanUp => {
            let given = folder.state()?;
            let clean_up = |state: &NodeState| CleanupScope::default().plan(&catalogue, state);
            let whole = if unsupported.is_empty() { None } else { Some(clean_up(&given)?) };
            // The messages about native tables are not in a snapshot that an older version took.
            let has_messages = given.nft.tables.is_empty() || !given.nft_messages.is_empty();
            let given = if unsupported.is_empty() && has_messages {
                given
            } else {
                as_held_here(given, state_in(&snapshot.dir)?)
            };
            let removals = whole.iter().flat_map(|plan| plan.removals());
            let missing = removals.filter(|object| !object.id.present_in(&given));
            unrehearsed.extend(missing.map(|object| object.id.to_string()));
            planned(given, clean_up)?
        }
        Rehearsal::Leaving(to) => {
            let here = as_held_here(folder.state()?, state_in(&snapshot.dir)?);
            let owners = [KUBE_PROXY.to_owned()];
            planned(here, |s| Ok(leftovers_after(&catalogue, s, to).of_owners(&owners)))?
        }
    };
    if edits.is_empty() {
        sink.note("there is nothing to remove");
        return Ok(RehearsalReport { unsupported, unrehearsed, removed: 0, claims: claims.all });
    }
    let mut base = remaining_state(state_in(&snapshot.dir)?, &edits)?;
    let run = store.start(RunKind::Cleanup(CleanupOptions::default()), &snapshot.id)?;
    let mut journal = Journal::create(&store.folder(&run.id), 4096)?;
    let edits = execute(&context, &mut journal, RunStage::CLEAN, edits, &|| {
        Err(Error::new(Kind::Rehearsal, "the private namespace", "changed by someone else"))
    })
    .map_err(rehearsal_error)?;
    let clean = observe_tolerant(tools, Extent::Objects, &Silent)?;
    let kept = same_rules(what, &base, &clean, &edits)?;
    same_native_tables(&base.nft, &clean.nft, &edits)?;
    let identical = same_bytes(&base, &clean);
    drop(clean);
    // The content of the ipsets was compared just now. From here on only the ipsets that exist now
    // matter, so the copy in `base` is freed.
    base.ipsets = IpSets::default();
    let removed = edits.iter().map(Edit::objects).sum();
    drop(edits);
    claims.verified(Claim::Rules { when: after, count: kept, identical });
    claims.packets(after, hosts.as_ref())?;

    let lines = journal::read(&store.folder(&run.id))?;
    let undone =
        undo_edits(&context, &mut journal, replay(lines)?, &base).map_err(rehearsal_error)?;
    if !undone.failures.is_empty() {
        let cause = undone.failures.join("; ");
        return Err(Error::new(Kind::Rehearsal, "the rollback", cause));
    }
    let back = observe_tolerant(tools, Extent::Objects, &Silent)?;
    same_native_tables(&base.nft, &back.nft, &[])?;
    same_messages("the rollback", &base.nft_messages, &back.nft_messages)?;
    let identical = if back.fingerprint() == before {
        true
    } else {
        let base = state_in(&snapshot.dir)?;
        same_rules("the rollback", &base, &back, &[])?;
        same_bytes(&base, &back)
    };
    let when = Moment::AfterRollback;
    claims.verified(Claim::Rules { when, count: rules(&back), identical });
    claims.packets(when, hosts.as_ref())?;
    Ok(RehearsalReport { unsupported, unrehearsed, removed, claims: claims.all })
}

/// The edits that carry out a plan for `state`.
fn planned(state: NodeState, plan: impl Fn(&NodeState) -> Result<Plan>) -> Result<Vec<Edit>> {
    let edits = edits(&plan(&state)?, &state);
    drop(state);
    detach(edits)
}

/// The captured node, but with only those objects that this kernel holds. An object that could not
/// be loaded into the namespace can neither be removed nor restored there.
fn as_held_here(given: NodeState, here: NodeState) -> NodeState {
    let NodeState { rulesets, nft, nft_messages, ipsets, ipvs, links, .. } = here;
    NodeState { rulesets, nft, nft_messages, ipsets, ipvs, links, ..given }
}

fn rules(state: &NodeState) -> usize {
    state.rulesets.values().map(|r| r.rule_count()).sum()
}

fn rehearsal_error(e: Error) -> Error {
    Error { kind: Kind::Rehearsal, ..e }
}
