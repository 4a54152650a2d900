//! Replaces configuration files, each as a whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{
    IFlags, StatVfsMountFlags, XattrFlags, fgetxattr, fsetxattr, ioctl_getflags, statvfs,
};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::node::files::{read_target, target};

/// The extended attributes that a replaced file keeps: the SELinux label and the POSIX access list.
const ATTRIBUTES: [&str; 2] = ["security.selinux", "system.posix_acl_access"];

/// How many bytes a new text may be larger than the old one, when it is tried whether there is room.
const BLOCK: usize = 4096;

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
        return Err(changed(path));
    }
    match to {
        Some(text) => write(&real, text, None)?,
        None => fs::remove_file(&real).map_err(|e| Error::io(&real, &e))?,
    }
    sync_folder(&real)
}

/// As [`swap`], for a file that must come back even when its disk is full: keeps the old file
/// beside the new one, under a name with a dot in front, until [`forget`]. The call that undoes
/// the replacement then renames it back, which needs no free block, and it is the very same file.
///
/// `home` is the path at which the file belongs, and `path` that at which it is now.
///
/// # Errors
/// As [`swap`].
pub fn exchange(path: &Path, home: &Path, from: &str, to: &str) -> Result<()> {
    let real = target(path)?;
    let now = read_target(path, &real)?;
    if now.as_deref() == Some(to) {
        return Ok(());
    }
    if now.as_deref() != Some(from) {
        return Err(changed(path));
    }
    let kept = kept_path(path, home, &real);
    if read_target(&kept, &kept).is_ok_and(|text| text.as_deref() == Some(to)) {
        rename(&kept, &real)?;
    } else {
        write(&real, to, Some(&kept))?;
    }
    sync_folder(&real)
}

/// Removes the old file that [`exchange`] keeps beside `home`, if there is one.
///
/// # Errors
/// The system's error of removing.
pub fn forget(home: &Path) -> Result<()> {
    let kept = kept_path(home, home, &target(home)?);
    match fs::remove_file(&kept) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(&kept, &e)),
        _ => Ok(()),
    }
}

/// Finds out whether [`exchange`] can replace the file at `home`, by all that it does except for
/// the last step: a copy is written beside the file and takes the place of another name of it.
///
/// # Errors
/// [`Kind::Blocked`], naming what stands in the way.
pub fn try_exchange(home: &Path) -> Result<()> {
    let real = target(home)?;
    let object = || home.display().to_string();
    let text =
        read_target(home, &real)?.ok_or_else(|| Error::new(Kind::NotFound, object(), "is gone"))?;
    let kept = kept_path(home, home, &real);
    let temporary = temporary_path(&real);
    // Left by a run that was killed. No run is pending now.
    for left in [&kept, &temporary] {
        let _ = fs::remove_file(left);
    }
    let folder = folder_of(&real);
    let attempted = stands_in_the_way(&real, folder, [&kept, &temporary]).and_then(|()| {
        // The new text may need a block more than the old one.
        fill(&real, &temporary, &(text + &" ".repeat(BLOCK)))?;
        match fs::hard_link(&real, &kept) {
            Ok(()) => rename(&temporary, &kept),
            Err(e) if e.kind() == ErrorKind::CrossesDevices => Err(mounted(&real)),
            // A file system without hard links, where no old file is kept.
            Err(_) => Ok(()),
        }
    });
    for ours in [&kept, &temporary] {
        let _ = fs::remove_file(ours);
    }
    attempted.map_err(|e| {
        let hint = match e.kind {
            Kind::Store => format!("free some room in {}", folder.display()),
            _ => e.hint.unwrap_or_else(|| format!("see `ls -la {}`", folder.display())),
        };
        let cause = format!("it cannot be exchanged: {}: {}", e.object, e.cause);
        Error::new(Kind::Blocked, object(), cause).hint(hint)
    })
}

/// Fails if the kernel would refuse the exchange for a reason that it does not name.
fn stands_in_the_way(real: &Path, folder: &Path, names: [&Path; 2]) -> Result<()> {
    let blocked = |path: &Path, cause: &str, hint: String| {
        Err(Error::new(Kind::Blocked, path.display().to_string(), cause).hint(hint))
    };
    if statvfs(folder).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::RDONLY)) {
        let hint = format!("remount it for writing: `mount -o remount,rw {}`", folder.display());
        return blocked(folder, "its file system is mounted read-only", hint);
    }
    for path in [real, folder] {
        // A file system without such flags answers with an error.
        let flags = File::open(path).ok().and_then(|file| ioctl_getflags(&file).ok());
        if flags.is_some_and(|flags| flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND)) {
            let hint = format!("`chattr -i -a {}` takes the flag off", path.display());
            return blocked(path, "it has the flag immutable or append-only", hint);
        }
    }
    match names.into_iter().find(|name| fs::symlink_metadata(name).is_ok()) {
        None => Ok(()),
        Some(taken) => {
            let hint = "find out what it is, and move it away".to_owned();
            blocked(taken, "something else has the name that is needed for it", hint)
        }
    }
}

fn changed(path: &Path) -> Error {
    let cause = "someone else changed it meanwhile; it is left as found";
    Error::new(Kind::LostRace, path.display().to_string(), cause)
        .hint("see who writes it, and begin again")
}

fn mounted(real: &Path) -> Error {
    Error::new(Kind::Parse, real.display().to_string(), "it is mounted there by itself")
        .hint("mount the folder in its place, so that the file can be exchanged")
}

fn folder_of(real: &Path) -> &Path {
    real.parent().unwrap_or(Path::new("/"))
}

fn sync_folder(real: &Path) -> Result<()> {
    let folder = folder_of(real);
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, &e))
}

/// `real` with a dot in front of its name and `end` behind it. kubelet, sysctl and modules-load
/// ignore such files.
fn beside(real: &Path, end: &str) -> PathBuf {
    let name = real.file_name().unwrap_or_default().to_string_lossy();
    real.with_file_name(format!(".{name}.{end}"))
}

fn temporary_path(real: &Path) -> PathBuf {
    beside(real, "proxyshift")
}

/// Where the old file of `home` is kept. It has the name of `home`, whatever the file is called
/// now; that of a file which a symbolic link leads to is beside that file.
fn kept_path(path: &Path, home: &Path, real: &Path) -> PathBuf {
    let is_link = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
    let at_home = match home.file_name() {
        Some(name) if !is_link => real.with_file_name(name),
        _ => real.to_owned(),
    };
    beside(&at_home, "proxyshift-old")
}

fn rename(from: &Path, real: &Path) -> Result<()> {
    fs::rename(from, real).map_err(|e| match e.kind() {
        ErrorKind::ResourceBusy => mounted(real),
        _ => Error::io(real, &e),
    })
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

/// Replaces the file `real` by one with the text `text`. Writes a temporary file first. The old file
/// gets the name `kept`, where the file system has hard links.
fn write(real: &Path, text: &str, kept: Option<&Path>) -> Result<()> {
    let temporary = temporary_path(real);
    // Removes the files that a killed run left. Only root may write to the folder, so they are
    // proxyshift's.
    for left in [Some(temporary.as_path()), kept].into_iter().flatten() {
        let _ = fs::remove_file(left);
    }
    let written = fill(real, &temporary, text).and_then(|()| {
        if let Some(kept) = kept {
            let _ = fs::hard_link(real, kept);
        }
        rename(&temporary, real)
    });
    if written.is_err() {
        for ours in [Some(temporary.as_path()), kept].into_iter().flatten() {
            let _ = fs::remove_file(ours);
        }
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
