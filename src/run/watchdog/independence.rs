//! What makes a watchdog independent of the session in which the run began, of that session's
//! limits, and of the disk from which the program was started. All of it is as far as the kernel
//! permits.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2,
    SIGXCPU, SIGXFSZ,
};

use crate::error::{Error, Kind, Result};
use crate::runtime::NAME;

/// The adjustment of the OOM killer's score, which spares all but -1000.
const SPARED: &str = "-900";

/// How many files may be open. More would make some programs slow, which close all that they could
/// have open.
const FILES: u64 = 65_536;

/// This program's file.
const OWN: &str = "/proc/self/exe";

/// The signals that neither end nor stop a watchdog.
const IGNORED: [i32; 12] = [
    SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2,
    SIGXCPU, SIGXFSZ,
];

/// Ignores each signal that asks this process to end or to stop. The programs that it starts do
/// not ignore them.
///
/// # Errors
/// [`Kind::Unexpected`] when the kernel refuses.
pub fn ignore_signals() -> Result<()> {
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in IGNORED {
        signal_hook::flag::register(signal, ignored.clone())
            .map_err(|e| Error::new(Kind::Unexpected, "signal handler", e))?;
    }
    Ok(())
}

/// Raises the limits of this process, which it has from the session.
pub(super) fn raise_limits() {
    let unlimited = [
        Resource::As,
        Resource::Cpu,
        Resource::Data,
        Resource::Fsize,
        Resource::Memlock,
        Resource::Nproc,
        Resource::Rss,
    ];
    for (resource, wanted) in unlimited
        .map(|resource| (resource, None))
        .into_iter()
        .chain([(Resource::Nofile, Some(FILES))])
    {
        let now = getrlimit(resource);
        // None is no limit.
        let more = |a: Option<u64>, b: Option<u64>| Some(a?.max(b?));
        let both = Rlimit { current: wanted, maximum: more(now.maximum, wanted) };
        if setrlimit(resource, both).is_err() {
            // Only a process with the right to may raise the maximum.
            let _ = setrlimit(resource, Rlimit { current: now.maximum, maximum: now.maximum });
        }
    }
}

/// Asks the OOM killer to spare this process.
pub(super) fn resist_oom() {
    let _ = fs::write("/proc/self/oom_score_adj", SPARED);
}

/// Moves this process to the topmost control group of each hierarchy that it can see. Returns
/// whether it is outside of every control group now.
pub(super) fn leave_control_groups() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for folder in hierarchies(&mounts) {
        let _ = fs::write(folder.join("cgroup.procs"), std::process::id().to_string());
    }
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let outside = groups.lines().all(|line| line.splitn(3, ':').nth(2) == Some("/"));
    // Only a group below the topmost one has this file: the `/` of a container is such a group.
    outside && !hierarchies(&mounts).iter().any(|folder| folder.join("cgroup.events").exists())
}

/// Where control groups are mounted, as proc_pid_mountinfo(5) tells.
fn hierarchies(mounts: &str) -> Vec<PathBuf> {
    let folder = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let is_groups = matches!(file_system.split(' ').next(), Some("cgroup" | "cgroup2"));
        is_groups.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    };
    mounts.lines().filter_map(folder).collect()
}

/// Becomes a copy of this program that is in memory, with the same arguments and PID. Then no disk
/// is needed, and whatever becomes of the program's file and its mount is of no importance. Returns
/// when this process is such a copy, or cannot become one.
pub(super) fn run_from_memory() {
    if !is_in_memory() {
        // The file itself may be executed as long as it is there.
        let _ = become_copy();
    }
    // A copy in memory would have the number of its file descriptor as its name.
    let _ = rustix::thread::set_name(c"proxyshift");
}

fn is_in_memory() -> bool {
    fs::read_link(OWN).is_ok_and(|path| path.as_os_str().as_bytes().starts_with(b"/memfd:"))
}

fn become_copy() -> io::Result<Infallible> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // An older kernel does not know the flag, and lets every such file be executed.
    let memory =
        memfd_create(NAME, flags | MemfdFlags::EXEC).or_else(|_| memfd_create(NAME, flags))?;
    let mut memory = File::from(memory);
    io::copy(&mut File::open(OWN)?, &mut memory)?;
    memory.rewind()?;
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(memory.as_fd(), all)?;
    // What is open for writing is not executed.
    let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let program = File::open(path(&memory))?;
    drop(memory);
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    Err(Command::new(path(&program)).arg0(NAME).args(words).exec())
}

/// This program's file, for another process of it: the copy in memory, if this process is one.
pub(super) fn own_program() -> &'static Path {
    Path::new(OWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_where_they_are_mounted() {
        let mounts = "\
            33 24 0:28 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
            34 33 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n\
            35 33 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            36 24 0:31 / /cgroup rw - ext4 /dev/cgroup2 rw\n";
        assert_eq!(
            hierarchies(mounts),
            [Path::new("/sys/fs/cgroup/unified"), Path::new("/sys/fs/cgroup/memory")]
        );
    }

    #[test]
    fn limits_are_raised_as_far_as_the_kernel_permits() {
        let before = getrlimit(Resource::Nofile);
        let low = Rlimit { current: Some(64), maximum: before.maximum };
        setrlimit(Resource::Nofile, low).unwrap();
        raise_limits();
        let now = getrlimit(Resource::Nofile);
        assert!(now.current.is_none_or(|files| files >= 1024), "{now:?}");
    }
}
