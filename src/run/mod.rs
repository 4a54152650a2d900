//! Runs: one engine, one file a stage, and what undoes them.

mod apply_edits;
pub mod boot_unit;
pub mod cleanup;
pub mod confirm;
mod controller;
mod engine;
pub mod event_log;
mod execution;
pub mod fix;
mod hooks;
pub mod migrate;
mod payload;
pub mod preview;
mod probes;
pub mod report;
pub mod resume;
pub mod rollback;
pub mod sandbox;
pub mod snapshot;
mod stage;
pub mod stored;
mod undo;
mod undo_edits;
mod wait;
pub mod watchdog;
mod writers;

use std::path::Path;
use std::time::Duration;

use crate::apply::Kernel;
use crate::error::Result;
use crate::event::Sink;
use crate::node::locks::{LOCK_DIR, NodeLock};
use crate::node::observe::observe_tolerant;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::state::NodeState;
use crate::store::Store;

pub use engine::RunResult;

/// What every run needs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The programs.
    pub tools: &'a Tools,
    /// The store.
    pub store: &'a Store,
    /// Who owns what.
    pub catalogue: &'a Catalogue,
    /// Where events go.
    pub sink: &'a dyn Sink,
    /// How long to wait for the node's lock and for the xtables lock.
    pub lock_wait: Duration,
}

impl<'a> Context<'a> {
    /// The code that changes the kernel.
    pub fn kernel(&self) -> Kernel<'a> {
        Kernel::new(self.tools, self.lock_wait)
    }

    /// Observes the node's objects, even while others write to them.
    ///
    /// # Errors
    /// As [`observe_tolerant`].
    fn observe(&self) -> Result<NodeState> {
        observe_tolerant(self.tools, self.sink)
    }

    /// The right to change this node, for `verb`.
    ///
    /// # Errors
    /// [`Kind::Lock`](crate::error::Kind::Lock), naming who holds it.
    pub fn lock(&self, verb: &str) -> Result<NodeLock> {
        NodeLock::acquire(Path::new(LOCK_DIR), verb, self.lock_wait)
    }
}
