//! Snapshots as the store has them: how they are written, read back and parsed.

use crate::error::{Error, Kind, LONGEST_CAUSE, LONGEST_NAME, Result, shortened};
use crate::run::Context;
use crate::state::ipvs::{RealServer, VirtualServer, VirtualServers};
use crate::state::rule::Words;
use crate::state::ruleset::Table;
use crate::state::{Files, NodeState};
use crate::store::manifest::{IpvsThreshold, Manifest};
use crate::store::run::Run;
use crate::store::snapshots::Snapshot;

/// A snapshot and the node state in it.
pub struct Baseline {
    /// The files of the snapshot on disk.
    pub snapshot: Snapshot,
    /// The node state that these files hold.
    pub state: NodeState,
}

/// Writes a snapshot of `state`, with `why` in its manifest. The files are read back, and must
/// parse and render to the same bytes. Whether the snapshot restores is not known yet.
///
/// # Errors
/// [`Kind::Store`]; [`Kind::SnapshotRefused`].
pub(super) fn write_snapshot(
    context: &Context<'_>,
    state: &NodeState,
    why: &str,
) -> Result<Snapshot> {
    let ipvs_thresholds = thresholds(&state.ipvs);
    let manifest = Manifest { ipvs_thresholds, ..Manifest::for_this_node(why)? };
    context.store.create(&state.files, manifest, &|_| renders_back(state))
}

/// The connection limits of real servers, for a person who reads the manifest. `ipvs.save` has the
/// limits too.
fn thresholds(ipvs: &VirtualServers) -> Vec<IpvsThreshold> {
    let reals = ipvs.servers.iter().flat_map(|s| s.reals.iter().map(move |real| (s, real)));
    let limited = reals.filter(|(_, real)| real.upper.is_some() || real.lower.is_some());
    let row = |(server, real): (&VirtualServer, &RealServer)| IpvsThreshold {
        service: server.service.selector(),
        server: real.address.to_string(),
        upper: real.upper.unwrap_or(0),
        lower: real.lower.unwrap_or(0),
    };
    limited.map(row).collect()
}

/// The node state in a snapshot's files.
///
/// # Errors
/// [`Kind::SnapshotRefused`] naming the file that does not parse.
pub fn parse_snapshot(files: Files) -> Result<NodeState> {
    let known = |name: &String| {
        name.ends_with(".save") || name == "addr.json" || name == "nft.json" || name == "tools.txt"
    };
    if !files.keys().any(known) {
        return Err(Error::new(
            Kind::SnapshotRefused,
            "the directory",
            "is not a captured node: it holds none of a capture's files",
        ));
    }
    let refused = |object: &str, cause: &str| {
        let object = shortened(object, LONGEST_NAME);
        Error::new(Kind::SnapshotRefused, object, shortened(cause, LONGEST_CAUSE)).hint(
            "choose another with `proxyshift snapshot list`, \
             or take a new one with `proxyshift snapshot create`",
        )
    };
    let state = NodeState::parse(files).map_err(|e| refused(&e.object, &e.cause))?;
    for (id, ruleset) in &state.rulesets {
        let rules = ruleset.tables.iter().flat_map(Table::rules).map(|(_, _, rule)| rule);
        if let Some(rule) = { rules }.find(|rule| names_a_program(ruleset.words(rule))) {
            let cause = format!("a rule that names a program: {}", ruleset.rule_text(rule));
            return Err(refused(&id.file(), &cause));
        }
    }
    Ok(state)
}

/// The files of a capture without those of rules and sets: what can still be judged of a node of which
/// these are not known.
pub fn beside_rules(mut files: Files) -> Files {
    let beside = ["ipvs.save", "ipvs.list", "ipvs.stats"];
    files.retain(|name, _| {
        let of_rules = name.ends_with(".save") || name.starts_with("nft.");
        !of_rules || beside.contains(&name.as_str())
    });
    files
}

/// Whether a rule has the option `-M PROGRAM`, in any spelling that getopt takes, quoted or not:
/// iptables-restore would start that program as root, and no save has the option.
fn names_a_program(words: Words<'_>) -> bool {
    words.possible_options().into_iter().any(|option| {
        let option = option.split('=').next().unwrap_or_default();
        match option.strip_prefix("--") {
            Some(long) => long.len() > 1 && "modprobe".starts_with(long),
            None => option.strip_prefix('-').is_some_and(|short| short.contains('M')),
        }
    })
}

/// The node state in the snapshot of `run`, which a rollback restores.
///
/// # Errors
/// When the run's snapshot is gone, damaged, or of a kind that cannot be restored.
pub(super) fn load_baseline(context: &Context<'_>, run: &Run) -> Result<NodeState> {
    let snapshot = context.store.snapshot_of(run, &run.snapshot)?;
    let loaded = Snapshot::load(&snapshot.dir)?;
    loaded.for_rollback()?;
    parse_snapshot(loaded.files)
}

/// The node state in the snapshot of `run` with the id `id`.
///
/// # Errors
/// When the snapshot is gone or damaged.
pub(super) fn load_state(context: &Context<'_>, run: &Run, id: &str) -> Result<NodeState> {
    parse_snapshot(Snapshot::load(&context.store.snapshot_of(run, id)?.dir)?.files)
}

/// Parses each file of a snapshot again. Files in line formats must also render to the same bytes.
///
/// # Errors
/// [`Kind::SnapshotRefused`] naming the file that fails.
pub fn reparses(files: &Files) -> Result<()> {
    renders_back(&parse_snapshot(files.clone())?)
}

fn renders_back(state: &NodeState) -> Result<()> {
    match state.unfaithful_file() {
        None => Ok(()),
        Some(name) => {
            let cause = "parses, but does not render to the same bytes";
            Err(Error::new(Kind::SnapshotRefused, name, cause))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_a_program_however_it_is_spelt() {
        for rule in [
            "-M /x",
            "-M/x",
            "--modprobe /x",
            "--mod=/x",
            "-nM /x",
            "--comment -M -M /x",
            "\"-M\" /x",
            "\"--modprobe=/x\"",
            "-s \"-M/x\"",
        ] {
            assert!(names_a_program(Words::of_rule(&format!("-A INPUT {rule}"))), "{rule}");
        }
        for rule in [
            "-m statistic --mode random",
            "-j MASQUERADE",
            "-m comment --comment -M",
            "--comment \"-M /x\"",
        ] {
            assert!(!names_a_program(Words::of_rule(&format!("-A INPUT {rule}"))), "{rule}");
        }
    }
}
