//! Rolls back to an earlier snapshot. Every run since that snapshot is undone, the last one first,
//! each with its own snapshot as the base of the merge. So a restored rule finds the neighbours
//! that it had, and a migration is undone by starting the old mode, never by writing kube-proxy's
//! rules. Foreign changes are kept.

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::run::Context;
use crate::run::rollback::{UndoReport, roll_back};
use crate::run::stored::parse_snapshot;
use crate::state::Files;
use crate::store::KEEP;
use crate::store::manifest::Manifest;
use crate::store::run::{Run, RunState};
use crate::store::snapshots::Snapshot;

/// The runs to undo in order to return to a snapshot.
#[derive(Debug, Clone)]
pub struct RollbackPlan {
    /// The manifest of the snapshot to return to.
    pub snapshot: Manifest,
    /// The runs since the snapshot, the last one first.
    pub runs: Vec<Run>,
}

/// The result of a rollback to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollbackReport {
    /// The id of the snapshot.
    pub snapshot: String,
    /// What was undone of each run, the last run first.
    pub undone: Vec<UndoReport>,
    /// Foreign changes, which are kept: the differences from the snapshot that are left.
    pub others: Vec<String>,
}

/// Rolls back to the snapshot in `dir`. `approve` is called once, unless there is no run to undo.
///
/// # Errors
/// [`Kind::SnapshotRefused`] for a snapshot of another machine, boot or network namespace, or one
/// taken in the middle of a run; [`Kind::NotRolledBack`] for the first run that cannot be undone
/// entirely. Runs before that one are not undone.
pub fn rollback_to(
    context: &Context<'_>,
    dir: &Path,
    approve: &dyn Fn(&RollbackPlan) -> Result<bool>,
) -> Result<RollbackReport> {
    let _lock = context.lock("rollback")?;
    let (way, files) = way(context, dir)?;
    let base = parse_snapshot(files)?;
    if !way.runs.is_empty() && !approve(&way)? {
        return Err(Error::new(Kind::Interrupted, "rollback", "declined; nothing was changed"));
    }
    let RollbackPlan { snapshot, runs } = way;
    let mut undone = Vec::new();
    for run in runs {
        context.sink.note(format!("undoing run {} ({})", run.id, run.verb()));
        undone.push(roll_back(context, run)?);
    }
    let now = context.observe_objects()?;
    let others = base.differences(&now).iter().map(ToString::to_string).collect();
    Ok(RollbackReport { snapshot: snapshot.id, undone, others })
}

/// The runs that [`rollback_to`] would undo; nothing is changed.
///
/// # Errors
/// As [`rollback_to`], as far as it fails before it changes anything.
pub fn intended(context: &Context<'_>, dir: &Path) -> Result<RollbackPlan> {
    way(context, dir).map(|(way, _)| way)
}

fn way(context: &Context<'_>, dir: &Path) -> Result<(RollbackPlan, Files)> {
    let loaded = Snapshot::load(dir)?;
    let snapshot = loaded.for_rollback()?.clone();
    of_here(&snapshot, &Manifest::for_this_node("")?)?;
    let all = context.store.runs()?;
    if let Some(run) = across(&all, &snapshot) {
        let cause =
            format!("was taken in the midst of run {}, which had changed part of it", run.id);
        return Err(refused(&snapshot, cause).hint(format!(
            "go back to before that run: `proxyshift rollback --to {}`",
            run.snapshot
        )));
    }
    let runs = since(&snapshot, all, context.store.took(&snapshot))?;
    Ok((RollbackPlan { snapshot, runs }, loaded.files))
}

fn refused(snapshot: &Manifest, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::SnapshotRefused, format!("snapshot {}", snapshot.id), cause)
}

/// Refuses a snapshot of another machine, boot or network namespace.
fn of_here(snapshot: &Manifest, here: &Manifest) -> Result<()> {
    if snapshot.machine_id != here.machine_id {
        let cause = format!("was taken on another machine, {}", snapshot.node);
        return Err(
            refused(snapshot, cause).hint("choose one of this machine: `proxyshift snapshot list`")
        );
    }
    if snapshot.boot_id != here.boot_id {
        let cause = "was taken before the last reboot: the rules of that boot went with it, and \
                     were made anew";
        return Err(refused(snapshot, cause).hint(format!(
            "`proxyshift plan` shows what is left to do; `proxyshift snapshot diff {}` shows what \
             is different now",
            snapshot.id
        )));
    }
    if snapshot.netns != here.netns {
        return Err(refused(snapshot, "was taken in another network namespace")
            .hint("run proxyshift there, as with `nsenter --net`"));
    }
    Ok(())
}

/// Whether `run` changed the node after `snapshot` was taken. A run's own snapshot is taken right
/// before the run's first change. Where `ordered` is false, the number of the snapshot is not one of
/// this store's; then the identifiers, which are times, must do.
fn is_after(run: &Run, snapshot: &Manifest, ordered: bool) -> bool {
    match (run.seq, snapshot.seq) {
        (1.., _) | (_, 1..) if ordered => run.seq > snapshot.seq,
        _ => run.snapshot >= snapshot.id,
    }
}

/// The runs that changed this network namespace since the snapshot, the last one first. `runs` are
/// all runs, oldest first.
fn since(snapshot: &Manifest, runs: Vec<Run>, ordered: bool) -> Result<Vec<Run>> {
    // Pruning keeps the last runs; of those before, some may be gone.
    let first = runs.len().checked_sub(KEEP).and_then(|first| runs.get(first));
    let pruned =
        first.is_some_and(|run| run.snapshot != snapshot.id && is_after(run, snapshot, ordered));
    if pruned {
        let cause = format!("there were {KEEP} runs or more since, and the first may be forgotten");
        return Err(refused(snapshot, cause)
            .hint("choose a later one: `proxyshift snapshot list`; or its restore.sh, by hand"));
    }
    let concerned = |run: &Run| {
        let stands =
            run.state.is_pending() || matches!(run.state, RunState::Done | RunState::UndonePartly);
        stands && run.boot_id == snapshot.boot_id && run.netns.inode == snapshot.netns
    };
    let mut since: Vec<Run> =
        runs.into_iter().filter(|run| concerned(run) && is_after(run, snapshot, ordered)).collect();
    since.reverse();
    Ok(since)
}

/// The run in whose middle the snapshot was taken. Only the run itself can have taken it, because a
/// run holds the node's lock.
fn across(runs: &[Run], snapshot: &Manifest) -> Option<Run> {
    let clean_snapshot = |run: &&Run| {
        let id = run.pending.as_ref().and_then(|s| s.clean_snapshot.as_deref());
        id == Some(&snapshot.id) && run.snapshot != snapshot.id
    };
    runs.iter().find(clean_snapshot).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Netns;
    use crate::store::run::{CleanupOptions, RunKind};

    fn here() -> Manifest {
        let netns = Netns::current().unwrap().inode;
        Manifest {
            id: "20261121T201502Z-800000".into(),
            netns,
            ..Manifest::for_this_node("").unwrap()
        }
    }

    #[test]
    fn only_a_snapshot_of_this_machine_boot_and_namespace_will_do() {
        assert!(of_here(&here(), &here()).is_ok());
        for (other, words) in [
            (Manifest { machine_id: "x".into(), ..here() }, "another machine"),
            (Manifest { boot_id: "x".into(), ..here() }, "last reboot"),
            (Manifest { netns: 1, ..here() }, "another network namespace"),
        ] {
            let error = of_here(&other, &here()).unwrap_err();
            assert_eq!(error.kind.exit_code(), 3, "{error}");
            assert!(error.cause.contains(words) && error.hint.is_some(), "{error}");
        }
    }

    #[test]
    fn the_runs_since_are_those_whose_changes_stand_and_the_last_comes_first() {
        let tmp = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(Some(&tmp.path().join("store"))).unwrap();
        let mut all = Vec::new();
        for (id, state) in [
            ("20261121T201502Z-7fffff", RunState::Done),
            ("20261121T201502Z-800000", RunState::Done),
            ("20261121T201502Z-800001", RunState::RolledBack),
            ("20261121T201503Z-000000", RunState::UndonePartly),
        ] {
            let mut run = store.start(RunKind::Cleanup(CleanupOptions::default()), id).unwrap();
            store.finish(&mut run, state).unwrap();
            all.push(run);
        }
        let ids = |runs: Vec<Run>| runs.into_iter().map(|r| r.snapshot).collect::<Vec<_>>();
        let last_two = ["20261121T201503Z-000000", "20261121T201502Z-800000"];
        // The number decides, whatever the clock said; without numbers the identifiers do.
        let late = Manifest { id: "20361121T201502Z-000000".into(), seq: 1, ..here() };
        assert_eq!(ids(since(&late, all.clone(), true).unwrap()), last_two);
        let unnumbered: Vec<Run> = all.iter().map(|run| Run { seq: 0, ..run.clone() }).collect();
        assert_eq!(ids(since(&here(), unnumbered, true).unwrap()), last_two);
        assert_eq!(ids(since(&here(), all.clone(), false).unwrap()), last_two);
        let many: Vec<Run> = std::iter::repeat_n(all[3].clone(), KEEP).collect();
        assert!(since(&here(), many, true).unwrap_err().cause.contains("forgotten"));
    }
}
