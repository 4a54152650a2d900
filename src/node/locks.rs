//! Locks whose holder can be named when they are not free.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::runtime::Netns;

/// The directory of the files of the node locks, wherever the store is.
pub const LOCK_DIR: &str = "/run/proxyshift";

/// The file that iptables, kube-proxy and the CNI plugins lock while they change rules.
pub const XTABLES_LOCK: &str = "/run/xtables.lock";

/// The largest size in bytes of the text that names a holder.
const MOST: u64 = 4096;

/// The process that holds a node lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The PID of the holder.
    pub pid: u32,
    /// The verb of the holder's command line, such as `cleanup`.
    pub verb: String,
    /// When the holder took the lock: `2026-11-21T20:15:02Z`.
    pub since: String,
}

/// The exclusive right to change this network namespace, held until dropped.
#[derive(Debug)]
pub struct NodeLock {
    file: File,
}

impl NodeLock {
    /// Takes the lock of this network namespace, whose file is in `dir` ([`LOCK_DIR`], except in
    /// tests). Waits up to `wait` for the lock.
    ///
    /// # Errors
    /// [`Kind::Lock`], naming the holder.
    pub fn acquire(dir: &Path, verb: &str, wait: Duration) -> Result<NodeLock> {
        NodeLock::named(dir, &format!("{}.lock", Netns::current()?.inode), verb, wait)
    }

    /// Takes the lock that only one guard per network namespace can hold, without waiting. This
    /// lock does not keep runs from changing the namespace meanwhile.
    ///
    /// # Errors
    /// [`Kind::Lock`], naming the holder.
    pub fn of_guard(dir: &Path, verb: &str) -> Result<NodeLock> {
        let name = format!("guard-{}.lock", Netns::current()?.inode);
        NodeLock::named(dir, &name, verb, Duration::ZERO).map_err(|e| match e.kind {
            Kind::Lock => e.hint("one guard serves for all: end that one, or name all with --for"),
            _ => e,
        })
    }

    /// The process that holds the lock of this network namespace; none if it is free, or its holder
    /// cannot be named.
    pub fn holder(dir: &Path) -> Option<Holder> {
        holder(&dir.join(format!("{}.lock", Netns::current().ok()?.inode)))
    }

    fn named(dir: &Path, name: &str, verb: &str, wait: Duration) -> Result<NodeLock> {
        private_dir(dir)?;
        let path = dir.join(name);
        let step = Duration::from_millis(50);
        let file = wait_for(&path, Whose::Ours, wait, step, |file| match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(e)) => Err(e),
        })?;
        let Some(file) = file else {
            return Err(lock_error(&path));
        };
        let holder = Holder { pid: std::process::id(), verb: verb.into(), since: clock::now() };
        let json = serde_json::to_vec(&holder).unwrap_or_default();
        // A failed write, as on a full disk, is ignored: the lock is held all the same, and only
        // its holder cannot be named.
        let _ = file.set_len(0).and_then(|()| (&file).write_all(&json));
        Ok(NodeLock { file })
    }
}

impl Drop for NodeLock {
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
    }
}

/// Creates the directory of the lock files, or verifies that the existing one is no one else's:
/// whoever can write to it can hold the lock, or take it away under its holder.
fn private_dir(dir: &Path) -> Result<()> {
    let io = |e: io::Error| Error::io(dir, &e);
    let meta = match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
            fs::symlink_metadata(dir).map_err(io)?
        }
        other => other.map_err(io)?,
    };
    let kind = meta.file_type();
    if kind.is_symlink() || !kind.is_dir() {
        let what = if kind.is_symlink() { "a symbolic link" } else { "a file" };
        let cause = format!("{what} of user {} in place of a directory", meta.uid());
        return Err(untrusted(dir, cause));
    }
    whose(dir, &meta)
}

/// Refuses a file or directory that belongs to another user, or that others may write to.
fn whose(path: &Path, meta: &fs::Metadata) -> Result<()> {
    let (me, owner) = (rustix::process::geteuid().as_raw(), meta.uid());
    if owner != me {
        return Err(untrusted(path, format!("it belongs to user {owner}, not to user {me}")));
    }
    if meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o7777;
        let cause = format!("it belongs to user {owner}, but others may write to it ({mode:04o})");
        return Err(untrusted(path, cause));
    }
    Ok(())
}

fn untrusted(path: &Path, cause: String) -> Error {
    Error::new(Kind::Permission, path.display().to_string(), cause).hint(format!(
        "find out who made it, and when no proxyshift runs remove it: `rm -r {}`; it is made anew",
        path.display()
    ))
}

/// The holder that the text of the lock file at `path` names; none if the file is empty.
fn holder(path: &Path) -> Option<Holder> {
    let mut text = String::new();
    open(path, Whose::Ours).ok()?.take(MOST).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn lock_error(path: &Path) -> Error {
    let who = holder(path).map_or("another proxyshift holds it".into(), |h| {
        format!("held by `proxyshift {}`, pid {}, since {}", h.verb, h.pid, h.since)
    });
    Error::new(Kind::Lock, path.display().to_string(), who)
        .hint("wait for it to end, or see what it does with `proxyshift status`")
}

/// A lock on `/run/xtables.lock`, taken as iptables takes it and held until the last clone of this
/// value, and the last process that has [`XtablesLock::shared`], is gone.
#[derive(Debug, Clone)]
pub struct XtablesLock {
    file: Arc<File>,
}

impl XtablesLock {
    /// Takes the lock on the file at `path` ([`XTABLES_LOCK`], except in tests). Waits up to `wait`
    /// for the lock. A missing file is created. An existing file is never replaced, because other
    /// programs lock that file.
    ///
    /// # Errors
    /// [`Kind::Lock`], naming the holder if /proc/locks shows it.
    pub fn acquire(path: &Path, wait: Duration) -> Result<XtablesLock> {
        let step = Duration::from_millis(10);
        let file = wait_for(path, Whose::Anyones, wait, step, |file| {
            match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(true),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
                Err(e) => Err(e.into()),
            }
        })?;
        if let Some(file) = file {
            return Ok(XtablesLock { file: Arc::new(file) });
        }
        let who = fs::metadata(path)
            .ok()
            .zip(fs::read_to_string("/proc/locks").ok())
            .and_then(|(meta, locks)| flock_holder(&locks, meta.dev(), meta.ino()));
        let cause = who.map_or("held by a process that cannot be seen from here".into(), |pid| {
            match fs::read_to_string(format!("/proc/{pid}/comm")) {
                Ok(name) => format!("held by {} (pid {pid}) for over {wait:?}", name.trim()),
                Err(_) => format!("held by a child of process {pid}, which has ended"),
            }
        });
        Err(Error::new(Kind::Lock, path.display().to_string(), cause)
            .hint("try again when its holder is done with the rules"))
    }

    /// The locked file, for a child. The child then holds the lock as this process does: the lock
    /// is free when both have ended.
    ///
    /// # Errors
    /// When this process has too many open files.
    pub fn shared(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// The lock file that the iptables programs of this process use while this process itself holds the
/// [`XTABLES_LOCK`]. Only such a program locks it, so one file is enough for all, and none is left
/// behind by a run that is killed.
///
/// # Errors
/// When its directory cannot be made, or is somebody else's.
pub fn lock_of_children() -> Result<PathBuf> {
    let dir = Path::new(LOCK_DIR);
    private_dir(dir)?;
    Ok(dir.join("children.lock"))
}

/// Opens the file at `path` and tries to lock it; returns `None` if that did not succeed within
/// `wait`. If the file was removed or replaced before the lock was taken, the lock would exclude
/// nobody, so the new file is opened and tried.
fn wait_for(
    path: &Path,
    whose: Whose,
    wait: Duration,
    step: Duration,
    try_lock: impl Fn(&File) -> io::Result<bool>,
) -> Result<Option<File>> {
    let io = |e: io::Error| Error::io(path, &e);
    let until = Instant::now() + wait;
    loop {
        let file = match open(path, whose) {
            // Somebody holds a lease on the file. The kernel ends it (fcntl(2)) soon.
            Err(e) if e.kind == Kind::Lock && Instant::now() < until => {
                std::thread::sleep(step);
                continue;
            }
            file => file?,
        };
        while !try_lock(&file).map_err(io)? {
            if Instant::now() >= until {
                return Ok(None);
            }
            std::thread::sleep(step);
        }
        let mine = file.metadata().map_err(io)?;
        let there = fs::symlink_metadata(path);
        if there.is_ok_and(|t| (t.dev(), t.ino()) == (mine.dev(), mine.ino())) {
            return Ok(Some(file));
        }
        if Instant::now() >= until {
            return Ok(None);
        }
    }
}

/// Whose a lock file may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Only this user's, as for the locks of proxyshift.
    Ours,
    /// Whoever made it, as for the lock that other programs use.
    Anyones,
}

/// Opens the lock file at `path`, or creates it, but never through a symbolic link. Only a regular
/// file is a lock file.
fn open(path: &Path, whose: Whose) -> Result<File> {
    use rustix::io::Errno;
    // A child gets the lock that is anyone's, and must not be able to write to the file.
    let access = if whose == Whose::Ours { OFlags::RDWR } else { OFlags::RDONLY };
    let how = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let create = access | how | OFlags::CREATE;
    let opened = match rustix::fs::open(path, create, Mode::RUSR | Mode::WUSR) {
        // The lock works on a file that cannot be written; only its holder has no name then.
        Err(Errno::ROFS) => rustix::fs::open(path, OFlags::RDONLY | how, Mode::empty()),
        opened => opened,
    };
    let other = |what: &str| untrusted(path, format!("{what} in place of a lock file"));
    let file = File::from(opened.map_err(|e| match e {
        Errno::LOOP => other("a symbolic link"),
        Errno::ISDIR => other("a directory"),
        Errno::NXIO | Errno::NODEV => other("a special file"),
        Errno::AGAIN => Error::new(
            Kind::Lock,
            path.display().to_string(),
            "somebody holds a lease on it (see /proc/locks)",
        ),
        _ => Error::io(path, &e.into()),
    })?);
    let meta = file.metadata().map_err(|e| Error::io(path, &e))?;
    if !meta.is_file() {
        return Err(other("a special file"));
    }
    if whose == Whose::Ours {
        self::whose(path, &meta)?;
    }
    Ok(file)
}

/// The PID of the process that holds an flock(2) on the file with this device and inode. `locks` is
/// the text of /proc/locks: `1: FLOCK ADVISORY  WRITE 1234 00:1a:5678 0 EOF`. A `->` marks a
/// process that waits.
fn flock_holder(locks: &str, dev: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(dev), rustix::fs::minor(dev));
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            return None;
        }
        let pid = words.nth(2)?.parse().ok().filter(|pid| *pid > 0)?;
        (words.next() == Some(file.as_str())).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_lock_names_its_holder() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("locks");
        let first = NodeLock::acquire(&dir, "migrate", Duration::ZERO).unwrap();
        let error = NodeLock::acquire(&dir, "check", Duration::from_millis(60)).unwrap_err();
        assert_eq!(error.kind, Kind::Lock);
        assert!(error.cause.contains("`proxyshift migrate`"), "{error}");
        assert!(error.cause.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        NodeLock::acquire(&dir, "check", Duration::ZERO).unwrap();
    }

    #[test]
    fn a_directory_or_lock_that_others_may_have_made_is_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("locks");
        let refusal = |words: &str| {
            let error = NodeLock::acquire(&dir, "check", Duration::ZERO).unwrap_err();
            assert_eq!(error.kind, Kind::Permission, "{error}");
            assert!(error.cause.contains(words), "{words}: {error}");
            assert!(error.hint.unwrap().contains("rm -r"));
        };
        let chmod = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir(&dir).unwrap();
        for mode in [0o777, 0o770, 0o702] {
            chmod(&dir, mode);
            refusal("others may write");
        }
        chmod(&dir, 0o755);
        let lock = dir.join(format!("{}.lock", Netns::current().unwrap().inode));
        symlink(tmp.path().join("new"), &lock).unwrap();
        refusal("a symbolic link in place of a lock file");
        assert!(!tmp.path().join("new").exists());
        fs::remove_file(&lock).unwrap();
        fs::create_dir(&lock).unwrap();
        refusal("a directory in place of a lock file");
        fs::remove_dir(&lock).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &lock,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        refusal("a special file in place of a lock file");
        fs::remove_file(&lock).unwrap();
        fs::write(&lock, "").unwrap();
        chmod(&lock, 0o666);
        refusal("others may write");
        fs::remove_file(&lock).unwrap();
        NodeLock::acquire(&dir, "check", Duration::ZERO).unwrap();
        if std::os::unix::fs::chown(&dir, Some(4242), None).is_ok() {
            refusal("user 4242");
        }
        fs::remove_dir_all(&dir).unwrap();
        fs::write(&dir, "").unwrap();
        refusal("a file of user");
        fs::remove_file(&dir).unwrap();
        symlink(tmp.path().join("elsewhere"), &dir).unwrap();
        refusal("a symbolic link of user");
        fs::create_dir(tmp.path().join("elsewhere")).unwrap();
        refusal("a symbolic link of user");
    }

    #[test]
    fn a_file_that_was_removed_under_its_holder_is_made_anew() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let held = XtablesLock::acquire(&path, Duration::ZERO).unwrap();
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || XtablesLock::acquire(&path, Duration::from_secs(20))
        });
        std::thread::sleep(Duration::from_millis(50));
        fs::remove_file(&path).unwrap();
        drop(held);
        let _now = waiting.join().unwrap().unwrap();
        let error = XtablesLock::acquire(&path, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind, Kind::Lock, "the lock is on the file that is there now");
    }

    #[test]
    fn the_holder_is_found_in_proc_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:19:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 22 00:19:78 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 33 00:19:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 44 00:19:77 0 EOF\n";
        assert_eq!(flock_holder(locks, 0x19, 77), Some(44));
        assert_eq!(flock_holder(locks, 0x19, 79), None);
    }
}
