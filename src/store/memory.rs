//! The copies in memory of pending runs, with all that undoing them needs: `run.json`, the journal
//! and the snapshots. A run can then be undone although the disk of the store is full, read-only,
//! broken, or gone.
//!
//! The copies lie on the tmpfs of /run, so that each process finds them, and a reboot ends them.

use std::fs;
use std::path::{Path, PathBuf};

use super::folder::{self, Purpose::Writer};
use super::journal::JOURNAL;
use super::run::{RUN, Run};
use super::run_folder::RunFolder;
use super::snapshots::Snapshot;
use super::write_run::write;
use super::{Store, disk};
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::runtime::{free_bytes, is_in_memory};

/// The folder of the copies, one for each pending run, wherever the store is.
const DIR: &str = "/run/proxyshift/runs";

/// The file of a copy that names the store, in the first line as it was given, in the second
/// without symbolic links.
const STORE: &str = "store";

/// The folder of a copy that has the copies of snapshots.
const SNAPSHOTS: &str = "snapshots";

/// The part of the free memory that one copy may take. The node needs the rest of /run.
const SHARE: u64 = 4;

impl Store {
    /// Copies the run, its journal and its snapshots to memory, unless there is a copy.
    ///
    /// # Errors
    /// [`Kind::Store`] when /run is not in memory, or has too little room.
    pub fn keep_in_memory(&self, run: &Run) -> Result<()> {
        if self.memory_of(&run.id).is_some() {
            return Ok(());
        }
        folder::make_private(Path::new(DIR), |_| true)?;
        if !is_in_memory(Path::new(DIR))? {
            return Err(Error::new(Kind::Store, DIR, "is not in memory"));
        }
        let temporary = disk::temporary_dir(Path::new(DIR))?;
        let dir = temporary.path();
        disk::write_new(&dir.join(STORE), self.names().join("\n").as_bytes())?;
        for id in run.snapshots() {
            copy_snapshot(&self.of_run(id)?, dir)?;
        }
        let journal = self.run_dir(&run.id).join(JOURNAL);
        if journal.exists() {
            let lines = fs::read(&journal).map_err(|e| Error::io(&journal, &e))?;
            disk::write_new(&dir.join(JOURNAL), &lines)?;
        }
        write(dir, run)?;
        disk::rename(temporary, Path::new(DIR), &run.id).map(drop)
    }

    /// Copies another snapshot of the run to memory, if the run has a copy there.
    pub fn keep_snapshot_in_memory(&self, run: &Run, snapshot: &Snapshot) {
        if let Some(dir) = self.memory_of(&run.id)
            && copy_snapshot(snapshot, &dir).is_err()
        {
            // A snapshot is whole or not there.
            let _ = fs::remove_dir_all(snapshot_in(&dir, &snapshot.id));
        }
    }

    /// The folder of the run `id`, with its copy in memory if there is one.
    pub fn folder(&self, id: &str) -> RunFolder {
        RunFolder::new(self.run_dir(id), self.memory_of(id))
    }

    /// The snapshot `snapshot` of `run`: the copy in memory, if there is one.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is gone.
    pub fn snapshot_of(&self, run: &Run, snapshot: &str) -> Result<Snapshot> {
        let copy = self.memory_of(&run.id).map(|dir| snapshot_in(&dir, snapshot));
        match copy.filter(|dir| dir.is_dir()) {
            Some(dir) => Ok(Snapshot { id: snapshot.to_owned(), dir }),
            None => self.of_run(snapshot),
        }
    }

    /// The folder of the copy of the run `id`; none if there is none of this store.
    pub(super) fn memory_of(&self, id: &str) -> Option<PathBuf> {
        self.run_in_memory(&Path::new(DIR).join(id)).map(|_| Path::new(DIR).join(id))
    }

    /// The runs of this store that have a copy in memory.
    pub(super) fn runs_in_memory(&self) -> Vec<Run> {
        if !matches!(folder::existing(Path::new(DIR), Writer), Ok(Some(_))) {
            return Vec::new();
        }
        let copies = super::entries(Path::new(DIR)).unwrap_or_default();
        copies.iter().filter_map(|dir| self.run_in_memory(dir)).collect()
    }

    /// The run whose copy is in `dir`; none if it is of another store, or cannot be read.
    fn run_in_memory(&self, dir: &Path) -> Option<Run> {
        let store = fs::read_to_string(dir.join(STORE)).ok()?;
        let names = self.names();
        if !store.lines().any(|name| names.iter().any(|own| own == name)) {
            return None;
        }
        let run: Run = serde_json::from_slice(&disk::read_file(&dir.join(RUN)).ok()?).ok()?;
        let is_it = run.id == disk::name_of(dir) && run.boot_id == clock::boot_id();
        is_it.then_some(run)
    }

    /// Removes the copy of the run `id`, if there is one.
    pub(super) fn forget_memory(&self, id: &str) {
        if let Some(dir) = self.memory_of(id) {
            // A half-removed copy must not look like one.
            let hidden = Path::new(DIR).join(format!(".old-{id}"));
            let gone = fs::rename(&dir, &hidden).is_ok();
            let _ = fs::remove_dir_all(if gone { &hidden } else { &dir });
        }
    }

    /// Writes to the disk what became of runs that were undone while the store could not be
    /// written.
    pub(super) fn catch_up(&self) {
        for run in self.runs_in_memory().into_iter().filter(|run| !run.state.is_pending()) {
            if self.run_dir(&run.id).is_dir() && write(&self.run_dir(&run.id), &run).is_ok() {
                self.forget_memory(&run.id);
            }
        }
    }

    /// The paths by which this store is known.
    fn names(&self) -> Vec<String> {
        let given = std::path::absolute(&self.dir).unwrap_or_else(|_| self.dir.clone());
        let real = fs::canonicalize(&given).ok();
        [Some(given), real].into_iter().flatten().map(|path| path.display().to_string()).collect()
    }
}

fn snapshot_in(copy: &Path, id: &str) -> PathBuf {
    copy.join(SNAPSHOTS).join(id)
}

/// Copies the files of a snapshot to the copy of a run, if there is room.
fn copy_snapshot(snapshot: &Snapshot, copy: &Path) -> Result<()> {
    let tree = disk::read_tree(&snapshot.dir, disk::LIMITS)?;
    let size: usize = tree.values().map(Vec::len).sum();
    if free_bytes(copy)? / SHARE < size as u64 {
        let cause = format!("{} KiB would take too much of its room", size.div_ceil(1024));
        return Err(Error::new(Kind::Store, DIR, cause));
    }
    let dir = snapshot_in(copy, &snapshot.id);
    tree.iter().try_for_each(|(path, bytes)| {
        let path = dir.join(path);
        path.parent().map_or(Ok(()), disk::make_dirs)?;
        disk::write_new(&path, bytes)
    })
}
