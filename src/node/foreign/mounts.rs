//! Which mounts are entered.

use std::collections::HashMap;

use super::refusal::Refusal;

/// The file systems that the kernel itself serves, from a disk or from memory. Only root can mount
/// them where we look, or serve them. Others (FUSE, autofs, a network's) may never answer, or answer
/// by doing something (proc, sysfs).
const ENTERED: &[&str] = &[
    "9p", "aufs", "bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs",
    "overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "vfat", "virtiofs", "xfs",
    "zfs",
];

/// The type of each mount that can be seen from a root, keyed by the mount's identifier.
#[derive(Clone)]
pub(super) struct Mounts(HashMap<u64, String>);

impl Mounts {
    /// Parses the text of /proc/PID/mountinfo.
    pub(super) fn parse(mountinfo: &str) -> Mounts {
        Mounts(mountinfo.lines().filter_map(mount_of_line).collect())
    }

    /// Refuses a mount that somebody else may serve. What is mounted since the mounts were read is
    /// not known, and refused as well.
    pub(super) fn judge(&self, mount: u64) -> Result<(), Refusal> {
        match self.0.get(&mount) {
            Some(kind) if ENTERED.contains(&kind.as_str()) => Ok(()),
            Some(kind) => Err(Refusal::Served(kind.clone())),
            None => Err(Refusal::Served("that is not known".into())),
        }
    }
}

/// The identifier of a mount, and the type of its file system: the first field of a line of
/// proc_pid_mountinfo(5), and the first one after a lone `-`.
fn mount_of_line(line: &str) -> Option<(u64, String)> {
    let (about, kind) = line.split_once(" - ")?;
    let id = about.split(' ').next()?.parse().ok()?;
    Some((id, kind.split(' ').next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_from_their_lines() {
        let line = "36 35 98:0 /mnt1 /mnt\\040x rw shared:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount_of_line(line), Some((36, "ext3".into())));
        // Its source may be empty.
        assert_eq!(mount_of_line("7 1 0:9 / /x rw - tmpfs  rw"), Some((7, "tmpfs".into())));
        assert_eq!(mount_of_line("x 1 0:9 / /x rw"), None);
    }
}
