//! One error type for the whole program: what kind, which object, why, and what to do next.
//!
//! The kind decides the exit code; a hint is data, so that the terminal, JSON and Ansible say the
//! same thing.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in few enough kinds that each has one documented exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A defect of proxyshift, or something it has no name for.
    Unexpected,
    /// Wrong arguments, or a playbook or catalogue that cannot be used.
    Usage,
    /// Text that is not what its file says it is.
    Parse,
    /// A capture that does not tell the whole truth about the kernel.
    LossyCapture,
    /// The node kept changing while it was being captured.
    Unstable,
    /// A snapshot that is damaged, of a later format, or not to be trusted.
    SnapshotRefused,
    /// No such snapshot, run, file or object.
    NotFound,
    /// A program that is needed is not installed.
    MissingTool,
    /// A program that was run failed.
    Command,
    /// The kernel refused a request.
    Kernel,
    /// Not root, or no right to make a namespace.
    Permission,
    /// A lock was not to be had in time.
    Lock,
    /// No room, or no right to write, in the store.
    Store,
    /// Something about the node must be mended first.
    Blocked,
    /// The rehearsal did not prove what it should have.
    Rehearsal,
    /// Someone else wrote first, every time.
    LostRace,
    /// Others would have had to wait for us for too long, every time.
    Busy,
    /// Another component would undo the change at once.
    Contested,
    /// Nobody can tell who stops and starts kube-proxy.
    UnknownController,
    /// A run is waiting for `resume`, `rollback` or `confirm`.
    Pending,
    /// Ctrl-C before anything was changed.
    Interrupted,
    /// The run failed and was undone.
    RolledBack,
    /// The run failed and could not be undone entirely.
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

/// An error: kind, object, cause, and the next step where there is one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Error {
    /// Its kind, which decides the exit code.
    pub kind: Kind,
    /// The thing concerned: a file, a rule, a tool, a snapshot.
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

    /// An input/output error on `path`; a full disk and a missing right are told apart.
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
