//! Finds who writes to nf_tables, from the events that the kernel sends for each commit, as in
//! `nft monitor`.
//!
//! For each commit, the kernel sends an event per changed object, and a last event that names the
//! process. Only the last one is used.

use std::ffi::CStr;

use netlink_bindings::nftables::OpGetgenDo;
use netlink_bindings::traits::NetlinkRequest;

use super::socket::Socket;
use crate::error::Result;

/// The multicast group of nf_tables' events (NFNLGRP_NFTABLES).
const GROUP: u32 = 7;
/// The type of the last event of a commit: NFT_MSG_NEWGEN of NFNL_SUBSYS_NFTABLES.
const NEWGEN: u16 = 10 << 8 | 15;
/// The size of the receive buffer, in bytes. Events of changes to some ten thousand rules fit in
/// until they are read.
const ROOM: usize = 8 << 20;

/// A commit, and the process that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The generation after the commit.
    pub generation: u32,
    /// The PID of the process, in the initial PID namespace.
    pub pid: u32,
    /// The command name of the process, at most 15 bytes.
    pub name: String,
}

/// The commits since the last call of [`Listener::drain`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commits {
    /// The commits, oldest first.
    pub commits: Vec<Commit>,
    /// True if not all events fitted into the receive buffer, so that commits may be missing.
    pub missed: bool,
}

/// Receives the events of every commit in the network namespace in which it was opened, whichever
/// process commits.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

impl Listener {
    /// Starts to receive events.
    ///
    /// # Errors
    /// [`Kind::Permission`](crate::error::Kind::Permission) without CAP_NET_ADMIN,
    /// [`Kind::Kernel`](crate::error::Kind::Kernel) if this kernel has no nf_tables.
    pub fn open() -> Result<Self> {
        Ok(Listener { socket: Socket::subscribed(GROUP, ROOM)? })
    }

    /// Returns the commits of the events received so far; does not wait for more.
    pub fn drain(&mut self) -> Commits {
        let mut received = Commits::default();
        received.missed = self.socket.receive_events(|kind, payload| {
            if kind == NEWGEN {
                received.commits.extend(commit(payload));
            }
        });
        received
    }
}

/// The commit that an event reports; none on kernels before 4.9, because they do not report the
/// process.
fn commit(payload: &[u8]) -> Option<Commit> {
    let (_, attributes) = OpGetgenDo::decode_reply(payload);
    let name = attributes.get_proc_name().map(CStr::to_string_lossy).ok()?.into_owned();
    let generation = attributes.get_id().ok()?;
    let pid = attributes.get_proc_pid().ok()?;
    Some(Commit { generation, pid, name })
}
