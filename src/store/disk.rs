//! The store's access to the disk: files are private and synced, and never reached through a
//! symbolic link.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, Dir, FallocateFlags, FileType, Mode, OFlags, RenameFlags};

use crate::error::{Error, Kind, LONGEST_CAUSE, LONGEST_NAME, Result, shortened};

/// The bytes of each file in a directory, keyed by the file's path in that directory.
pub(super) type Tree = BTreeMap<String, Vec<u8>>;

/// How large a snapshot may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct SnapshotLimits {
    /// The largest number of files and directories.
    pub entries: usize,
    /// The largest number of bytes of all files together.
    pub bytes: u64,
}

/// The limits of every snapshot and archive.
pub(super) const LIMITS: SnapshotLimits = SnapshotLimits { entries: 10_000, bytes: 1 << 30 };

/// The largest depth of directories. Captured files keep their absolute path below the snapshot's
/// directory, so the limit must leave room for it.
const MAX_DEPTH: usize = 64;

/// The largest length in bytes of one name, which is that of Linux (NAME_MAX), and of a path in a
/// snapshot, which leaves room for the store's own path (PATH_MAX is 4096).
const MAX_NAME: usize = 255;
const MAX_PATH: usize = 3072;

/// The largest size in bytes of one file that is read by itself, such as a manifest.
const MAX_FILE: u64 = 16 << 20;

/// The error for an untrusted snapshot or archive that is not accepted.
pub(super) fn refused(object: impl Into<String>, cause: impl std::fmt::Display) -> Error {
    let cause = shortened(&cause.to_string(), LONGEST_CAUSE);
    Error::new(Kind::SnapshotRefused, object, cause).hint(
        "choose another with `proxyshift snapshot list`, \
         or take a new one with `proxyshift snapshot create`",
    )
}

/// The error for an untrusted snapshot or archive that cannot be read, for whatever reason the
/// kernel gives. A missing file, missing rights and a full disk stay what they are.
pub(super) fn unreadable(path: impl AsRef<Path>, error: impl Into<io::Error>) -> Error {
    let error = Error::io(path, &error.into());
    match error.kind {
        Kind::Unexpected => refused(error.object, format!("cannot be read: {}", error.cause)),
        _ => error,
    }
}

/// Refuses, with the reason, a `path` that cannot be the path of a file in a snapshot.
pub(super) fn check_path(path: &str) -> std::result::Result<(), &'static str> {
    if path.starts_with('/') {
        return Err("an absolute path");
    }
    // In SHA256SUMS, a backslash or a newline would have to be escaped.
    if path.contains(|c: char| c.is_control() || c == '\\') {
        return Err("a path with a control character or a backslash");
    }
    if path.len() > MAX_PATH {
        return Err("a path that is too long");
    }
    if path.split('/').count() > MAX_DEPTH {
        return Err("directories within directories without end");
    }
    for part in path.split('/') {
        match part {
            ".." => return Err("a path that climbs out with `..`"),
            "" | "." => return Err("a path with an empty part"),
            _ if part.len() > MAX_NAME => return Err("a name that is too long"),
            _ => {}
        }
    }
    Ok(())
}

/// Reads every file below `root`. Refuses symbolic links, special files, and more than `limits`
/// allows.
pub(super) fn read_tree(root: &Path, limits: SnapshotLimits) -> Result<Tree> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| match e {
        rustix::io::Errno::NOTDIR => refused(root.display().to_string(), "it is no directory"),
        e => unreadable(root, e),
    })?;
    let mut walk = TreeReader { root, limits, entries: 0, tree: Tree::new() };
    walk.dir(&dir, "", 0)?;
    Ok(walk.tree)
}

struct TreeReader<'a> {
    root: &'a Path,
    /// The bytes that may still be read, and the largest number of entries.
    limits: SnapshotLimits,
    entries: usize,
    tree: Tree,
}

impl TreeReader<'_> {
    fn refused(&self, path: &str, cause: impl std::fmt::Display) -> Error {
        refused(self.shown(path), cause)
    }

    fn unreadable(&self, path: &str, error: impl Into<io::Error>) -> Error {
        unreadable(self.shown(path), error)
    }

    fn shown(&self, path: &str) -> String {
        self.root.join(shortened(path, LONGEST_NAME)).display().to_string()
    }

    fn dir(&mut self, dir: &OwnedFd, prefix: &str, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(self.refused(prefix, "directories within directories without end"));
        }
        for entry in Dir::read_from(dir).map_err(|e| self.unreadable(prefix, e))? {
            let entry = entry.map_err(|e| self.unreadable(prefix, e))?;
            let Ok(name) = entry.file_name().to_str() else {
                let name = entry.file_name().to_string_lossy();
                return Err(self.refused(&name, "its name is not UTF-8"));
            };
            if name == "." || name == ".." {
                continue;
            }
            self.entries += 1;
            if self.entries > self.limits.entries {
                let most = self.limits.entries;
                return Err(self.refused(prefix, format!("more than {most} files")));
            }
            let path = if prefix.is_empty() { name.into() } else { format!("{prefix}/{name}") };
            self.entry(dir.as_fd(), name, path, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd, name: &str, path: String, depth: usize) -> Result<()> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.unreadable(&path, e))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => {
                return Err(self.refused(&path, "a symbolic link in place of a file"));
            }
            _ => return Err(self.refused(&path, "a special file in place of a file")),
        }
        // Another process may replace the entry before it is opened. Even so, a symbolic link is
        // refused, and opening a pipe does not block.
        let fd = rustix::fs::openat(dir, name, SAFELY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| self.unreadable(&path, e))?;
        let opened = rustix::fs::fstat(&fd).map_err(|e| self.unreadable(&path, e))?;
        if (opened.st_dev, opened.st_ino, opened.st_mode)
            != (stat.st_dev, stat.st_ino, stat.st_mode)
        {
            return Err(self.refused(&path, "it was replaced while it was read"));
        }
        if kind == FileType::Directory {
            return self.dir(&fd, &path, depth + 1);
        }
        let too_large = || self.refused(&path, "more than a snapshot may hold (1 GiB)");
        // The size is looked at first, so that no memory is taken for what is refused.
        let most = self.limits.bytes;
        if u64::try_from(opened.st_size).unwrap_or(u64::MAX) > most {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        File::from(fd)
            .take(most.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| self.unreadable(&path, e))?;
        let left = most.checked_sub(bytes.len() as u64).ok_or_else(too_large)?;
        self.limits.bytes = left;
        self.tree.insert(path, bytes);
        Ok(())
    }
}

/// How a file of a stranger is opened: a symbolic link is not followed, a pipe is not waited for,
/// and no terminal becomes ours.
const SAFELY: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Opens a file for reading. It must be a regular file, and a symbolic link is not followed.
pub(super) fn open_safely(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    let file = options.read(true).custom_flags(SAFELY.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::other("it is no regular file"))
}

/// Reads one small file. It must be a regular file, and a symbolic link is not followed.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = open_safely(path)?;
    let meta = file.metadata()?;
    let mut bytes = Vec::new();
    if meta.len() > MAX_FILE || file.take(MAX_FILE + 1).read_to_end(&mut bytes)? as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is larger than {} MiB", MAX_FILE >> 20)));
    }
    Ok(bytes)
}

/// Renames `temporary` to `id` in the directory `dir`.
pub(super) fn rename(temporary: tempfile::TempDir, dir: &Path, id: &str) -> Result<PathBuf> {
    let named = dir.join(id);
    fs::rename(temporary.path(), &named).map_err(|e| Error::io(&named, &e))?;
    // The directory no longer has its temporary name, so there is nothing to remove on drop.
    let _ = temporary.keep();
    sync_dir(dir)?;
    Ok(named)
}

/// The name of the file or directory at `path`.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().display().to_string()
}

/// Opens the archive at `path`, which the operator named, so that a symbolic link is followed. It
/// must be a regular file: a pipe is not waited for, and a device is not touched.
pub(super) fn open_archive(path: &Path) -> Result<File> {
    let is_file = |meta: io::Result<fs::Metadata>| match meta {
        Ok(meta) if meta.is_file() => Ok(()),
        Ok(_) => Err(refused(path.display().to_string(), "it is no regular file")
            .hint("write the archive to a file, and name that file")),
        Err(e) => Err(unreadable(path, e)),
    };
    is_file(fs::metadata(path))?;
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = fs::OpenOptions::new();
    let options = options.read(true).custom_flags(flags.bits().cast_signed());
    let file = options.open(path).map_err(|e| unreadable(path, e))?;
    is_file(file.metadata())?;
    Ok(file)
}

/// Whether the file has exactly these bytes. Reads the file piece by piece, and follows no symbolic
/// link.
pub(super) fn holds(path: &Path, bytes: &[u8]) -> Result<bool> {
    let io = |e: io::Error| Error::io(path, &e);
    let mut file = open_safely(path).map_err(io)?;
    let (mut piece, mut left) = (vec![0; 64 * 1024], bytes);
    loop {
        let length = file.read(&mut piece).map_err(io)?;
        if length == 0 {
            return Ok(left.is_empty());
        }
        match left.strip_prefix(&piece[..length]) {
            Some(rest) => left = rest,
            None => return Ok(false),
        }
    }
}

/// Creates a new file with mode 0600. Fails if the file exists.
pub(super) fn create_new(path: &Path) -> Result<File> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io(path, &e))
}

/// Writes and syncs a new file, and drops its pages from the cache, so that the next reader reads
/// from the disk.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = create_new(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| Error::io(path, &e))?;
    // The kernel may ignore this advice. The next reader then reads from the cache, which makes its
    // checks no weaker.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    Ok(())
}

/// Creates a private, hidden directory in `dir`, which is removed when the returned value is
/// dropped.
pub(super) fn temporary_dir(dir: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(dir)
        .map_err(|e| Error::io(dir, &e))
}

/// Whether the name of `dir` begins with a dot: it is half made, or about to go.
pub(super) fn is_hidden(dir: &Path) -> bool {
    dir.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Creates `dir` and its missing parents with mode 0700.
pub(super) fn make_dirs(dir: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| Error::io(dir, &e))
}

/// Syncs the directory `dir`, so that the names in it survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(dir, &e))
}

/// Syncs `root`, and the directories below it that hold the files `paths`.
pub(super) fn sync_dirs<'a>(root: &Path, paths: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut dirs = BTreeSet::new();
    for path in paths {
        dirs.extend(Path::new(path).ancestors().skip(1).map(PathBuf::from));
    }
    dirs.insert(PathBuf::new());
    dirs.iter().rev().try_for_each(|dir| sync_dir(&root.join(dir)))
}

/// Reserves `bytes` of space for `file`, without making it longer: a later write into that space
/// needs no free block.
pub(super) fn reserve(file: &File, path: &Path, bytes: u64) -> Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(Error::new(
            Kind::Store,
            path.display().to_string(),
            "this file system cannot set room aside (fallocate), and a full disk would stop a \
             rollback",
        )
        .hint("name a store on a local file system with --store DIR")),
        Err(e) => Err(Error::io(path, &e.into())),
    }
}

/// Replaces a JSON file atomically, even on a full disk.
///
/// The new text goes into a spare file in the same directory, which is then exchanged with the old
/// file. The old file becomes the spare of the next replacement, so no block is ever freed or
/// allocated. A text that is shorter than its spare file is padded with spaces, which JSON allows.
pub(super) fn replace_json(path: &Path, json: &[u8]) -> Result<()> {
    let spare = path.with_extension("spare");
    let old = open_spare(&spare, json.len())?;
    let io = |e: io::Error| Error::io(&spare, &e);
    let length = old.metadata().map_err(io)?.len();
    let padding = usize::try_from(length).unwrap_or(0).saturating_sub(json.len() + 1);
    let text = [json, &b" ".repeat(padding), b"\n"].concat();
    old.write_all_at(&text, 0).and_then(|()| old.sync_all()).map_err(io)?;

    let cwd = rustix::fs::CWD;
    match rustix::fs::renameat_with(cwd, &spare, cwd, path, RenameFlags::EXCHANGE) {
        Ok(()) => {}
        Err(e) => {
            fs::rename(&spare, path).map_err(|e| Error::io(path, &e))?;
            let next = open_spare(&spare, json.len());
            // If the file did not exist, there was nothing to exchange, and the next spare must be
            // allocated. If the file system cannot exchange files, the next spare is allocated only
            // if there is space.
            if e == rustix::io::Errno::NOENT {
                next?;
            }
        }
    }
    path.parent().map_or(Ok(()), sync_dir)
}

/// Opens the spare file. A new one gets space for `length` bytes and some more.
fn open_spare(spare: &Path, length: usize) -> Result<File> {
    let (file, is_new) = match create_new(spare) {
        Ok(file) => (file, true),
        Err(_) => {
            let mut options = fs::OpenOptions::new();
            options.write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
            (options.open(spare).map_err(|e| Error::io(spare, &e))?, false)
        }
    };
    if is_new {
        reserve(&file, spare, length as u64 + 4096)?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_paths_that_leave_the_directory() {
        for good in ["a", "files/etc/cni/net.d/10-flannel.conflist", "..a", "a b"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        for bad in ["", "/etc/passwd", "..", "a/../b", "a//b", "a/", "./a", "a\nb", "a\\b", "a\0"] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        let name = "n".repeat(MAX_NAME);
        let path = [name.as_str(); 12].join("/");
        assert_eq!((check_path(&name), check_path(&path)), (Ok(()), Ok(())));
        for bad in [format!("{name}n"), format!("{path}/n"), ["a"; MAX_DEPTH + 1].join("/")] {
            assert!(check_path(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_is_replaced_and_its_spare_is_used_again() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("run.json");
        for text in ["{\"long\":\"000000000000\"}", "{}", "{\"a\":1}", "[]"] {
            replace_json(&path, text.as_bytes()).unwrap();
            let read = fs::read_to_string(&path).unwrap();
            assert_eq!(read.trim_end(), text);
        }
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 2);
    }

    #[test]
    fn knows_what_a_file_holds() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a");
        let bytes = b"0123456789".repeat(20_000);
        write_new(&path, &bytes).unwrap();
        assert!(holds(&path, &bytes).unwrap());
        assert!(!holds(&path, &bytes[1..]).unwrap());
        assert!(!holds(&path, &bytes[..bytes.len() - 1]).unwrap());
        assert!(!holds(&path, &[&bytes[..], b"0"].concat()).unwrap());
    }

    #[test]
    fn stops_at_the_limits() {
        let tmp = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            write_new(&tmp.path().join(name), b"1234").unwrap();
        }
        let read = |entries, bytes| read_tree(tmp.path(), SnapshotLimits { entries, bytes });
        assert_eq!(read(3, 12).unwrap().len(), 3);
        assert_eq!(read(2, 12).unwrap_err().kind, Kind::SnapshotRefused);
        assert_eq!(read(3, 11).unwrap_err().kind, Kind::SnapshotRefused);
    }
}
