//! One error type for the whole program: kind, object, cause, and the next step.
//!
//! The kind decides the exit code. A hint is data, so the terminal, JSON and Ansible report the
//! same.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The result of every fallible function here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of errors, each with one documented exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A defect of proxyshift, or a failure without a kind of its own.
    Unexpected,
    /// Wrong arguments, or an unusable playbook or catalogue.
    Usage,
    /// A file whose text is not in its format.
    Parse,
    /// A capture that differs from the kernel.
    LossyCapture,
    /// The node kept changing while it was being captured.
    Unstable,
    /// A snapshot that is damaged, of a later format, or untrusted.
    SnapshotRefused,
    /// No such snapshot, run, file or object.
    NotFound,
    /// A required program is not installed.
    MissingTool,
    /// A program failed.
    Command,
    /// The kernel refused a request.
    Kernel,
    /// Not root, or no right to make a namespace.
    Permission,
    /// A lock was not free in time.
    Lock,
    /// No room in the store, or no right to write there.
    Store,
    /// Something about the node must be fixed first.
    Blocked,
    /// The rehearsal failed to verify a claim.
    Rehearsal,
    /// Another program wrote first, at every try.
    LostRace,
    /// Other programs would have waited too long for us, at every try.
    Busy,
    /// Another component would undo the change at once.
    Contested,
    /// The controller of kube-proxy is unknown.
    UnknownController,
    /// A pending run waits for `resume`, `rollback` or `confirm`.
    Pending,
    /// Ctrl-C before anything was changed.
    Interrupted,
    /// The run failed and was undone.
    RolledBack,
    /// The run failed, and could not be undone entirely.
    NotRolledBack,
}

impl Kind {
    /// The documented exit code.
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

/// An error: kind, object, cause, and the next step if there is one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Error {
    /// Its kind, which decides the exit code.
    pub kind: Kind,
    /// The object concerned: a file, a rule, a tool, a snapshot.
    pub object: String,
    /// Why it failed.
    pub cause: String,
    /// What to do next.
    pub hint: Option<String>,
}

impl Error {
    /// An error about `object`, because of `cause`.
    pub fn new(kind: Kind, object: impl Into<String>, cause: impl fmt::Display) -> Self {
        Error { kind, object: object.into(), cause: cause.to_string(), hint: None }
    }

    /// Adds the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An input/output error on `path`. A full disk and a missing right have kinds of their own.
    pub fn io(path: impl AsRef<std::path::Path>, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        let path = path.as_ref().display().to_string();
        match error.kind() {
            E::NotFound => Error::new(Kind::NotFound, path, error),
            E::StorageFull | E::QuotaExceeded | E::ReadOnlyFilesystem => {
                Error::new(Kind::Store, path, error)
                    .hint("free some room there, or name another store with --store DIR")
            }
            E::PermissionDenied => Error::new(Kind::Permission, path, error).hint("run as root"),
            _ => Error::new(Kind::Unexpected, path, error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.cause)
    }
}

impl std::error::Error for Error {}
