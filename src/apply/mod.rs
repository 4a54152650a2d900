//! The only code that changes a node: its rules, sets, links and sysctls, its files and units, and
//! kube-proxy itself. `node` does all reading.
//!
//! Each table is changed in one transaction. The kernel, or the xtables lock, binds it to the state
//! that the edit was checked against. If another program writes in between, its write is kept and
//! the edit is refused with [`Kind::LostRace`](crate::error::Kind::LostRace).

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

/// The result of an edit: the kernel's state, compared with the expected one.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Differences that no other program can have made: the table was read before and after, and
    /// there was no write in between (the lock was held, or the generation moved by our own commit
    /// alone).
    pub unexpected: Vec<Difference>,
}

/// The limit for holding a lock: kube-proxy gives up after 5 s.
const HOLD_LIMIT: Duration = Duration::from_secs(2);

/// Applies edits to the current namespace.
#[derive(Debug, Clone, Copy)]
pub struct Kernel<'a> {
    tools: &'a Tools,
    /// How long to wait for `/run/xtables.lock`.
    lock_wait: Duration,
    /// How long to hold it, with half of that for reading; none is no limit.
    hold_limit: Option<Duration>,
}

impl<'a> Kernel<'a> {
    /// Uses `tools`, waits up to `lock_wait` for `/run/xtables.lock`, and releases it when reading
    /// a table has taken half of 2 s.
    pub fn new(tools: &'a Tools, lock_wait: Duration) -> Kernel<'a> {
        Kernel { tools, lock_wait, hold_limit: Some(HOLD_LIMIT) }
    }

    /// Holds locks as long as necessary: for an edit that must not be left half done.
    #[must_use]
    pub fn without_limit(self) -> Kernel<'a> {
        Kernel { hold_limit: None, ..self }
    }

    /// Applies one edit, all of it or nothing.
    ///
    /// # Errors
    /// [`Kind::LostRace`](crate::error::Kind::LostRace) when the objects differ from the edit: plan
    /// again. [`Kind::Busy`](crate::error::Kind::Busy) when the xtables lock would be held for too
    /// long: retry. [`Kind::Lock`](crate::error::Kind::Lock) when that lock was not free. Any other
    /// error: the kernel refused, and nothing of this edit was applied.
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
