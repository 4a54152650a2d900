//! The store: snapshots, runs and their journals. The store reads and writes only files, and never
//! asks the kernel for rules.

pub mod archive;
pub mod bundle;
mod chain;
mod disk;
pub mod event_log;
mod folder;
pub mod imported;
pub mod journal;
pub mod listing;
pub mod manifest;
mod memory;
mod order;
pub mod restore;
pub mod run;
pub mod run_folder;
pub mod runs;
pub mod snapshots;
pub mod strays;
mod unpack;
pub mod write_run;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::runtime::free_bytes;
use folder::Purpose::Reader;

/// The store's directory without `--store DIR`.
pub const DEFAULT_DIR: &str = "/var/lib/proxyshift";

/// How many snapshots pruning keeps, and how many runs.
pub const KEEP: usize = 10;

/// The folders of a store. [`IMPORTED`] and [`GUARD`] may be beside them; every other name is not
/// the store's.
const FOLDERS: [&str; 2] = ["snapshots", "runs"];

/// The name of the folder of snapshots that were imported.
const IMPORTED: &str = "imported";

/// The name of the folder of the guard's copy of proxyshift. A systemd unit starts that copy.
const GUARD: &str = "guard";

/// A directory with mode 0700 that holds the folders `snapshots` and `runs`.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the store at `dir`, or at [`DEFAULT_DIR`], and creates the directories that do not
    /// exist, unless a run of this store is pending.
    ///
    /// # Errors
    /// [`Kind::Permission`] if the directory belongs to another user, is readable by others while
    /// it holds files that are not the store's, or cannot be written; [`Kind::Store`] on a full or
    /// read-only disk.
    pub fn open(dir: Option<&Path>) -> Result<Store> {
        let dir = dir.unwrap_or(Path::new(DEFAULT_DIR));
        let store = Store { dir: dir.to_owned() };
        let is_away = || FOLDERS.iter().any(|folder| !dir.join(folder).is_dir());
        if is_away() && store.runs_in_memory().iter().any(|run| run.state.is_pending()) {
            // It has a run that can be undone from memory, and may come back to this place.
            return Ok(store);
        }
        let is_ours = |name: &str| FOLDERS.contains(&name) || name == GUARD || name == IMPORTED;
        let made = folder::make_private(dir, is_ours).and_then(|()| {
            FOLDERS.iter().try_for_each(|folder| folder::make_private(&dir.join(folder), |_| true))
        });
        made.or_else(|e| store.unless_in_memory(e))?;
        store.catch_up();
        Ok(store)
    }

    /// Passes over the error `e` of the disk, if a run can be undone from its copy in memory.
    fn unless_in_memory(&self, e: Error) -> Result<()> {
        let ends = e.kind == Kind::Permission || self.runs_in_memory().is_empty();
        if ends { Err(e) } else { Ok(()) }
    }

    /// Opens the store at `dir`, or at [`DEFAULT_DIR`], for reading only. Creates and changes
    /// nothing; a store that does not exist counts as empty.
    ///
    /// # Errors
    /// [`Kind::Permission`] if others than this user and root may have written to it.
    pub fn read_only(dir: Option<&Path>) -> Result<Store> {
        let dir = dir.unwrap_or(Path::new(DEFAULT_DIR));
        let store = Store { dir: dir.to_owned() };
        let verify = || -> Result<()> {
            if folder::existing(dir, Reader)?.is_some() {
                for folder in FOLDERS.into_iter().chain([IMPORTED]) {
                    folder::existing(&dir.join(folder), Reader)?;
                }
            }
            Ok(())
        };
        verify().or_else(|e| store.unless_in_memory(e))?;
        Ok(store)
    }

    /// The directory of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of the snapshots, which has one directory for each snapshot.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.dir.join("snapshots")
    }

    /// The folder of the runs, which has one directory for each run.
    pub fn runs_dir(&self) -> PathBuf {
        self.dir.join("runs")
    }

    /// The folder of the snapshots that were imported. It need not exist.
    pub fn imported_dir(&self) -> PathBuf {
        self.dir.join(IMPORTED)
    }

    /// Creates the folder [`Self::imported_dir`], or verifies that the existing one is private.
    fn make_imported_dir(&self) -> Result<()> {
        folder::make_private(&self.imported_dir(), |_| true)
    }

    /// The folder of the copy of proxyshift that runs the guard.
    pub fn guard_dir(&self) -> PathBuf {
        self.dir.join(GUARD)
    }

    /// Creates the folder [`Self::guard_dir`], or verifies that the existing one is private.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn make_guard_dir(&self) -> Result<()> {
        folder::make_private(&self.guard_dir(), |_| true)
    }

    /// Verifies that the store's file system has `bytes` of free space.
    ///
    /// # Errors
    /// [`Kind::Store`] with how much space is missing.
    pub fn room_for(&self, bytes: u64) -> Result<()> {
        let free = free_bytes(&self.dir)?;
        if free >= bytes {
            return Ok(());
        }
        let missing = (bytes - free).div_ceil(1024);
        Err(Error::new(
            Kind::Store,
            self.dir.display().to_string(),
            format!("{} KiB are needed, {missing} KiB are missing", bytes.div_ceil(1024)),
        )
        .hint("free some room there, or name another store with --store DIR"))
    }
}

/// The paths of the entries in `dir`; empty if `dir` does not exist.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let io = |e: std::io::Error| folder::unusable(dir, &e);
    match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(io)?.map(|entry| Ok(entry.map_err(io)?.path())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn makes_private_directories() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(Some(&tmp.path().join("a/b"))).unwrap();
        for dir in [store.dir(), &store.snapshots_dir(), &store.runs_dir()] {
            assert_eq!(mode(dir), 0o700, "{}", dir.display());
        }
        Store::open(Some(store.dir())).unwrap();
    }

    #[test]
    fn closes_a_readable_store() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("store");
        let store = Store::open(Some(&dir)).unwrap();
        fs::create_dir(store.snapshots_dir().join("one")).unwrap();
        chmod(&dir, 0o755);
        chmod(&store.snapshots_dir(), 0o755);
        Store::open(Some(&dir)).unwrap();
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&store.snapshots_dir()), 0o700);
    }

    #[test]
    fn leaves_a_directory_of_other_things_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("etc");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("passwd"), "").unwrap();
        chmod(&dir, 0o755);
        let error = Store::open(Some(&dir)).unwrap_err();
        assert_eq!(error.kind, Kind::Permission);
        assert!(error.cause.contains("passwd"), "{error}");
        assert_eq!(mode(&dir), 0o755);
        assert!(!dir.join("snapshots").exists());
    }

    #[test]
    fn refuses_what_others_may_write_own_or_is_no_directory() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("open");
        fs::create_dir(&dir).unwrap();
        chmod(&dir, 0o777);
        assert_eq!(Store::open(Some(&dir)).unwrap_err().kind, Kind::Permission);
        let file = tmp.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(Store::open(Some(&file)).unwrap_err().kind, Kind::Permission);
        chmod(&dir, 0o700);
        if std::os::unix::fs::chown(&dir, Some(4242), None).is_ok() {
            let error = Store::open(Some(&dir)).unwrap_err();
            assert!(error.cause.contains("user 4242"), "{error}");
        }
    }

    #[test]
    fn names_the_missing_room() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(Some(&tmp.path().join("s"))).unwrap();
        store.room_for(1).unwrap();
        let error = store.room_for(u64::MAX).unwrap_err();
        assert_eq!(error.kind, Kind::Store);
        assert!(error.cause.contains("KiB are missing"), "{error}");
    }
}
