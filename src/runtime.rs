//! This process: its namespace, its start, its program.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netns {
    /// Its inode: unique until the machine reboots.
    pub inode: u64,
    /// Whether it is the namespace of process 1, which every boot has.
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
        // A process that may not read process 1 cannot change its namespace either.
        let of_init = fs::metadata("/proc/1/ns/net").is_ok_and(|meta| meta.ino() == inode);
        Ok(Netns { inode, of_init })
    }
}

/// The path of this program, which can be executed. It is the kernel's link `/proc/PID/exe` where
/// the name does not exist, as in a namespace with a /run of its own.
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

/// The program's name.
pub const NAME: &str = "proxyshift";

/// Copies this program to `to`. The copy is synced before it has its name: after a power cut an
/// empty file would be there, and a shell runs an empty file with success.
///
/// # Errors
/// [`Kind::Store`](crate::error::Kind::Store), when the copy cannot be written.
pub fn copy_program(to: &Path) -> Result<()> {
    let own = program()?;
    let folder = to.parent().unwrap_or(Path::new("/"));
    let half = folder.join(format!(".{NAME}"));
    fs::copy(&own, &half)
        .and_then(|_| fs::set_permissions(&half, fs::Permissions::from_mode(0o700)))
        .and_then(|()| fs::File::open(&half)?.sync_all())
        .and_then(|()| fs::rename(&half, to))
        .and_then(|()| fs::File::open(folder)?.sync_all())
        .map_err(|e| Error::io(to, &e))
}

/// When process `pid` started, in clock ticks since boot. Pid and start together identify a
/// process. `None` for a missing process, or one that has exited and was not reaped yet.
pub fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the start is the 22nd field, the 20th after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok())?
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
    }
}
