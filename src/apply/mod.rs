//! The only code that changes a node: its rules, sets, links and sysctls, its files and units, and
//! kube-proxy itself. Whatever it has to read first is read in `node`.
//!
//! Each table is changed in one transaction that the kernel, or the xtables lock, binds to the
//! state the edit was checked against: whoever wrote in between wins, and the edit is refused with
//! [`Kind::LostRace`](crate::error::Kind::LostRace) instead of taking their write with it.

pub mod argv;
pub mod conntrack;
pub mod files;
mod ipvs;
pub mod kube_proxy;
mod links;
pub mod modules;
mod rules;
mod sets;
pub mod sysctl;
pub mod systemd;

use std::time::Duration;

use crate::error::Result;
use crate::node::tools::Tools;
use crate::plan::change::{Edit, Target};
use crate::state::Backend;
use crate::state::equivalence::Difference;

/// What the kernel holds after an edit, against what it should hold.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Differences that nobody else can have made: the table was read before and after, and nobody
    /// wrote in between (the lock was held, or the generation moved by our own commit alone).
    pub unexpected: Vec<Difference>,
}

/// kube-proxy gives up after 5 s; nobody may wait for us for longer than this.
const HOLD_LIMIT: Duration = Duration::from_secs(2);

/// Applies edits to the namespace it runs in.
#[derive(Debug, Clone, Copy)]
pub struct Kernel<'a> {
    tools: &'a Tools,
    /// How long to wait for `/run/xtables.lock`.
    lock_wait: Duration,
    /// How long to hold it, reading being half of that; without a limit, for as long as it takes.
    hold_limit: Option<Duration>,
}

impl<'a> Kernel<'a> {
    /// One that uses `tools`, waits for `/run/xtables.lock` for `lock_wait`, and lets go of it when
    /// reading a table has taken half of 2 s.
    pub fn new(tools: &'a Tools, lock_wait: Duration) -> Kernel<'a> {
        Kernel { tools, lock_wait, hold_limit: Some(HOLD_LIMIT) }
    }

    /// As this one, but others may have to wait for as long as it takes: for what must not stay
    /// half done.
    #[must_use]
    pub fn without_limit(self) -> Kernel<'a> {
        Kernel { hold_limit: None, ..self }
    }

    /// Carries out one edit, whole or not at all.
    ///
    /// # Errors
    /// [`Kind::LostRace`](crate::error::Kind::LostRace) when the objects are not as the edit says
    /// any more: plan again. [`Kind::Busy`](crate::error::Kind::Busy) when the xtables lock would
    /// have been held for too long: try again. [`Kind::Lock`](crate::error::Kind::Lock) when that
    /// lock was not to be had. Anything else: the kernel refused, and nothing of this edit was done.
    pub fn apply(&self, edit: &Edit) -> Result<Applied> {
        match &edit.target {
            Target::Table(table) => match table.ruleset.backend {
                Backend::Legacy => rules::legacy::apply(self, edit.direction, table),
                Backend::Nft => rules::nft::apply(self, edit.direction, table),
            },
            Target::NativeTable(native) => {
                rules::native::apply(self, edit.direction, native).map(|()| Applied::default())
            }
            Target::VirtualServer(server) => {
                ipvs::apply(self, edit.direction, server).map(|()| Applied::default())
            }
            Target::RealServer(server) => {
                ipvs::apply_real(self, edit.direction, server).map(|()| Applied::default())
            }
            Target::Link(link) => {
                links::apply(self, edit.direction, link).map(|()| Applied::default())
            }
            Target::Set(set) => sets::apply(self, edit.direction, set).map(|()| Applied::default()),
        }
    }
}
