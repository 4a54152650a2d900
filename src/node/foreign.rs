//! Reads files, links and directories that somebody else chose. No other module does.
//!
//! Whoever chooses a path may choose one that never answers: a pipe, a device, a file of a file
//! system that a stranger serves, a file that grows for ever, a directory that changes between two
//! looks. So a path is walked name by name on descriptors. Each name is opened without its content
//! (O_PATH), links are followed below the root by us, and a mount is entered only if the kernel's
//! own code answers there. Only a descriptor that has been found to be a regular file is opened for
//! reading, and only a limited part of it is read.
//!
//! `openat2` (Linux 5.6) could do the walk, but it would enter any mount on its way. So it is not
//! needed, and kernels and containers without it get the same.

mod allowance;
mod descriptor;
mod mounts;
mod refusal;

use std::collections::VecDeque;
use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags};

pub use self::allowance::Allowance;
use self::descriptor::{Opened, opened, read_slowly, regular, reopened};
use self::mounts::Mounts;
pub use self::refusal::Refusal;
use super::trust::PinnedProcess;

/// How many symbolic links a path may have, as in the kernel.
const LINKS: usize = 40;

/// How many names a path may have, links resolved.
const NAMES: usize = 512;

/// How many entries a directory may have.
const ENTRIES: usize = 4096;

/// A root below which paths are resolved: ours, or that of a process that counts.
pub struct Root {
    dir: File,
    mount: u64,
    mounts: Mounts,
    is_confined: bool,
    is_of_root: bool,
}

impl Root {
    /// Our own root.
    pub fn ours() -> io::Result<Root> {
        Root::at(Path::new("/"))
    }

    /// Our own root, in which a path is walked only as far as nobody but root could have led it
    /// elsewhere: each name on it is root's, and no other user may write there.
    pub fn of_root_alone() -> io::Result<Root> {
        Ok(Root { is_of_root: true, ..Root::ours()? })
    }

    /// The directory `path`, with the mounts that we see.
    pub(super) fn at(path: &Path) -> io::Result<Root> {
        let dir = directory(path)?;
        let us = PinnedProcess::open(std::process::id());
        let us = us.ok_or_else(|| io::Error::other("/proc is not there"))?;
        Root::with(dir, &us.mounts()?)
    }

    /// The root of a process, which may be a container's. Unlike ours, it may itself lie on a file
    /// system that somebody serves; then it is an error.
    pub fn of(process: &PinnedProcess) -> io::Result<Root> {
        let root = Root::with(process.root()?, &process.mounts()?)?;
        if root.mount != opened(directory(Path::new("/"))?)?.mount {
            root.mounts.judge(root.mount).map_err(|why| io::Error::other(why.to_string()))?;
        }
        Ok(root)
    }

    /// Whether both are the same directory.
    pub fn is(&self, other: &Root) -> bool {
        let [ours, theirs] = [self, other].map(|root| rustix::fs::fstat(&root.dir));
        ours.ok()
            .zip(theirs.ok())
            .is_some_and(|(a, b)| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    fn with(dir: File, mounts: &str) -> io::Result<Root> {
        let mount = opened(dir.try_clone()?)?.mount;
        Ok(Root {
            dir,
            mount,
            mounts: Mounts::parse(mounts),
            is_confined: false,
            is_of_root: false,
        })
    }

    /// The text of the regular file at `path`; none if it does not exist.
    ///
    /// # Errors
    /// Why it is not read, above all for more than `most` bytes.
    pub fn text(
        &self,
        path: &str,
        most: u64,
        allowance: &mut Allowance,
    ) -> Result<Option<String>, Refusal> {
        let Some(mut file) = self.open(path, allowance)? else { return Ok(None) };
        let mut bytes = Vec::new();
        read_slowly(&mut file, &mut bytes, most + 1, allowance)?;
        if bytes.len() as u64 > most {
            return Err(Refusal::TooLarge(most));
        }
        String::from_utf8(bytes).map(Some).map_err(|_| Refusal::NotText)
    }

    /// The last `most` bytes of the regular file at `path` as text, whatever the rest holds; none if
    /// it does not exist.
    ///
    /// # Errors
    /// Why it is not read.
    pub fn tail(
        &self,
        path: &str,
        most: u64,
        allowance: &mut Allowance,
    ) -> Result<Option<String>, Refusal> {
        let Some(mut file) = self.open(path, allowance)? else { return Ok(None) };
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut bytes = Vec::new();
        read_slowly(&mut file, &mut bytes, most, allowance)?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Whether anything is at `path`. True if this cannot be known.
    pub fn exists(&self, path: &str) -> bool {
        !matches!(self.walk(path), Ok(None))
    }

    /// Whether a regular file at `path` may be executed by someone.
    pub fn is_program(&self, path: &str) -> bool {
        let found = self.walk(path);
        found.is_ok_and(|found| {
            found.is_some_and(|o| o.kind == FileType::RegularFile && o.mode & 0o111 != 0)
        })
    }

    /// The directory at `path` as a root of its own, out of which no link leads: one that does is an
    /// error. None if it does not exist.
    ///
    /// # Errors
    /// Why it is not entered.
    pub fn confined(&self, path: &str) -> Result<Option<Root>, Refusal> {
        let found = self.walk(path)?;
        Ok(found.map(|Opened { file, mount, .. }| Root {
            dir: file,
            mount,
            mounts: self.mounts.clone(),
            is_confined: true,
            is_of_root: self.is_of_root,
        }))
    }

    /// The names of the files and links in a directory, sorted, without subdirectories; none if it
    /// does not exist.
    ///
    /// # Errors
    /// Why it is not read, above all for more than 4,096 entries.
    pub fn names(&self, path: &str) -> Result<Vec<String>, Refusal> {
        self.entries(path, |kind| kind != FileType::Directory)
    }

    /// As [`Self::names`], but only of the subdirectories.
    ///
    /// # Errors
    /// Why it is not read.
    pub fn directories(&self, path: &str) -> Result<Vec<String>, Refusal> {
        self.entries(path, |kind| matches!(kind, FileType::Directory | FileType::Unknown))
    }

    fn entries(
        &self,
        path: &str,
        wanted: impl Fn(FileType) -> bool,
    ) -> Result<Vec<String>, Refusal> {
        let Some(found) = self.walk(path)? else { return Ok(Vec::new()) };
        if found.kind != FileType::Directory {
            return Err(Refusal::NotRegular);
        }
        let directory = reopened(&found.file, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let entries: Vec<_> = rustix::fs::Dir::read_from(directory)?.take(ENTRIES + 1).collect();
        if entries.len() > ENTRIES {
            return Err(Refusal::TooMany(ENTRIES));
        }
        let mut names: Vec<String> = entries
            .into_iter()
            .filter_map(Result::ok)
            .filter(|entry| wanted(entry.file_type()) && !is_dot(entry.file_name()))
            .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    /// A descriptor of the program of `process` for reading, if it is a regular file on a file
    /// system that is entered.
    ///
    /// # Errors
    /// Why it is not read.
    pub fn program(&self, process: &PinnedProcess) -> Result<File, Refusal> {
        let program = opened(process.program()?)?;
        self.judge(program.mount)?;
        regular(&program)
    }

    fn open(&self, path: &str, allowance: &mut Allowance) -> Result<Option<File>, Refusal> {
        allowance.take_file()?;
        match self.walk(path)? {
            None => Ok(None),
            Some(found) => regular(&found).map(Some),
        }
    }

    /// Walks to `path` below the root. An absolute link means a path below the root, and `..` at
    /// the root stays there, as for the process whose root it is; in a confined root, both lead out.
    fn walk(&self, path: &str) -> Result<Option<Opened>, Refusal> {
        let absolute = path.starts_with('/')
            && !Path::new(path).components().any(|c| c == Component::ParentDir);
        if !absolute {
            return Err(Refusal::NotAbsolute);
        }
        let mut todo: VecDeque<OsString> = parts(Path::new(path)).into();
        let mut done: Vec<Opened> = Vec::new();
        let (mut links, mut names) = (0, 0);
        while let Some(part) = todo.pop_front() {
            names += 1;
            if names > NAMES {
                return Err(Refusal::TooLong);
            }
            if part == ".." {
                if done.pop().is_none() && self.is_confined {
                    return Err(Refusal::LeadsOut);
                }
                continue;
            }
            let (dir, mount) = done.last().map_or((&self.dir, self.mount), |o| (&o.file, o.mount));
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = match rustix::fs::openat(dir, &part, flags, Mode::empty()) {
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
                next => opened(next?.into())?,
            };
            if next.mount != mount {
                self.judge(next.mount)?;
            }
            if self.is_of_root && next.may_be_changed_by_others() {
                return Err(Refusal::NotRootsAlone);
            }
            if next.kind != FileType::Symlink {
                done.push(next);
                continue;
            }
            links += 1;
            if links > LINKS {
                return Err(Refusal::TooLong);
            }
            let target = rustix::fs::readlinkat(&next.file, c"", Vec::new())?;
            let target = OsString::from_vec(target.into_bytes());
            if Path::new(&target).is_absolute() {
                if self.is_confined {
                    return Err(Refusal::LeadsOut);
                }
                done.clear();
            }
            parts(Path::new(&target)).into_iter().rev().for_each(|part| todo.push_front(part));
        }
        match done.pop() {
            Some(found) => Ok(Some(found)),
            None => Ok(Some(opened(self.dir.try_clone()?)?)),
        }
    }

    /// Refuses a mount that somebody else may serve.
    fn judge(&self, mount: u64) -> Result<(), Refusal> {
        if mount == self.mount { Ok(()) } else { self.mounts.judge(mount) }
    }
}

/// The directory at one of our own paths, not opened for reading.
fn directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Whether an entry is the directory itself, or the one above.
fn is_dot(name: &CStr) -> bool {
    [c".", c".."].contains(&name)
}

/// The names in a path. `.` and empty names are left out.
fn parts(path: &Path) -> Vec<OsString> {
    path.components()
        .filter(|c| !matches!(c, Component::RootDir | Component::CurDir))
        .map(|c| c.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn below(dir: &tempfile::TempDir) -> Root {
        Root::at(dir.path()).unwrap()
    }

    fn text(root: &Root, path: &str) -> Result<Option<String>, Refusal> {
        root.text(path, 1 << 20, &mut Allowance::of_a_capture())
    }

    #[test]
    fn links_stay_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("etc/..data")).unwrap();
        fs::write(at("etc/..data/passwd"), "of the container").unwrap();
        symlink("/etc/..data/passwd", at("etc/passwd")).unwrap();
        symlink("../../../../etc/passwd", at("etc/up")).unwrap();
        symlink("..data", at("etc/data")).unwrap();
        symlink("/", at("etc/root")).unwrap();
        let root = below(&dir);
        for path in ["/etc/passwd", "/etc/up", "/etc/data/passwd", "/etc/root/etc/./passwd"] {
            assert_eq!(text(&root, path), Ok(Some("of the container".into())), "{path}");
        }
        assert_eq!(text(&root, "/nowhere"), Ok(None));
        assert_eq!(text(&root, "/etc/passwd/below"), Ok(None));
    }

    #[test]
    fn what_is_not_a_plain_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir(at("directory")).unwrap();
        symlink("loop", at("loop")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), Mode::RWXU).unwrap();
        std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        fs::write(at("large"), vec![b'a'; (1 << 20) + 1]).unwrap();
        fs::write(at("full"), vec![b'a'; 1 << 20]).unwrap();
        fs::write(at("binary"), [0xff]).unwrap();
        let sparse = File::create(at("sparse")).unwrap();
        sparse.set_len(4 << 40).unwrap();
        let root = below(&dir);
        for (path, why) in [
            ("/directory", Refusal::NotRegular),
            ("/pipe", Refusal::NotRegular),
            ("/socket", Refusal::NotRegular),
            ("/", Refusal::NotRegular),
            ("/loop", Refusal::TooLong),
            ("/large", Refusal::TooLarge(1 << 20)),
            ("/sparse", Refusal::TooLarge(1 << 20)),
            ("/binary", Refusal::NotText),
            ("relative", Refusal::NotAbsolute),
            ("/a/../b", Refusal::NotAbsolute),
        ] {
            assert_eq!(text(&root, path), Err(why), "{path}");
        }
        assert_eq!(text(&root, "/full").unwrap().unwrap().len(), 1 << 20);
        assert_eq!(root.tail("/full", 5, &mut Allowance::of_a_capture()), Ok(Some("aaaaa".into())));
    }

    #[test]
    fn file_systems_that_act_are_not_entered() {
        let ours = Root::ours().unwrap();
        let of_proc = Err(Refusal::Served("proc".into()));
        for path in ["/proc/kmsg", "/proc/self/root/etc/passwd", "/proc/1/environ", "/proc/../etc"]
        {
            let refused = text(&ours, path);
            assert!(refused == of_proc || refused == Err(Refusal::NotAbsolute), "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        symlink("/proc/kmsg", dir.path().join("link")).unwrap();
        let link = dir.path().join("link");
        assert_eq!(text(&ours, link.to_str().unwrap()), of_proc);
    }

    #[test]
    fn a_directory_that_never_ends_does() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..ENTRIES + 9 {
            File::create(dir.path().join(format!("{n}.conf"))).unwrap();
        }
        assert_eq!(below(&dir).names("/"), Err(Refusal::TooMany(ENTRIES)));
        assert_eq!(below(&dir).names("/nowhere"), Ok(Vec::new()));
    }

    #[test]
    fn a_link_out_of_a_confined_root_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("net.d/..data")).unwrap();
        fs::write(at("net.d/plain"), "").unwrap();
        fs::write(at("net.d/..data/inner"), "").unwrap();
        fs::write(at("outside"), "").unwrap();
        symlink("..data/inner", at("net.d/inner")).unwrap();
        symlink("../outside", at("net.d/up")).unwrap();
        symlink("/outside", at("net.d/absolute")).unwrap();
        symlink("nowhere", at("net.d/dangling")).unwrap();
        symlink("../net.d/plain", at("net.d/round")).unwrap();
        let inside = below(&dir).confined("/net.d").unwrap().unwrap();
        for (name, found) in [
            ("plain", Ok(Some(String::new()))),
            ("inner", Ok(Some(String::new()))),
            ("up", Err(Refusal::LeadsOut)),
            ("absolute", Err(Refusal::LeadsOut)),
            ("dangling", Ok(None)),
            ("round", Err(Refusal::LeadsOut)),
        ] {
            assert_eq!(text(&inside, &format!("/{name}")), found, "{name}");
        }
    }

    #[test]
    fn programs_are_found_by_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("runs", 0o755), ("not", 0o644)] {
            fs::write(dir.path().join(name), "").unwrap();
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(dir.path().join(name), mode).unwrap();
        }
        let root = below(&dir);
        assert!(root.is_program("/runs") && !root.is_program("/not") && !root.is_program("/none"));
    }
}
