//! The only code that changes a node: its rules, ipsets, links, sysctls, files and units, and
//! kube-proxy itself. Reading is in `node`.
//!
//! Each table is changed in one transaction. The change is bound to the state against which the
//! edit was checked: by the kernel for nft tables, by the xtables lock for legacy ones. If another
//! program writes in between, its write is kept and the edit is refused with
//! [`Kind::LostRace`](crate::error::Kind::LostRace).

pub mod argv;
pub mod bridge;
pub mod cluster;
pub mod conntrack;
pub mod files;
mod ipvs;
pub mod kube_proxy;
mod links;
pub mod modules;
pub mod prerequisites;
mod rules;
mod sets;
pub mod sysctl;
pub mod systemd;

use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::node::command::Command;
use crate::node::locks::{XTABLES_LOCK, XtablesLock};
use crate::node::tools::{Tool, Tools};
use crate::plan::change::{Edit, Target};
use crate::state::Backend;
use crate::state::equivalence::Difference;

/// What applying an edit did to the kernel's state, compared with what the edit should do.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Differences that no other program can have made, because the table was read before and after
    /// and nothing else wrote in between: the xtables lock was held, or our own commit alone moved
    /// the nf_tables generation.
    pub unexpected: Vec<Difference>,
}

/// How long an xtables lock may be held at most. kube-proxy gives up waiting for the lock after
/// 5 s.
const HOLD_LIMIT: Duration = Duration::from_secs(2);

/// Applies edits to the kernel state of the current namespaces.
#[derive(Debug, Clone, Copy)]
pub struct Kernel<'a> {
    tools: &'a Tools,
    /// How long to wait for `/run/xtables.lock`.
    lock_wait: Duration,
    /// How long `/run/xtables.lock` may be held; reading the table may take half of that time. None
    /// means no limit.
    hold_limit: Option<Duration>,
}

impl<'a> Kernel<'a> {
    /// A run of a tool that changes the node, and dies with this process.
    ///
    /// # Errors
    /// [`Kind::MissingTool`](crate::error::Kind::MissingTool) if it is not installed.
    fn writer(&self, tool: Tool) -> Result<Command> {
        Ok(self.tools.command(tool)?.bound())
    }

    /// Returns a `Kernel` that uses the programs in `tools`, waits up to `lock_wait` for
    /// `/run/xtables.lock`, and may hold that lock for 2 s. An edit for which reading a legacy
    /// table takes more than half of that time, 1 s, fails without a write.
    pub fn new(tools: &'a Tools, lock_wait: Duration) -> Kernel<'a> {
        Kernel { tools, lock_wait, hold_limit: Some(HOLD_LIMIT) }
    }

    /// Removes the limit for holding the lock, for an edit that must not be left half done.
    #[must_use]
    pub fn without_limit(self) -> Kernel<'a> {
        Kernel { hold_limit: None, ..self }
    }

    /// Waits until no program that a killed process started for `edit` can still write: it holds the
    /// xtables lock for as long.
    ///
    /// # Errors
    /// [`Kind::Lock`](crate::error::Kind::Lock) when the xtables lock was not free in time.
    pub fn wait_for_earlier(&self, edit: &Edit) -> Result<()> {
        match &edit.target {
            Target::Table(table) if table.ruleset.backend == Backend::Legacy => {
                XtablesLock::acquire(Path::new(XTABLES_LOCK), self.lock_wait).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Applies one edit, all of it or nothing of it.
    ///
    /// # Errors
    /// [`Kind::LostRace`](crate::error::Kind::LostRace) when the objects are not as the edit has
    /// them: plan again. [`Kind::Busy`](crate::error::Kind::Busy) when the xtables lock would be
    /// held for too long: retry. [`Kind::Lock`](crate::error::Kind::Lock) when the xtables lock was
    /// not free in time. Any other error: the kernel refused, and nothing of this edit was applied.
    pub fn apply(&self, edit: &Edit) -> Result<Applied> {
        match &edit.target {
            Target::Table(table) => match table.ruleset.backend {
                Backend::Legacy => rules::legacy::apply(self, edit.direction, table),
                Backend::Nft => rules::nft::apply(self, edit.direction, table),
            },
            Target::NativeTable(native) => {
                rules::native::apply(edit.direction, native).map(|()| Applied::default())
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
