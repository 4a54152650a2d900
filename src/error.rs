//! The one error type of the program: kind, object, cause, and the next step.
//!
//! The kind decides the exit code. The hint is a field of its own, so that the terminal, JSON and
//! Ansible show the same.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The result type of every function of this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of errors, each with one documented exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A defect of proxyshift, or a failure that has no kind of its own.
    Unexpected,
    /// Wrong arguments, or an unusable playbook or catalogue.
    Usage,
    /// A file whose text is not in its format.
    Parse,
    /// A capture that differs from the kernel.
    LossyCapture,
    /// The node kept changing while it was being captured.
    Unstable,
    /// A snapshot that is damaged, not trusted, or in a later format than this version reads.
    SnapshotRefused,
    /// A snapshot, run, file or object that does not exist.
    NotFound,
    /// A required program is not installed.
    MissingTool,
    /// A program that proxyshift ran failed.
    Command,
    /// The kernel refused a request.
    Kernel,
    /// Missing rights: not root, or not allowed to make a namespace.
    Permission,
    /// A lock that another process held for too long.
    Lock,
    /// The store has no free space, or cannot be written.
    Store,
    /// Something on the node must be fixed before the command can do what was asked.
    Blocked,
    /// A claim that the rehearsal could not verify.
    Rehearsal,
    /// Another program wrote to the same objects first, at every try.
    LostRace,
    /// Other programs would have had to wait too long for a lock that we hold, at every try.
    Busy,
    /// Another component would undo the change at once.
    Contested,
    /// proxyshift cannot find what starts and stops kube-proxy.
    UnknownController,
    /// A run is neither done nor undone: it waits for `resume`, `rollback` or `confirm`.
    Pending,
    /// A signal such as Ctrl-C, before anything was changed.
    Interrupted,
    /// The run failed, and what it had done was undone.
    RolledBack,
    /// The run failed, and what it had done could not be undone entirely.
    NotRolledBack,
}

impl Kind {
    /// The exit code that the manual documents for this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Unexpected => 1,
            Kind::Usage => 2,
            Kind::RolledBack => 4,
            Kind::NotRolledBack => 5,
            Kind::Pending => 6,
            Kind::Interrupted => 130,
            _ => 3,
        }
    }
}

/// An error: its kind, the object, the cause, and the next step if there is one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Error {
    /// Its kind, which decides the exit code.
    pub kind: Kind,
    /// What the error is about: a file, a rule, a tool, a snapshot.
    pub object: String,
    /// Why it failed.
    pub cause: String,
    /// What the operator can do next.
    pub hint: Option<String>,
}

impl Error {
    /// An error about `object`, with the reason `cause` and no hint.
    pub fn new(kind: Kind, object: impl Into<String>, cause: impl fmt::Display) -> Self {
        Error { kind, object: object.into(), cause: cause.to_string(), hint: None }
    }

    /// Adds the hint, which says what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An input/output error on `path`. A missing file, a disk that is full, limited or fails, and missing
    /// rights each give the error a kind of its own.
    pub fn io(path: impl AsRef<std::path::Path>, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        // std has no kind for the error of a disk that fails.
        let fails = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
        let path = path.as_ref().display().to_string();
        match error.kind() {
            E::NotFound => Error::new(Kind::NotFound, path, error),
            E::StorageFull | E::QuotaExceeded | E::FileTooLarge | E::ReadOnlyFilesystem => {
                Error::new(Kind::Store, path, error)
                    .hint("free some room there, or name another store with --store DIR")
            }
            _ if fails => Error::new(Kind::Store, path, error)
                .hint("see what the kernel says about that disk: `dmesg`"),
            E::PermissionDenied => Error::new(Kind::Permission, path, error).hint("run as root"),
            _ => Error::new(Kind::Unexpected, path, error),
        }
    }
}

/// The largest number of characters of a name, and of a cause, that errors repeat from what
/// strangers chose: a name in an archive may have megabytes.
pub const LONGEST_NAME: usize = 200;
/// See [`LONGEST_NAME`].
pub const LONGEST_CAUSE: usize = 500;

/// The first `most` characters of `text`, with `…` in place of the rest.
pub fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.cause)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rest_of_a_long_text_is_cut() {
        assert_eq!(shortened("äöü", 3), "äöü");
        assert_eq!(shortened("äöüß", 3), "äöü…");
    }
}
