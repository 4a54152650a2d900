//! The directories of a store: private, and no one else's.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::error::{Error, Kind, Result};

/// What a directory is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To write to it: it must be this user's.
    Writer,
    /// To read it: it may be root's, too.
    Reader,
}

/// The error for a directory of a store that cannot be used, for whatever reason the kernel gives.
pub(super) fn unusable(dir: &Path, error: &io::Error) -> Error {
    let error = Error::io(dir, error);
    match error.kind {
        Kind::Unexpected => Error::new(Kind::Store, error.object, error.cause)
            .hint("name a directory for the store with --store DIR"),
        _ => error,
    }
}

fn refuse(dir: &Path, cause: String) -> Error {
    Error::new(Kind::Permission, dir.display().to_string(), cause)
        .hint("name a directory of its own, owned by you and with mode 0700")
}

/// The existing directory `dir`; none if there is nothing of this name. A symbolic link is followed,
/// if it leads somewhere.
///
/// A directory that others own or may write to is refused, because its content cannot be trusted.
pub(super) fn existing(dir: &Path, purpose: Purpose) -> Result<Option<fs::Metadata>> {
    if dir.as_os_str().is_empty() {
        return Err(Error::new(Kind::Usage, "--store", "the name of the directory is empty")
            .hint("leave it out, or name a directory"));
    }
    let meta = match fs::metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return match fs::read_link(dir) {
                Ok(to) => Err(refuse(
                    dir,
                    format!("a link to {}, which is not there", to.display()),
                )
                .hint("make that directory, remove the link, or name another with --store DIR")),
                Err(_) => Ok(None),
            };
        }
        other => other.map_err(|e| unusable(dir, &e))?,
    };
    if !meta.is_dir() {
        return Err(refuse(dir, "it is not a directory".into()));
    }
    let me = rustix::process::geteuid().as_raw();
    let root = if purpose == Purpose::Reader { 0 } else { me };
    if meta.uid() != me && meta.uid() != root {
        return Err(refuse(dir, format!("it belongs to user {}, not to user {me}", meta.uid())));
    }
    if meta.mode() & 0o022 != 0 {
        let cause = "others may write to it, so what it holds cannot be trusted";
        return Err(refuse(dir, cause.into()));
    }
    Ok(Some(meta))
}

/// Creates `dir` with mode 0700, or verifies that an existing `dir` is private.
///
/// A directory that others may read gets mode 0700, but only if `is_ours` is true for every name in
/// it, so that `--store /etc` does not close /etc.
pub(super) fn make_private(dir: &Path, is_ours: impl Fn(&str) -> bool) -> Result<()> {
    let io = |e: io::Error| unusable(dir, &e);
    let Some(meta) = existing(dir, Purpose::Writer)? else {
        return fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io);
    };
    if meta.mode() & 0o077 != 0 {
        for entry in fs::read_dir(dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let name = name.to_string_lossy();
            if !is_ours(&name) {
                return Err(refuse(dir, format!("others may read it, and it holds more ({name})")));
            }
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io)?;
    }
    Ok(())
}
