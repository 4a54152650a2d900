//! Descriptors of names that were opened without their content.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};

use super::allowance::Allowance;
use super::refusal::Refusal;

/// A name that was opened without its content.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) kind: FileType,
    pub(super) mode: u32,
    pub(super) mount: u64,
    owner: u32,
}

impl Opened {
    /// Whether another user than root may have put it there, or may change it. Nobody can replace
    /// what is root's in a folder with the sticky bit.
    pub(super) fn may_be_changed_by_others(&self) -> bool {
        let is_guarded = match self.kind {
            FileType::Symlink => true,
            FileType::Directory => self.mode & STICKY != 0,
            _ => false,
        };
        self.owner != 0 || (self.mode & 0o022 != 0 && !is_guarded)
    }
}

/// The bit of a folder's mode that keeps others from replacing what is in it (inode(7)).
const STICKY: u32 = 0o1000;

/// What a descriptor is. Asks no file system's server, which may be a stranger.
pub(super) fn opened(file: File) -> io::Result<Opened> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::TYPE | StatxFlags::MODE | StatxFlags::UID | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(&file, c"", flags, wanted)?;
    let mount = if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 {
        stat.stx_mnt_id
    } else {
        mount_of(&file)?
    };
    let mode = u32::from(stat.stx_mode);
    Ok(Opened { kind: FileType::from_raw_mode(mode), mode, mount, owner: stat.stx_uid, file })
}

/// The identifier of the mount that a descriptor is on, where statx does not tell it (before Linux
/// 5.8).
fn mount_of(file: &File) -> io::Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.and_then(|id| id.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the kernel does not say on which mount it lies"))
}

/// Opens for reading what was found to be a regular file.
pub(super) fn regular(found: &Opened) -> Result<File, Refusal> {
    if found.kind != FileType::RegularFile {
        return Err(Refusal::NotRegular);
    }
    // Without O_NONBLOCK the kernel would wait for whoever holds a lease on the file (fcntl(2)).
    Ok(reopened(&found.file, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?)
}

/// Opens the same file once more, with other flags.
pub(super) fn reopened(file: &File, flags: OFlags) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// Reads up to `most` bytes, and looks at the allowance in between.
pub(super) fn read_slowly(
    file: &mut File,
    bytes: &mut Vec<u8>,
    most: u64,
    allowance: &mut Allowance,
) -> Result<(), Refusal> {
    let mut buffer = vec![0; 64 << 10];
    while (bytes.len() as u64) < most {
        let room = usize::try_from(most - bytes.len() as u64).unwrap_or(usize::MAX);
        let part = room.min(buffer.len());
        let count = file.read(&mut buffer[..part])?;
        if count == 0 {
            break;
        }
        allowance.take_bytes(count)?;
        bytes.extend_from_slice(&buffer[..count]);
    }
    Ok(())
}
