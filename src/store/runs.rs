//! The runs in the store: begin, update, find and prune.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::run::{BINARY, Run, RunKind, RunState, VERSION};
use super::{Store, disk, entries};
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::runtime::Netns;

/// The name of the file in a run's folder that describes the run.
pub const RUN: &str = "run.json";

impl Store {
    /// Begins a run in this network namespace: creates the run's folder and its `run.json`. The
    /// caller must hold the node's lock.
    ///
    /// # Errors
    /// [`Kind::Pending`] while another run is pending in this network namespace; [`Kind::Store`] on
    /// a full disk.
    pub fn start(&self, kind: RunKind, snapshot: &str) -> Result<Run> {
        if let Some(run) = self.pending()? {
            return Err(Error::new(Kind::Pending, run.id, "this run is not finished")
                .hint("`proxyshift resume`, `proxyshift rollback` or `proxyshift confirm` it"));
        }
        let mut run = Run {
            v: VERSION,
            id: clock::new_id(),
            kind,
            snapshot: snapshot.into(),
            started: clock::now(),
            netns: Netns::current()?,
            boot_id: clock::boot_id(),
            state: RunState::Running,
            ended: None,
            pid: 0,
            pid_start: 0,
            pending: None,
        };
        run.claim();
        // The folder is renamed to the run's identifier only when it has its `run.json`.
        let runs = self.runs_dir();
        let folder = disk::temporary_dir(&runs)?;
        write(folder.path(), &run)?;
        let named = self.run_dir(&run.id);
        fs::rename(folder.path(), &named).map_err(|e| Error::io(&named, &e))?;
        let _ = folder.keep();
        disk::sync_dir(&runs)?;
        Ok(run)
    }

    /// Writes `run` to its `run.json`. Needs no free space on the disk.
    ///
    /// # Errors
    /// If `run.json` cannot be written.
    pub fn update(&self, run: &Run) -> Result<()> {
        write(&self.run_dir(&run.id), run)
    }

    /// Ends `run` in `state`. Removes the copy of proxyshift in the run's folder, because only the
    /// run's watchdog needed that copy.
    ///
    /// # Errors
    /// If `run.json` cannot be written, or the copy cannot be removed.
    pub fn finish(&self, run: &mut Run, state: RunState) -> Result<()> {
        run.state = state;
        run.ended = (!state.is_pending()).then(clock::now);
        self.update(run)?;
        let copy = self.run_dir(&run.id).join(BINARY);
        match fs::remove_file(&copy) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&copy, &e)),
            _ => Ok(()),
        }
    }

    /// The folder of the run `id`, for the run's journal, its playbook and its copy of proxyshift.
    pub fn run_dir(&self, id: &str) -> PathBuf {
        self.runs_dir().join(id)
    }

    /// The pending run of this network namespace; none if there is none.
    ///
    /// # Errors
    /// [`Kind::Store`] if any run cannot be read, because it might be the pending one.
    pub fn pending(&self) -> Result<Option<Run>> {
        let this_netns = Netns::current()?;
        let boot_id = clock::boot_id();
        let mut runs = self.runs()?;
        runs.retain(|run| run.state.is_pending() && run.concerns(this_netns, &boot_id));
        Ok(runs.pop())
    }

    /// The run `id`; none if the store has no such run.
    ///
    /// # Errors
    /// As [`Store::runs`].
    pub fn run(&self, id: &str) -> Result<Option<Run>> {
        Ok(self.runs()?.into_iter().find(|run| run.id == id))
    }

    /// The run that `name` identifies: a run's identifier, or a prefix that only one run has.
    /// Without `name`, the last run.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if no run matches; [`Kind::Usage`] if several runs have the prefix;
    /// otherwise as [`Store::runs`].
    pub fn find_run(&self, name: Option<&str>) -> Result<Run> {
        let mut runs = self.runs()?;
        let named = name.unwrap_or("the last run");
        let missing = |cause: &str| {
            Error::new(Kind::NotFound, named, cause).hint("`proxyshift status` lists the last runs")
        };
        let Some(name) = name else {
            return runs.pop().ok_or_else(|| missing("there was no run yet"));
        };
        if let Some(exact) = runs.iter().position(|run| run.id == name) {
            return Ok(runs.swap_remove(exact));
        }
        runs.retain(|run| !name.is_empty() && run.id.starts_with(name));
        if runs.len() > 1 {
            let ids: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
            let cause = format!("several runs begin so: {}", ids.join(", "));
            return Err(Error::new(Kind::Usage, name, cause).hint("give more of its name"));
        }
        runs.pop().ok_or_else(|| missing("no run of this name"))
    }

    /// All runs, oldest first.
    ///
    /// # Errors
    /// [`Kind::Store`] if a run is broken, or was written by a newer proxyshift.
    pub fn runs(&self) -> Result<Vec<Run>> {
        let hidden =
            |dir: &PathBuf| dir.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let folders = entries(&self.runs_dir())?.into_iter().filter(|dir| !hidden(dir));
        let mut runs = folders.map(|dir| read(&dir)).collect::<Result<Vec<Run>>>()?;
        runs.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(runs)
    }

    /// Removes all but the last `keep` runs, and returns the identifiers of the removed runs.
    /// Pending runs, and runs that still need the operator, are kept even if they are older.
    ///
    /// # Errors
    /// As [`Store::runs`], or if a folder cannot be removed.
    pub fn prune_runs(&self, keep: usize) -> Result<Vec<String>> {
        let runs = self.runs()?;
        let old = runs.len().saturating_sub(keep);
        let open = |r: &&Run| r.state.is_pending() || r.state == RunState::UndonePartly;
        let mut removed = Vec::new();
        for run in runs.iter().take(old).filter(|r| !open(r)) {
            // The folder is first renamed to a hidden name, which is not listed, because a
            // half-removed run would make every verb fail.
            let dir = self.run_dir(&run.id);
            let hidden = self.run_dir(&format!(".old-{}", run.id));
            fs::rename(&dir, &hidden).map_err(|e| Error::io(&dir, &e))?;
            fs::remove_dir_all(&hidden).map_err(|e| Error::io(&hidden, &e))?;
            removed.push(run.id.clone());
        }
        Ok(removed)
    }

    /// The identifiers of the snapshots that pruning must keep: those of pending runs, of runs that
    /// still need the operator, and of the last confirmed run.
    ///
    /// # Errors
    /// As [`Store::runs`].
    pub fn needed_snapshots(&self) -> Result<BTreeSet<String>> {
        let runs = self.runs()?;
        let last_done = runs.iter().rfind(|run| run.state == RunState::Done);
        let open =
            runs.iter().filter(|r| r.state.is_pending() || r.state == RunState::UndonePartly);
        let needed = open
            .chain(last_done)
            .flat_map(|run| [Some(run.snapshot.clone()), run.clean_snapshot().map(str::to_owned)]);
        Ok(needed.flatten().collect())
    }
}

fn write(dir: &Path, run: &Run) -> Result<()> {
    let path = dir.join(RUN);
    let json = serde_json::to_vec_pretty(run)
        .map_err(|e| Error::new(Kind::Unexpected, path.display().to_string(), e))?;
    disk::replace_json(&path, &json)
}

fn read(dir: &Path) -> Result<Run> {
    #[derive(Deserialize)]
    struct RunHeader {
        v: u32,
    }
    let path = dir.join(RUN);
    let broken = |cause: String| {
        Error::new(Kind::Store, path.display().to_string(), cause)
            .hint("look at the folder, and move it out of the store when its run is of no concern")
    };
    let json = fs::read(&path).map_err(|e| broken(e.to_string()))?;
    let RunHeader { v } = serde_json::from_slice(&json).map_err(|e| broken(e.to_string()))?;
    if v > VERSION {
        return Err(broken(format!("written by a newer proxyshift (version {v})"))
            .hint("use the proxyshift that began this run"));
    }
    serde_json::from_slice(&json).map_err(|e| broken(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ipvs::Protocol;
    use crate::state::kube_proxy::Mode;
    use crate::store::run::{CleanupOptions, Migration, Modes, Probe, RecordedFinding};

    fn cleanup() -> RunKind {
        RunKind::Cleanup(CleanupOptions { objects: 3, ..CleanupOptions::default() })
    }

    fn fix() -> RunKind {
        RunKind::Fix { checks: vec!["docker.masquerade".into()] }
    }

    #[test]
    fn what_a_run_is_to_do_is_read_as_it_was_written() {
        let (_tmp, store) = store();
        let migration = Migration {
            modes: Modes { from: Mode::Iptables, to: Mode::Ipvs },
            playbook: "iptables-to-ipvs".into(),
            confirm_within: Some(600),
            probes: vec![Probe {
                what: "DNS at 10.96.0.10:53/udp".into(),
                address: "10.96.0.10:53".parse().unwrap(),
                protocol: Protocol::Udp,
            }],
            kube_proxy: None,
            findings: vec![RecordedFinding {
                id: "ipvs.expiry".into(),
                title: "a title".into(),
                severity: "warn".into(),
                evidence: vec!["some".into()],
            }],
            ignored: vec!["dns.resolver".into()],
        };
        for kind in [cleanup(), fix(), RunKind::Migrate(migration)] {
            let mut run = store.start(kind, "s").unwrap();
            assert_eq!(store.pending().unwrap().as_ref(), Some(&run));
            assert_eq!(run.modes().is_some(), run.verb() == RunKind::MIGRATE);
            store.finish(&mut run, RunState::Done).unwrap();
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(Some(&tmp.path().join("store"))).unwrap();
        (tmp, store)
    }

    #[test]
    fn one_run_at_a_time_until_it_is_finished() {
        let (_tmp, store) = store();
        assert_eq!(store.pending().unwrap(), None);
        let mut run = store.start(cleanup(), "s1").unwrap();
        assert!(run.runner_is_alive());
        assert_eq!(store.pending().unwrap().as_ref(), Some(&run));
        let error = store.start(fix(), "s2").unwrap_err();
        assert_eq!((error.kind, error.object), (Kind::Pending, run.id.clone()));

        store.finish(&mut run, RunState::Unconfirmed).unwrap();
        assert_eq!(store.pending().unwrap().unwrap().state, RunState::Unconfirmed);
        store.finish(&mut run, RunState::Done).unwrap();
        assert_eq!(store.pending().unwrap(), None);
        store.start(fix(), "s2").unwrap();
    }

    #[test]
    fn a_run_of_another_namespace_is_not_pending_here_but_one_before_a_reboot_is() {
        let (_tmp, store) = store();
        let run = store.start(fix(), "s").unwrap();
        let this_netns = run.netns;
        let elsewhere = Netns { inode: this_netns.inode + 1, of_init: false };
        assert!(run.concerns(this_netns, &run.boot_id));
        assert!(!run.concerns(elsewhere, &run.boot_id));

        let of_node = Run { netns: Netns { inode: 1, of_init: true }, ..run.clone() };
        assert!(of_node.concerns(Netns { inode: 2, of_init: true }, "later boot"));
        assert!(!of_node.concerns(elsewhere, "later boot"));
        let of_namespace = Run { netns: elsewhere, ..run };
        assert!(!of_namespace.concerns(elsewhere, "later boot"));
    }

    #[test]
    fn a_runner_whose_number_was_given_away_is_dead() {
        let (_tmp, store) = store();
        let mut run = store.start(fix(), "s").unwrap();
        run.pid_start += 1;
        assert!(!run.runner_is_alive());
    }

    #[test]
    fn a_run_that_cannot_be_read_is_not_passed_over() {
        let (_tmp, store) = store();
        let run = store.start(fix(), "s").unwrap();
        let path = store.run_dir(&run.id).join(RUN);
        fs::write(&path, r#"{"v": 2}"#).unwrap();
        let error = store.pending().unwrap_err();
        assert!(error.cause.contains("newer proxyshift"), "{error}");
        fs::write(&path, "{").unwrap();
        assert_eq!(store.pending().unwrap_err().kind, Kind::Store);
    }

    #[test]
    fn needed_snapshots_are_named() {
        let (_tmp, store) = store();
        let ends = [RunState::Done, RunState::UndonePartly, RunState::RolledBack, RunState::Done];
        for (n, state) in ends.into_iter().enumerate() {
            let mut run = store.start(cleanup(), &format!("s{n}")).unwrap();
            store.finish(&mut run, state).unwrap();
        }
        store.start(cleanup(), "s9").unwrap();
        let needed = store.needed_snapshots().unwrap();
        assert_eq!(needed.into_iter().collect::<Vec<_>>(), ["s1", "s3", "s9"]);
        // Pruning removes only the first of the five runs, because the second needs the operator
        // and the last three are kept.
        assert_eq!(store.prune_runs(3).unwrap().len(), 1);
        let left: Vec<String> = store.runs().unwrap().into_iter().map(|r| r.snapshot).collect();
        assert_eq!(left, ["s1", "s2", "s3", "s9"]);
    }
}
