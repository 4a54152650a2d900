//! Writers of nf_tables: the events of each commit, as in `nft monitor`.
//!
//! The kernel sends an event for each object that a commit changes, and last one with the process.
//! Only the last one is kept.

use std::ffi::CStr;

use netlink_bindings::nftables::OpGetgenDo;
use netlink_bindings::traits::NetlinkRequest;

use super::socket::Socket;
use crate::error::Result;

/// The multicast group of nf_tables (NFNLGRP_NFTABLES).
const GROUP: u32 = 7;
/// The message that ends a commit: NFT_MSG_NEWGEN of NFNL_SUBSYS_NFTABLES.
const NEWGEN: u16 = 10 << 8 | 15;
/// Room for the events between two drains, in bytes: some ten thousand rules.
const ROOM: usize = 8 << 20;

/// A commit and its writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The generation that the commit made.
    pub generation: u32,
    /// The process, by its number in the first process namespace.
    pub pid: u32,
    /// Its command name, of at most 15 bytes.
    pub name: String,
}

/// The commits since the last drain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commits {
    /// The commits, in order.
    pub commits: Vec<Commit>,
    /// True if the room was too small for all events: commits may be missing.
    pub missed: bool,
}

/// Receives an event of every commit in the network namespace that opened it, whoever commits.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

impl Listener {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`Kind::Permission`](crate::error::Kind::Permission) without CAP_NET_ADMIN,
    /// [`Kind::Kernel`](crate::error::Kind::Kernel) if this kernel has no nf_tables.
    pub fn open() -> Result<Self> {
        Ok(Listener { socket: Socket::subscribed(GROUP, ROOM)? })
    }

    /// Drains the events received so far; does not wait.
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

/// The commit of an event. Kernels before 4.9 do not report the process.
fn commit(payload: &[u8]) -> Option<Commit> {
    let (_, attributes) = OpGetgenDo::decode_reply(payload);
    let name = attributes.get_proc_name().map(CStr::to_string_lossy).ok()?.into_owned();
    let generation = attributes.get_id().ok()?;
    let pid = attributes.get_proc_pid().ok()?;
    Some(Commit { generation, pid, name })
}
