//! Facts about this process: its network namespace, its start time, the path of its program, and the
//! file systems that it writes to.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result, shortened};

/// A network namespace, by the inode that identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netns {
    /// The inode of the namespace, unique until the machine reboots.
    pub inode: u64,
    /// Whether it is the network namespace of process 1, which exists again after every boot.
    pub of_init: bool,
}

impl Netns {
    /// The network namespace of this process.
    ///
    /// # Errors
    /// When /proc is missing.
    pub fn current() -> Result<Netns> {
        let path = "/proc/self/ns/net";
        let inode = fs::metadata(path).map_err(|e| Error::io(path, &e))?.ino();
        // If the namespace of process 1 cannot be read, the answer is false. Without the right to
        // read it, this process cannot change that namespace either.
        let of_init = fs::metadata("/proc/1/ns/net").is_ok_and(|meta| meta.ino() == inode);
        Ok(Netns { inode, of_init })
    }
}

/// Who started this process, from where and with which words, for those who look at a run later.
/// The environment is the caller's word; the login user is the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The user who logged in (the audit login uid); none for a process of no login.
    pub login_uid: Option<u32>,
    /// The user who called sudo.
    pub sudo_user: Option<String>,
    /// The two ends of the SSH connection.
    pub ssh: Option<String>,
    /// The terminal.
    pub tty: Option<String>,
    /// The job of the automation controller that runs the play.
    pub job: Option<String>,
    /// The verb with its options.
    pub words: String,
}

impl Caller {
    /// The largest number of characters that are kept of one text.
    const LONGEST: usize = 300;

    /// The caller of this process.
    pub fn here() -> Caller {
        let kept = |text: String| shortened(&text, Caller::LONGEST);
        let variable = |name: &str| {
            let value = std::env::var_os(name)?.to_string_lossy().into_owned();
            (!value.is_empty()).then(|| kept(value))
        };
        let login = fs::read_to_string("/proc/self/loginuid").ok();
        let terminal = |fd: u32| {
            let path = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
            let path = path.display().to_string();
            ["/dev/pts/", "/dev/tty"].iter().any(|dir| path.starts_with(dir)).then_some(path)
        };
        let words: Vec<String> =
            std::env::args_os().skip(1).map(|word| word.display().to_string()).collect();
        Caller {
            login_uid: login.and_then(|uid| uid.trim().parse().ok()).filter(|uid| *uid != u32::MAX),
            sudo_user: variable("SUDO_USER"),
            ssh: variable("SSH_CONNECTION"),
            tty: (0..3).find_map(terminal),
            job: ["AWX_JOB_ID", "TOWER_JOB_ID"].into_iter().find_map(variable),
            words: kept(words.join(" ")),
        }
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let login = self.login_uid.map(|uid| format!("login uid {uid}"));
        let sudo = self.sudo_user.as_ref().map(|user| format!("sudo by {user}"));
        let ssh = self.ssh.as_ref().map(|ends| format!("ssh {ends}"));
        let tty = self.tty.as_ref().map(|tty| format!("on {tty}"));
        let job = self.job.as_ref().map(|job| format!("job {job}"));
        let known: Vec<String> = [login, sudo, ssh, tty, job].into_iter().flatten().collect();
        let who = if known.is_empty() { "root".to_owned() } else { known.join(", ") };
        write!(f, "{who}: {NAME} {}", self.words)
    }
}

/// A path that runs this program again: its own path, or `/proc/PID/exe` if that path does not
/// exist here, as in a mount namespace with its own /run.
///
/// # Errors
/// When /proc is missing.
pub fn program() -> Result<PathBuf> {
    let name = std::env::current_exe().map_err(|e| Error::io("/proc/self/exe", &e))?;
    if name.exists() {
        return Ok(name);
    }
    Ok(format!("/proc/{}/exe", std::process::id()).into())
}

/// The name of the program.
pub const NAME: &str = "proxyshift";

/// Free space in bytes that a copy of this program leaves for others.
const SPARE: u64 = 64 << 10;

/// Copies this program to `to`, if there is room. The copy is synced before it is renamed to `to`.
/// Otherwise a power cut could leave an empty file there, which a shell would run as a script that
/// succeeds. A copy that fails leaves nothing behind.
///
/// # Errors
/// [`Kind::Store`] when there is no room, or the copy cannot be written.
pub fn copy_program(to: &Path) -> Result<()> {
    let own = program()?;
    let folder = to.parent().unwrap_or(Path::new("/"));
    let half = folder.join(format!(".{NAME}"));
    // Of a copy that was cut off.
    let _ = fs::remove_file(&half);
    let size = fs::metadata(&own).map_err(|e| Error::io(&own, &e))?.len();
    let free = free_bytes(folder)?;
    if free < size.saturating_add(SPARE) {
        let cause = format!(
            "a copy of {NAME} needs {} KiB here, and {} KiB are free",
            size.div_ceil(1024),
            free / 1024
        );
        return Err(Error::new(Kind::Store, folder.display().to_string(), cause)
            .hint("free some room there, or name another store with --store DIR"));
    }
    fs::copy(&own, &half)
        .and_then(|_| fs::set_permissions(&half, fs::Permissions::from_mode(0o700)))
        .and_then(|()| fs::File::open(&half)?.sync_all())
        .and_then(|()| fs::rename(&half, to))
        .and_then(|()| fs::File::open(folder)?.sync_all())
        .inspect_err(|_| {
            let _ = fs::remove_file(&half);
        })
        .map_err(|e| Error::io(to, &e))
}

/// The bytes that root may still use in the file system of `path`.
///
/// # Errors
/// The system's error of statvfs(3).
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).map_err(|e| Error::io(path, &e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether `path` is on a file system in memory: tmpfs or ramfs, by the types of statfs(2).
///
/// # Errors
/// The system's error of statfs(2).
pub fn is_in_memory(path: &Path) -> Result<bool> {
    const TYPES: [i128; 2] = [0x0102_1994, 0x8584_58f6];
    let stat = rustix::fs::statfs(path).map_err(|e| Error::io(path, &e.into()))?;
    Ok(TYPES.contains(&i128::from(stat.f_type)))
}

/// When process `pid` started, in clock ticks since boot. PID and start time together identify a
/// process. `None` if the process does not exist, or has exited and was not reaped yet.
pub fn process_start(pid: u32) -> Option<u64> {
    let (state, start) = state_and_start(pid)?;
    (!matches!(state, 'Z' | 'X')).then_some(start)
}

/// Whether process `pid` is stopped by a signal, such as SIGSTOP.
pub fn is_stopped(pid: u32) -> bool {
    state_and_start(pid).is_some_and(|(state, _)| state == 'T')
}

fn state_and_start(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything. The start time is field 22, the 20th after
    // the name.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The PID of the parent of process `pid`: the second field of /proc/PID/stat after the name in
/// parentheses. The name may hold anything, even a parenthesis.
pub fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The processes below process `ancestor`, except those of `left_out` and what is below these.
pub fn descendants(ancestor: u32, left_out: &[u32]) -> Vec<ProcessId> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&of) = found.get(next) {
        let children =
            parents.iter().filter(|(pid, parent)| *parent == of && !left_out.contains(pid));
        found.extend(children.map(|(pid, _)| *pid));
        next += 1;
    }
    found[1..].iter().filter_map(|pid| ProcessId::of(*pid)).collect()
}

/// A process, by its PID and its start time. The PID alone does not identify a process, because the
/// kernel may give it to another process later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// The PID.
    pub pid: u32,
    start: u64,
}

impl ProcessId {
    /// The process that has this PID now; none if no process has it.
    pub fn of(pid: u32) -> Option<ProcessId> {
        Some(ProcessId { pid, start: process_start(pid)? })
    }

    /// Whether the process still runs.
    pub fn is_alive(self) -> bool {
        process_start(self.pid) == Some(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_one_start() {
        let me = std::process::id();
        assert!(process_start(me).is_some_and(|start| start > 0));
        assert_eq!(process_start(me), process_start(me));
        assert_eq!(process_start(u32::MAX), None);
        let process = ProcessId::of(me).unwrap();
        assert!(process.is_alive());
        assert!(!ProcessId { start: process.start + 1, ..process }.is_alive());
        assert_eq!(ProcessId::of(u32::MAX), None);
    }
}
