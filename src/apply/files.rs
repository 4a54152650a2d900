//! Replaces configuration files, each as a whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::node::files::{read_target, target};

/// The extended attributes that a replaced file keeps: the SELinux label and the POSIX access list.
const ATTRIBUTES: [&str; 2] = ["security.selinux", "system.posix_acl_access"];

/// The largest value of an extended attribute that the kernel allows, in bytes.
const ATTRIBUTE: usize = 64 << 10;

/// Replaces the text `from` of a file by `to`. `None` in place of a text stands for a file that
/// does not exist. The same call with `from` and `to` swapped undoes the replacement.
///
/// The replacement is atomic, and synced when this returns. The new text keeps the old file's
/// owner, mode, SELinux label and access list; a file that did not exist is owned by root and
/// readable by all. A file whose text is `to` already is left alone. Symbolic links are followed
/// and kept.
///
/// # Errors
/// [`Kind::LostRace`] if the file's text is neither `from` nor `to`, because another program wrote
/// to the file; nothing is changed then. Otherwise the errors of [`crate::node::files::read`], and
/// the system's error of writing.
pub fn swap(path: &Path, from: Option<&str>, to: Option<&str>) -> Result<()> {
    let real = target(path)?;
    let now = read_target(path, &real)?;
    if now.as_deref() == to {
        return Ok(());
    }
    if now.as_deref() != from {
        let cause = "someone else changed it meanwhile; it is left as found";
        return Err(Error::new(Kind::LostRace, path.display().to_string(), cause)
            .hint("see who writes it, and begin again"));
    }
    let folder = real.parent().unwrap_or(Path::new("/"));
    match to {
        Some(text) => write(&real, folder, text)?,
        None => fs::remove_file(&real).map_err(|e| Error::io(&real, &e))?,
    }
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, &e))
}

/// As [`swap`], for a file that is read at boot. Creates the file's folder if that is missing.
///
/// # Errors
/// As [`swap`].
pub fn persist(file: &Path, from: Option<&str>, to: Option<&str>) -> Result<()> {
    if let (Some(_), Some(folder)) = (to, file.parent()) {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    }
    swap(file, from, to)
}

/// Replaces the file `real` by one with the text `text`. Writes a temporary file first, whose name
/// kubelet, sysctl and modules-load ignore.
fn write(real: &Path, folder: &Path, text: &str) -> Result<()> {
    let name = real.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.proxyshift"));
    // Removes the temporary file that a killed run left. Only root may write to the folder, so the
    // file is proxyshift's.
    let _ = fs::remove_file(&temporary);
    let written = fill(real, &temporary, text).and_then(|()| {
        fs::rename(&temporary, real).map_err(|e| match e.kind() {
            ErrorKind::ResourceBusy => {
                Error::new(Kind::Parse, real.display().to_string(), "it is mounted there by itself")
                    .hint("mount the folder in its place, so that the file can be exchanged")
            }
            _ => Error::io(real, &e),
        })
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn fill(real: &Path, temporary: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
        .map_err(|e| Error::io(temporary, &e))?;
    let failed = |e: std::io::Error| Error::io(temporary, &e);
    match File::open(real) {
        Ok(old) => copy_attributes(&file, &old, real)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            file.set_permissions(Permissions::from_mode(0o644)).map_err(failed)?;
        }
        Err(e) => return Err(Error::io(real, &e)),
    }
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

/// Gives the file `new` the owner, mode and extended attributes of the file `old`.
fn copy_attributes(new: &File, old: &File, real: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(real, &e);
    let meta = old.metadata().map_err(failed)?;
    if meta.nlink() > 1 {
        let cause = format!("it has {} names (hard links), and would part from them", meta.nlink());
        return Err(Error::new(Kind::Parse, real.display().to_string(), cause)
            .hint("make the other names symbolic links"));
    }
    fchown(new, Some(meta.uid()), Some(meta.gid())).map_err(failed)?;
    new.set_permissions(Permissions::from_mode(meta.mode() & 0o7777)).map_err(failed)?;
    for name in ATTRIBUTES {
        let mut value = vec![0; ATTRIBUTE];
        match fgetxattr(old, name, value.as_mut_slice()) {
            Ok(length) => fsetxattr(new, name, &value[..length], XattrFlags::empty())
                .map_err(|e| failed(e.into()))?,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(failed(e.into())),
        }
    }
    Ok(())
}

/// Writes `text` to a file that only root may read.
///
/// # Errors
/// The system's error of writing.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{getxattr, setxattr};

    use super::*;
    use crate::node::files::read;

    #[test]
    fn a_file_is_exchanged_with_all_that_it_carries() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.conf");
        let link = dir.path().join("link");
        fs::write(&file, "old").unwrap();
        symlink("config.conf", &link).unwrap();
        let label = b"system_u:object_r:etc_t:s0\0";
        setxattr(&file, ATTRIBUTES[0], label, XattrFlags::empty()).unwrap();
        std::os::unix::fs::chown(&file, Some(12), Some(34)).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        fs::write(dir.path().join(".config.conf.proxyshift"), "of a killed run").unwrap();

        swap(&link, Some("old"), Some("new")).unwrap();
        assert_eq!(read(&file).unwrap().as_deref(), Some("new"));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (12, 34, 0o640));
        let mut kept = [0; 64];
        let length = getxattr(&file, ATTRIBUTES[0], &mut kept).unwrap();
        assert_eq!(&kept[..length], label);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary is left");
    }

    #[test]
    fn doing_and_undoing_are_one_and_may_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("90-proxyshift.conf");
        assert_eq!(read(&file).unwrap(), None);
        for _ in 0..2 {
            swap(&file, None, Some("a")).unwrap();
            assert_eq!(read(&file).unwrap().as_deref(), Some("a"));
        }
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o644);
        for _ in 0..2 {
            swap(&file, Some("a"), None).unwrap();
            assert!(!file.exists());
        }
    }

    #[test]
    fn another_writers_text_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "theirs").unwrap();
        for to in [Some("new"), None] {
            assert_eq!(swap(&file, Some("old"), to).unwrap_err().kind, Kind::LostRace);
            assert_eq!(read(&file).unwrap().as_deref(), Some("theirs"));
        }
    }

    #[test]
    fn a_file_with_another_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("one"), "x").unwrap();
        fs::hard_link(at("one"), at("two")).unwrap();
        let error = swap(&at("one"), Some("x"), Some("y")).unwrap_err();
        assert!(error.cause.contains("2 names"), "{error}");
        assert_eq!(read(&at("two")).unwrap().as_deref(), Some("x"));
    }
}
