//! The runs in the store: begin, update, find and prune.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::run::{RUN, Run, RunKind, RunState, VERSION};
use super::strays::Stray;
use super::write_run::write;
use super::{Store, disk, entries};
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::runtime::{Caller, Netns};

impl Store {
    /// Begins a run in this network namespace: creates the run's folder and its `run.json`. The
    /// caller must hold the node's lock.
    ///
    /// # Errors
    /// [`Kind::Pending`] while another run is pending in this network namespace; [`Kind::Store`] on
    /// a full disk, or while a run that cannot be read may be pending.
    pub fn start(&self, kind: RunKind, snapshot: &str) -> Result<Run> {
        if let Some(run) = self.pending()? {
            return Err(Error::new(Kind::Pending, run.id, "this run is not finished")
                .hint("`proxyshift resume`, `proxyshift rollback` or `proxyshift confirm` it"));
        }
        self.refuse_unread_run()?;
        let lock = self.lock_numbers()?;
        let mut run = Run {
            v: VERSION,
            id: clock::new_id(),
            seq: self.next_number(&lock)?,
            kind,
            snapshot: snapshot.into(),
            started: clock::now(),
            by: Some(Caller::here()),
            netns: Netns::current()?,
            boot_id: clock::boot_id(),
            state: RunState::Running,
            ended: None,
            pid: 0,
            pid_start: 0,
            pending: None,
            journal: None,
            writes: 0,
        };
        run.claim();
        // The folder is renamed to the run's identifier only when it has its `run.json`.
        let runs = self.runs_dir();
        let folder = disk::temporary_dir(&runs)?;
        write(folder.path(), &run)?;
        disk::rename(folder, &runs, &run.id)?;
        Ok(run)
    }

    /// The folder of the run `id`, for the run's journal, its playbook and its copy of proxyshift.
    pub fn run_dir(&self, id: &str) -> PathBuf {
        self.runs_dir().join(id)
    }

    /// The pending run of this network namespace; none if there is none that can be read.
    ///
    /// # Errors
    /// As [`Store::runs`].
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
    /// [`Kind::Store`] if that run cannot be read.
    pub fn run(&self, id: &str) -> Result<Option<Run>> {
        let copy = self.runs_in_memory().into_iter().find(|run| run.id == id);
        let folders = match self.run_folders() {
            Err(_) if copy.is_some() => Vec::new(),
            folders => folders?,
        };
        let dir = folders.iter().find(|dir| disk::name_of(dir) == id);
        match (dir.map(|dir| self.read_run(dir)), copy) {
            (Some(Ok(run)), Some(copy)) => Ok(Some(newer(run, copy))),
            (Some(Ok(run)), None) => Ok(Some(run)),
            (Some(Err(stray)), None) => Err(stray.error()),
            (_, copy) => Ok(copy),
        }
    }

    /// The run that `name` identifies: a run's identifier, or a prefix that only one run has.
    /// Without `name`, the last run.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if no run matches; [`Kind::Usage`] if several runs have the prefix;
    /// [`Kind::Store`] if the named run cannot be read.
    pub fn find_run(&self, name: Option<&str>) -> Result<Run> {
        let named = name.unwrap_or("the last run");
        let missing = |cause: &str| {
            Error::new(Kind::NotFound, named, cause).hint("`proxyshift status` lists the last runs")
        };
        let Some(name) = name else {
            return self.runs()?.pop().ok_or_else(|| missing("there was no run yet"));
        };
        if let Some(run) = self.run(name)? {
            return Ok(run);
        }
        let mut names: Vec<String> =
            self.run_folders()?.iter().map(|dir| disk::name_of(dir)).collect();
        names.retain(|found| !name.is_empty() && found.starts_with(name));
        names.sort();
        if names.len() > 1 {
            let cause = format!("several runs begin so: {}", names.join(", "));
            return Err(Error::new(Kind::Usage, name, cause).hint("give more of its name"));
        }
        let found = names.pop().map_or(Ok(None), |found| self.run(&found))?;
        found.ok_or_else(|| missing("no run of this name"))
    }

    /// All runs that can be read, oldest first.
    ///
    /// # Errors
    /// [`Kind::Store`] if the folder of runs cannot be read.
    pub fn runs(&self) -> Result<Vec<Run>> {
        Ok(self.scan_runs()?.runs)
    }

    /// All entries of the folder of runs.
    pub(super) fn scan_runs(&self) -> Result<ScannedRuns> {
        let mut scanned = ScannedRuns::default();
        let in_memory = self.runs_in_memory();
        let folders = match self.run_folders() {
            // The runs in memory can be undone although the disk cannot be read.
            Err(_) if !in_memory.is_empty() => Vec::new(),
            folders => folders?,
        };
        let copied = |id: &str| in_memory.iter().any(|run| run.id == id);
        for dir in folders {
            match self.read_run(&dir) {
                Ok(run) => scanned.runs.push(run),
                Err(_) if copied(&disk::name_of(&dir)) => {}
                Err(stray) => scanned.strays.push(stray),
            }
        }
        for copy in in_memory {
            match scanned.runs.iter_mut().find(|run| run.id == copy.id) {
                None => scanned.runs.push(copy),
                Some(run) => *run = newer(run.clone(), copy),
            }
        }
        scanned.runs.sort_by(|a, b| (a.seq, &a.id).cmp(&(b.seq, &b.id)));
        Ok(scanned)
    }

    /// The entries of the folder of runs that are not hidden.
    fn run_folders(&self) -> Result<Vec<PathBuf>> {
        let mut folders = entries(&self.runs_dir())?;
        folders.retain(|dir| !disk::is_hidden(dir));
        Ok(folders)
    }

    fn read_run(&self, dir: &Path) -> std::result::Result<Run, Stray> {
        #[derive(Deserialize)]
        struct RunHeader {
            v: u32,
        }
        let path = dir.join(RUN);
        if !dir.is_dir() {
            return Err(Stray::new(dir, "it is no folder of a run"));
        }
        // A run's folder gets its name only when it has its `run.json`.
        if fs::symlink_metadata(&path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            return Err(Stray::new(dir, format!("it has no {RUN}, so it is no run")));
        }
        let unread = |cause: String| Stray::unread_run(&path, cause);
        let json = disk::read_file(&path).map_err(|e| unread(e.to_string()))?;
        let broken = |e: serde_json::Error| unread(e.to_string());
        let RunHeader { v } = serde_json::from_slice(&json).map_err(broken)?;
        if v > VERSION {
            return Err(unread(format!("written by a newer proxyshift (version {v})")));
        }
        let run: Run = serde_json::from_slice(&json).map_err(broken)?;
        if run.id == disk::name_of(dir) {
            return Ok(run);
        }
        let cause = format!("it is the run {}: a copy, or the folder was renamed", run.id);
        let lost = run.state.is_pending() && !self.run_dir(&run.id).exists();
        Err(if lost { Stray::unread_run(&path, cause) } else { Stray::new(&path, cause) })
    }

    /// Removes all but the last `keep` runs, and returns the identifiers of the removed runs. Kept
    /// even if they are older are pending runs, runs that still need the operator, and the last
    /// done run of this boot.
    ///
    /// # Errors
    /// As [`Store::runs`], or if a folder cannot be removed.
    pub fn prune_runs(&self, keep: usize) -> Result<Vec<String>> {
        let runs = self.runs()?;
        let old = runs.len().saturating_sub(keep);
        let needed: BTreeSet<&str> = needed(&runs).map(|run| run.id.as_str()).collect();
        let mut removed = Vec::new();
        for run in runs.iter().take(old).filter(|run| !needed.contains(run.id.as_str())) {
            // The folder is first renamed to a hidden name, which is not listed, because a
            // half-removed run must not look like one.
            let dir = self.run_dir(&run.id);
            // Of a run in memory alone, whose store was emptied, there is nothing to remove.
            if !dir.exists() {
                continue;
            }
            let hidden = self.run_dir(&format!(".old-{}", run.id));
            fs::rename(&dir, &hidden).map_err(|e| Error::io(&dir, &e))?;
            fs::remove_dir_all(&hidden).map_err(|e| Error::io(&hidden, &e))?;
            removed.push(run.id.clone());
        }
        Ok(removed)
    }

    /// The identifiers of the snapshots that pruning must keep: those of the runs that are
    /// kept however old they are, and of the last run that is done.
    ///
    /// # Errors
    /// As [`Store::runs`]; [`Kind::Store`] if a run that cannot be read may be pending, because its
    /// snapshot is not known.
    pub fn needed_snapshots(&self) -> Result<BTreeSet<String>> {
        self.refuse_unread_run()?;
        let runs = self.runs()?;
        let last_done = runs.iter().rfind(|run| run.state == RunState::Done);
        let needed = needed(&runs).chain(last_done).flat_map(Run::snapshots);
        Ok(needed.map(str::to_owned).collect())
    }
}

/// The entries of the folder of runs.
#[derive(Debug, Default)]
pub(super) struct ScannedRuns {
    /// The runs, oldest first.
    pub runs: Vec<Run>,
    /// What is passed over.
    pub strays: Vec<Stray>,
}

/// The newer one of a run on the disk and its copy in memory.
fn newer(run: Run, copy: Run) -> Run {
    if run.writes < copy.writes { copy } else { run }
}

/// The runs that are kept however old they are: those that are pending or still need the operator,
/// and in each network namespace the last that is done in this boot, which `rollback` undoes.
fn needed(runs: &[Run]) -> impl Iterator<Item = &Run> {
    let boot_id = clock::boot_id();
    let done = move |run: &Run| run.state == RunState::Done && run.boot_id == boot_id;
    runs.iter()
        .enumerate()
        .filter(move |(at, run)| {
            let open = run.state.is_pending() || run.state == RunState::UndonePartly;
            let later = |other: &Run| done(other) && other.netns.inode == run.netns.inode;
            open || done(run) && !runs[at + 1..].iter().any(later)
        })
        .map(|(_, run)| run)
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
        for kind in [cleanup(), fix(), RunKind::Migrate(Box::new(migration))] {
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
    fn a_run_that_cannot_be_read_is_passed_over_but_nothing_else_begins() {
        let (_tmp, store) = store();
        let mut run = store.start(fix(), "s").unwrap();
        store.finish(&mut run, RunState::Done).unwrap();
        let other = store.run_dir("other");
        fs::create_dir(&other).unwrap();
        store.refuse_unread_run().unwrap();
        for (text, words) in [(r#"{"v": 2, "seq": 40}"#, "newer proxyshift"), ("{", "EOF")] {
            fs::write(other.join(RUN), text).unwrap();
            assert_eq!(store.pending().unwrap(), None);
            assert_eq!(store.find_run(None).unwrap(), run);
            assert_eq!(store.strays().unwrap()[0].path, other.join(RUN));
            let error = store.start(fix(), "s").unwrap_err();
            assert!(error.cause.contains(words), "{error}");
            assert_eq!(store.run("other").unwrap_err().kind, Kind::Store);
            assert_eq!(store.find_run(Some("oth")).unwrap_err().kind, Kind::Store);
            store.needed_snapshots().unwrap_err();
        }
        // A number that was given is never given again.
        fs::write(other.join(RUN), r#"{"v": 2, "seq": 40}"#).unwrap();
        let lock = store.lock_numbers().unwrap();
        assert_eq!(store.next_number(&lock).unwrap(), 41);
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
