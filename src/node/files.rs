//! Reads configuration files as a whole.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};

/// The largest file that is read, in bytes. Configuration files have a few KiB.
const LIMIT: u64 = 1 << 20;

/// The text of a file; none if the file does not exist.
///
/// # Errors
/// [`Kind::Parse`] for a file that is not regular, larger than 1 MiB or not in UTF-8, and for a
/// symbolic link whose target is missing; otherwise the system's error.
pub fn read(path: &Path) -> Result<Option<String>> {
    read_target(path, &target(path)?)
}

/// The path that `path` leads to when its symbolic links are followed. For a `path` that does not
/// exist: `path` itself.
///
/// # Errors
/// [`Kind::Parse`] for symbolic links whose target is missing, or that lead in a circle.
pub(crate) fn target(path: &Path) -> Result<PathBuf> {
    let refused = |cause: String| Error::new(Kind::Parse, path.display().to_string(), cause);
    match fs::canonicalize(path) {
        Ok(real) => Ok(real),
        Err(e) if e.kind() == ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(_) => Err(refused("a symbolic link that leads nowhere".into())),
            Err(_) => Ok(path.to_owned()),
        },
        Err(e) if e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            Err(refused(format!("its symbolic links lead in a circle: {e}")))
        }
        Err(e) => Err(Error::io(path, &e)),
    }
}

/// As [`read`], for a `path` whose [`target`] is known.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_target(path: &Path, target: &Path) -> Result<Option<String>> {
    let refused = |cause: String| Error::new(Kind::Parse, path.display().to_string(), cause);
    // A pipe must not be waited for, nor who holds a lease on the file.
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(target, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        // A socket cannot be opened.
        Err(Errno::NXIO) => return Err(refused("not a regular file".into())),
        file => File::from(file.map_err(|e| Error::io(path, &e.into()))?),
    };
    if !file.metadata().map_err(|e| Error::io(path, &e))?.is_file() {
        return Err(refused("not a regular file".into()));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, &e))?;
    if bytes.len() as u64 > LIMIT {
        return Err(refused(format!("larger than {LIMIT} bytes")));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| refused("not text in UTF-8".into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn anything_but_a_plain_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("b", at("a")).unwrap();
        symlink("a", at("b")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        fs::write(at("binary"), [0xff]).unwrap();
        fs::write(at("large"), vec![b'a'; (1 << 20) + 1]).unwrap();
        fs::create_dir(at("folder")).unwrap();
        for (name, cause) in [
            ("a", "circle"),
            ("dangling", "nowhere"),
            ("binary", "UTF-8"),
            ("large", "larger"),
            ("folder", "regular"),
        ] {
            let error = read(&at(name)).unwrap_err();
            assert_eq!(error.kind, Kind::Parse, "{error}");
            assert!(error.object.ends_with(name) && error.cause.contains(cause), "{error}");
        }
    }
}
