//! The store: snapshots, runs, journals and locks. Files only; it knows nothing of the kernel.

pub mod archive;
mod disk;
pub mod event_log;
pub mod journal;
pub mod manifest;
pub mod restore;
pub mod run;
pub mod runs;
pub mod snapshots;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// Where the store is unless `--store DIR` says otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/proxyshift";

/// How many snapshots, and how many runs, are kept after a run.
pub const KEEP: usize = 10;

/// The folders of a store; with [`GUARD`] the only names that may be in one.
const FOLDERS: [&str; 2] = ["snapshots", "runs"];

/// The folder of the program that a unit of systemd starts to keep an exception, where there is one.
const GUARD: &str = "guard";

/// A directory, mode 0700, with the folders `snapshots` and `runs`.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the store at `dir`, or at [`DEFAULT_DIR`], and makes what is missing of it.
    ///
    /// # Errors
    /// [`Kind::Permission`] when the directory is someone else's, open to others while it holds
    /// other things, or cannot be written; [`Kind::Store`] on a full or read-only disk.
    pub fn open(dir: Option<&Path>) -> Result<Store> {
        let dir = dir.unwrap_or(Path::new(DEFAULT_DIR));
        private_dir(dir, |name| FOLDERS.contains(&name) || name == GUARD)?;
        for folder in FOLDERS {
            private_dir(&dir.join(folder), |_| true)?;
        }
        Ok(Store { dir: dir.to_owned() })
    }

    /// The store at `dir`, or at [`DEFAULT_DIR`], to look at: nothing is made, and one that is not
    /// there holds nothing.
    pub fn look(dir: Option<&Path>) -> Store {
        Store { dir: dir.unwrap_or(Path::new(DEFAULT_DIR)).to_owned() }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its snapshots are, one directory each.
    pub fn snapshots_dir(&self) -> PathBuf {
        self.dir.join("snapshots")
    }

    /// Where its runs are, one directory each.
    pub fn runs_dir(&self) -> PathBuf {
        self.dir.join("runs")
    }

    /// Where the program is that keeps an exception.
    pub fn guard_dir(&self) -> PathBuf {
        self.dir.join(GUARD)
    }

    /// Makes [`Self::guard_dir`], or makes sure that it is private.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn make_guard_dir(&self) -> Result<()> {
        private_dir(&self.guard_dir(), |_| true)
    }

    /// Holds when there is room for another `bytes`.
    ///
    /// # Errors
    /// [`Kind::Store`], naming how much is missing.
    pub fn room_for(&self, bytes: u64) -> Result<()> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(|e| Error::io(&self.dir, &e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
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

/// What is in `dir`; nothing where there is no such directory.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let io = |e: std::io::Error| Error::io(dir, &e);
    match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(io)?.map(|entry| Ok(entry.map_err(io)?.path())).collect(),
    }
}

/// Makes `dir` with mode 0700, or makes sure that an existing one is private.
///
/// A directory that others may write to is not to be trusted; one that they may read is closed,
/// but only where all that is in it `is_ours`: `--store /etc` must not lock up /etc.
fn private_dir(dir: &Path, is_ours: impl Fn(&str) -> bool) -> Result<()> {
    let io = |e: std::io::Error| Error::io(dir, &e);
    let refuse = |cause: String| {
        Err(Error::new(Kind::Permission, dir.display().to_string(), cause)
            .hint("name a directory of its own, owned by you and with mode 0700"))
    };
    let meta = match fs::metadata(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io);
        }
        other => other.map_err(io)?,
    };
    if !meta.is_dir() {
        return refuse("it is not a directory".into());
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return refuse(format!("it belongs to user {}, not to user {me}", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return refuse("others may write to it, so what it holds cannot be trusted".into());
    }
    if meta.mode() & 0o077 != 0 {
        for entry in fs::read_dir(dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let name = name.to_string_lossy();
            if !is_ours(&name) {
                return refuse(format!("others may read it, and it holds more ({name})"));
            }
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn closes_a_store_that_others_may_read() {
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
    fn says_how_much_room_is_missing() {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(Some(&tmp.path().join("s"))).unwrap();
        store.room_for(1).unwrap();
        let error = store.room_for(u64::MAX).unwrap_err();
        assert_eq!(error.kind, Kind::Store);
        assert!(error.cause.contains("KiB are missing"), "{error}");
    }
}
