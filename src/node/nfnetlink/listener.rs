//! Who writes to nf_tables: what `nft monitor` tells of each commit.
//!
//! The kernel tells a listener of every object that a commit changes, and last who made it. Only that
//! last word is kept.

use std::ffi::CStr;

use netlink_bindings::nftables::OpGetgenDo;
use netlink_bindings::traits::NetlinkRequest;

use super::socket::Socket;
use crate::error::Result;

/// The multicast group of nf_tables (NFNLGRP_NFTABLES).
const GROUP: u32 = 7;
/// The message that ends a commit: NFT_MSG_NEWGEN of NFNL_SUBSYS_NFTABLES.
const NEWGEN: u16 = 10 << 8 | 15;
/// Room for what is told between two looks, in bytes: some ten thousand rules.
const ROOM: usize = 8 << 20;

/// Who made a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// The generation that the commit made.
    pub generation: u32,
    /// The process, by its number in the first process namespace.
    pub pid: u32,
    /// Its command name, of at most 15 bytes.
    pub name: String,
}

/// What was heard since the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// The commits, in order.
    pub writers: Vec<Writer>,
    /// True if there was not room for all that was told: other commits may have been made.
    pub missed: bool,
}

/// Hears of every commit in the network namespace that opened it, by anyone, from then on.
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

    /// What was told by now; does not wait.
    pub fn drain(&mut self) -> Heard {
        let mut heard = Heard::default();
        heard.missed = self.socket.told(|kind, payload| {
            if kind == NEWGEN {
                heard.writers.extend(writer(payload));
            }
        });
        heard
    }
}

/// Kernels before 4.9 do not say who it was.
fn writer(payload: &[u8]) -> Option<Writer> {
    let (_, attributes) = OpGetgenDo::decode_reply(payload);
    let name = attributes.get_proc_name().map(CStr::to_string_lossy).ok()?.into_owned();
    let (generation, pid) = (attributes.get_id().ok()?, attributes.get_proc_pid().ok()?);
    Some(Writer { generation, pid, name })
}
