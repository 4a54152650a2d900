//! Which namespace, process and program this is.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netns {
    /// Its inode: unique while the machine is up, and not kept over a reboot.
    pub inode: u64,
    /// Whether it is the one of process 1, which every boot has.
    pub of_init: bool,
}

impl Netns {
    /// The one this process is in.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn current() -> Result<Netns> {
        let path = "/proc/self/ns/net";
        let inode = fs::metadata(path).map_err(|e| Error::io(path, &e))?.ino();
        // Who may not look at process 1 cannot change its namespace either.
        let of_init = fs::metadata("/proc/1/ns/net").is_ok_and(|meta| meta.ino() == inode);
        Ok(Netns { inode, of_init })
    }
}

/// The program of this process, by a path that can be executed: its name, or the kernel's own link to
/// it where its name leads nowhere from here, as in a namespace with a /run of its own.
///
/// # Errors
/// When /proc is not there.
pub fn program() -> Result<PathBuf> {
    let name = std::env::current_exe().map_err(|e| Error::io("/proc/self/exe", &e))?;
    Ok(match name.exists() {
        true => name,
        false => format!("/proc/{}/exe", std::process::id()).into(),
    })
}

/// What the program is called.
pub const NAME: &str = "proxyshift";

/// A copy of this program at `to`, on the disk when it has its name: an empty file would be a shell's
/// idea of a program that succeeds, to whoever starts it after the power was cut.
///
/// # Errors
/// [`Kind::Store`](crate::error::Kind::Store), when it cannot be written.
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

/// When process `pid` started, in clock ticks since boot; with the pid it names a process for
/// good. `None` if there is no such process, or one that has ended and was not collected yet.
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
