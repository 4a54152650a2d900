//! Stray entries: what lies in the store and is no run or snapshot that can be read. They are named
//! and passed over, so that one of them stops nobody.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, LONGEST_CAUSE, Result, shortened};

use super::Store;

/// An entry in the folder of runs or of snapshots that is passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The path of the entry.
    pub path: PathBuf,
    /// Why it is no run or snapshot.
    pub cause: String,
    /// Whether it may be a run that is pending: then no other run may begin.
    pub may_be_pending: bool,
}

impl Stray {
    /// An entry that certainly is no pending run.
    pub(super) fn new(path: &Path, cause: impl Display) -> Stray {
        let cause = shortened(&cause.to_string(), LONGEST_CAUSE);
        Stray { path: path.to_owned(), cause, may_be_pending: false }
    }

    /// An entry that may be a pending run, for all that is known.
    pub(super) fn unread_run(path: &Path, cause: impl Display) -> Stray {
        Stray { may_be_pending: true, ..Stray::new(path, cause) }
    }

    /// The error for somebody who asked for this entry.
    pub(super) fn error(self) -> Error {
        Error::new(Kind::Store, self.path.display().to_string(), self.cause)
            .hint("look at it, and move it out of the store when it is of no concern")
    }

    /// The warning that names the entry.
    pub fn warning(&self) -> String {
        let Stray { path, cause, may_be_pending } = self;
        let pending =
            if *may_be_pending { "; no run can begin, for it may be pending" } else { "" };
        format!("passed over: {}: {cause}{pending}", path.display())
    }
}

impl Store {
    /// The entries of the store that are passed over.
    ///
    /// # Errors
    /// If the store's folders cannot be read.
    pub fn strays(&self) -> Result<Vec<Stray>> {
        let mut strays = self.scan_runs()?.strays;
        strays.extend(self.scan_snapshots()?.strays);
        strays.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(strays)
    }

    /// Fails while an entry may be a pending run of another version of proxyshift, or one whose
    /// `run.json` is damaged: then no run may begin.
    ///
    /// # Errors
    /// [`Kind::Store`], naming the entry.
    pub fn refuse_unread_run(&self) -> Result<()> {
        let Some(stray) = self.scan_runs()?.strays.into_iter().find(|s| s.may_be_pending) else {
            return Ok(());
        };
        let object = stray.path.display().to_string();
        let cause = format!(
            "{}: another version of proxyshift may have it pending, so nothing else may begin",
            stray.cause
        );
        Err(Error::new(Kind::Store, object, cause).hint(
            "resolve it with the proxyshift that began it, or move the folder out of the store \
             when its run is of no concern",
        ))
    }
}
