//! Takes validated snapshots. Every run begins with one.
//!
//! Validated means: two captures in a row mean the same; the files were written, synced, read back
//! and parsed to the same bytes; and the files, restored in an empty private namespace, mean the
//! same as the capture.

use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::event::{self, Outcome};
use crate::node::observe::observe;
use crate::run::Context;
use crate::run::sandbox;
use crate::run::sandbox::SandboxTask;
use crate::run::stored::{Baseline, parse_snapshot, write_snapshot};
use crate::state::NodeState;
use crate::store::manifest::Manifest;
use crate::store::snapshots::Snapshot;

/// How many captures are taken, at most, of a node that keeps changing. [`TIMEOUT`] is for how
/// long, at most.
const TRIES: usize = 5;
const TIMEOUT: Duration = Duration::from_secs(15);

/// Takes a validated snapshot of the node. `why` is noted in the snapshot's manifest.
///
/// # Errors
/// [`Kind::Unstable`] naming what keeps changing; [`Kind::LossyCapture`]; [`Kind::Store`];
/// [`Kind::Rehearsal`] when the snapshot does not restore. In this last case, none of the files of
/// the snapshot are kept.
pub fn take_snapshot(context: &Context<'_>, why: &str) -> Result<Baseline> {
    let task = event::Task::CaptureStable;
    context.sink.started(&task);
    let state = capture_stable(context)?;
    context.sink.finished(&task, summary(&state));

    let task = event::Task::Snapshot;
    context.sink.started(&task);
    let snapshot = write_snapshot(context, &state, why)?;
    let restored = sandbox::run(SandboxTask::Validate, &snapshot.dir, context.tools, context.sink)
        .and_then(|report| match report.unsupported.first() {
            None => Ok(()),
            Some(object) => Err(Error::new(
                Kind::Rehearsal,
                object,
                "this kernel does not take it back in a private namespace",
            )),
        });
    if let Err(e) = restored {
        let dir = snapshot.dir.display().to_string();
        // The snapshot is removed, because nobody must take a state that does not restore for a
        // valid snapshot.
        std::fs::remove_dir_all(&snapshot.dir).map_err(|e| Error::io(dir, &e))?;
        return Err(e);
    }
    let store = context.store.dir().display().to_string();
    context.sink.finished(&task, Outcome::Written { snapshot: snapshot.id.clone(), store });
    Ok(Baseline { snapshot, state })
}

/// The latest snapshot, if a rollback can restore it and the node state still means the same as the
/// snapshot.
///
/// # Errors
/// When the node cannot be captured, or the store cannot be read.
pub fn latest_if_current(context: &Context<'_>) -> Result<Option<Snapshot>> {
    let Some(snapshot) = context.store.latest()? else { return Ok(None) };
    let Ok(loaded) = Snapshot::load(&snapshot.dir) else { return Ok(None) };
    let here = Manifest::for_this_node("")?;
    let of_here = |m: &Manifest| {
        (&m.machine_id, &m.boot_id, m.netns) == (&here.machine_id, &here.boot_id, here.netns)
    };
    if !loaded.manifest.as_ref().is_some_and(of_here) {
        return Ok(None);
    }
    // A damaged snapshot counts as no snapshot.
    let Ok(before) = parse_snapshot(loaded.files) else { return Ok(None) };
    let now = observe(context.tools, context.sink)?;
    let differences = before.differences(&now);
    if let Some(first) = differences.first() {
        let id = &snapshot.id;
        context.sink.note(format!("snapshot {id} no longer tells what the node is: {first}"));
    }
    Ok(differences.is_empty().then_some(snapshot))
}

/// Captures the node until two captures in a row mean the same.
fn capture_stable(context: &Context<'_>) -> Result<NodeState> {
    let start = Instant::now();
    let first = observe(context.tools, context.sink)?;
    let (rules, rest) = (first.fingerprint(), first.without_rules());
    let mut before = observe(context.tools, context.sink)?;
    if before.fingerprint() == rules && rest.other_differences(&before).is_empty() {
        return Ok(before);
    }
    // From here on whole states are compared, because fingerprints could not name the difference.
    let mut differences = Vec::new();
    for _ in 1..TRIES {
        let after = observe(context.tools, context.sink)?;
        differences = before.differences(&after);
        if differences.is_empty() {
            return Ok(before);
        }
        before = after;
        if start.elapsed() > TIMEOUT {
            break;
        }
    }
    let shown: Vec<String> = differences.iter().take(3).map(ToString::to_string).collect();
    Err(Error::new(Kind::Unstable, shown.join("; "), "keeps changing while it is captured")
        .hint("find its writer and wait until it is done, or stop it for the time of the run"))
}

/// How many objects a capture has, for the event that it ended.
pub fn summary(state: &NodeState) -> Outcome {
    Outcome::Captured {
        rules: state.rulesets.values().map(|r| r.rule_count()).sum(),
        tables: state.rulesets.values().map(|r| r.tables.len()).sum(),
        sets: state.ipsets.sets.len(),
    }
}
