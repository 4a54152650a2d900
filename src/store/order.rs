//! The order of runs and snapshots: a number that the store gives to each. The clock is not asked,
//! because it may be set back, and an identifier is made of the clock.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use serde::Deserialize;

use super::manifest::MANIFEST;
use super::run::RUN;
use super::{Store, disk, entries};
use crate::error::{Error, Kind, Result};

/// How long to wait for another process that gives a number. It takes as long as writing one
/// snapshot.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The right to give a number, until it is dropped.
pub(super) struct NumberLock {
    /// Holds the lock. A file system without such locks gives none: runs are under the node's lock.
    _folder: Option<OwnedFd>,
}

impl Store {
    /// Takes the store's lock, under which numbers are given.
    ///
    /// # Errors
    /// [`Kind::Store`] if another process keeps it for long.
    pub(super) fn lock_numbers(&self) -> Result<NumberLock> {
        let io = |e: rustix::io::Errno| Error::io(self.dir(), &e.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(self.dir(), flags, Mode::empty()).map_err(io)?;
        let since = Instant::now();
        loop {
            match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(NumberLock { _folder: Some(folder) }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(_) => return Ok(NumberLock { _folder: None }),
            }
            if since.elapsed() > TIMEOUT {
                let cause = "another proxyshift has been writing to this store for long";
                return Err(Error::new(Kind::Store, self.dir().display().to_string(), cause)
                    .hint("see what that process does, and try again"));
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// The next number, from 1: it is larger than that of every run and snapshot of this store,
    /// readable or not. The caller holds the lock until what has the number is in its place.
    pub(super) fn next_number(&self, _lock: &NumberLock) -> Result<u64> {
        let mut last = 0;
        for (folder, name) in [(self.runs_dir(), RUN), (self.snapshots_dir(), MANIFEST)] {
            let numbers = entries(&folder)?.into_iter().map(|dir| number_in(&dir.join(name)));
            last = numbers.fold(last, u64::max);
        }
        Ok(last.saturating_add(1))
    }
}

/// The number in a `run.json` or `manifest.json`, even one of a later version; 0 if it has none.
fn number_in(path: &Path) -> u64 {
    #[derive(Deserialize)]
    struct Numbered {
        #[serde(default)]
        seq: u64,
    }
    let json = disk::read_file(path).unwrap_or_default();
    serde_json::from_slice(&json).map_or(0, |Numbered { seq }| seq)
}
