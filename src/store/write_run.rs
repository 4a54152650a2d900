//! Writes a run to its `run.json`: to the disk, and to the copy in memory.

use std::fs;
use std::path::Path;

use super::journal::JOURNAL;
use super::run::{BINARY, RUN, Run, RunState};
use super::{Store, chain, disk};
use crate::error::{Error, Kind, Result};

/// Where a run that is being undone was written.
#[derive(Debug)]
pub enum Written {
    /// To the disk.
    OnDisk,
    /// To its copy in memory alone, because the disk failed as the error says.
    InMemory(Error),
    /// Nowhere: the run has no copy in memory, or that could not be written either.
    Nowhere(Error),
}

impl Store {
    /// Writes `run` to its `run.json`, with the end of its journal. Needs no free space on the disk.
    ///
    /// # Errors
    /// If `run.json` cannot be written.
    pub fn update(&self, run: &mut Run) -> Result<()> {
        self.note(run);
        write(&self.run_dir(&run.id), run)?;
        self.update_memory(run);
        Ok(())
    }

    /// As [`Store::update`], for a run that is being undone, which nothing may stop: if the disk
    /// fails, the run is written to its copy in memory alone, if it has one.
    pub fn update_somewhere(&self, run: &mut Run) -> Written {
        self.note(run);
        let on_disk = write(&self.run_dir(&run.id), run);
        match (on_disk, self.update_memory(run)) {
            (Ok(()), _) => Written::OnDisk,
            (Err(e), true) => Written::InMemory(e),
            (Err(e), false) => Written::Nowhere(e),
        }
    }

    /// Counts a write of `run`, and notes the end of its journal.
    fn note(&self, run: &mut Run) {
        run.writes += 1;
        let folder = self.folder(&run.id);
        let ends = folder.memory().into_iter().chain([folder.disk()]);
        let end = ends.filter_map(|dir| chain::end_of(&dir.join(JOURNAL))).max_by_key(|e| e.bytes);
        // A journal that has become shorter has lost lines, and that must not be forgotten.
        let known = run.journal.as_ref().map_or(0, |end| end.bytes);
        if let Some(end) = end.filter(|end| end.bytes > known) {
            run.journal = Some(end);
        }
    }

    /// Writes `run` to its copy in memory. Returns false if there is none, or none any more.
    fn update_memory(&self, run: &Run) -> bool {
        let Some(dir) = self.memory_of(&run.id) else { return false };
        let written = write(&dir, run).is_ok();
        if !written {
            // A copy that is not up to date helps nobody.
            self.forget_memory(&run.id);
        }
        written
    }

    /// Ends `run` in `state`. Removes the copy of proxyshift in the run's folder, because only the
    /// run's watchdog needed that copy.
    ///
    /// # Errors
    /// If `run.json` cannot be written.
    pub fn finish(&self, run: &mut Run, state: RunState) -> Result<()> {
        run.end(state);
        self.update(run)?;
        self.tidy(run);
        Ok(())
    }

    /// As [`Store::finish`], for a run that was undone: if the disk fails, the run ends in its copy
    /// in memory, which is kept.
    pub fn finish_somewhere(&self, run: &mut Run, state: RunState) -> Written {
        run.end(state);
        let written = self.update_somewhere(run);
        if matches!(written, Written::OnDisk) {
            self.tidy(run);
        }
        written
    }

    /// Removes what only a pending run needs. What stays for want of a writable disk does no harm.
    fn tidy(&self, run: &Run) {
        if !run.state.is_pending() {
            let _ = fs::remove_file(self.run_dir(&run.id).join(BINARY));
            self.forget_memory(&run.id);
        }
    }
}

/// Writes `run` to its `run.json` in `dir`.
pub(super) fn write(dir: &Path, run: &Run) -> Result<()> {
    let path = dir.join(RUN);
    let json = serde_json::to_vec_pretty(run)
        .map_err(|e| Error::new(Kind::Unexpected, path.display().to_string(), e))?;
    disk::replace_json(&path, &json)
}
