//! Runs: one engine for all of them, one file for each stage, and what undoes them.

mod announce;
mod apply_edits;
mod boot_unit;
mod bridge;
pub mod caller;
pub mod cleanup;
pub mod cluster;
pub mod confirm;
mod controller;
mod engine;
pub mod event_log;
mod execution;
pub mod fix;
mod hooks;
mod late_runner;
pub mod migrate;
mod payload;
pub mod preview;
mod probes;
mod record_end;
pub mod report;
pub mod resume;
pub mod rollback;
pub mod sandbox;
pub mod snapshot;
mod stage;
pub mod stored;
mod undo;
mod undo_compare;
mod undo_edits;
mod wait;
pub mod watchdog;
mod writers;

use std::path::Path;
use std::time::Duration;

use crate::apply::Kernel;
use crate::error::Result;
use crate::event::Sink;
use crate::node::capture::Extent;
use crate::node::locks::{LOCK_DIR, NodeLock};
use crate::node::observe::observe_tolerant;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::state::NodeState;
use crate::store::Store;

pub use engine::RunResult;

/// What every run needs: programs, store, catalogue, event sink.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The paths of the programs that were found, such as `iptables-nft-save`.
    pub tools: &'a Tools,
    /// The folder on disk that holds snapshots and runs.
    pub store: &'a Store,
    /// The catalogue that says which component owns which objects.
    pub catalogue: &'a Catalogue,
    /// Where events of the run are sent.
    pub sink: &'a dyn Sink,
    /// How long to wait for the node's lock and for the xtables lock.
    pub lock_wait: Duration,
}

impl<'a> Context<'a> {
    /// The code that changes the kernel, with the tools and the lock timeout of this context.
    pub fn kernel(&self) -> Kernel<'a> {
        Kernel::new(self.tools, self.lock_wait)
    }

    /// Observes the node's objects, even while others write to them. The state does not show which
    /// owner is alive.
    ///
    /// # Errors
    /// As [`observe_tolerant`].
    fn observe_objects(&self) -> Result<NodeState> {
        observe_tolerant(self.tools, Extent::Objects, self.sink)
    }

    /// As [`Context::observe_objects`], but takes from `base` all that shows which owner is alive.
    ///
    /// # Errors
    /// As [`observe_tolerant`].
    fn observe_with_owners_of(&self, base: &NodeState) -> Result<NodeState> {
        Ok(self.observe_objects()?.with_owners_of(base))
    }

    /// Observes the node's objects, and the processes and configuration of their owners.
    ///
    /// # Errors
    /// As [`observe_tolerant`].
    fn observe_owners(&self) -> Result<NodeState> {
        observe_tolerant(self.tools, Extent::Owners, self.sink)
    }

    /// Takes the node's lock, which gives the right to change the node, in the name of `verb`.
    ///
    /// # Errors
    /// [`Kind::Lock`](crate::error::Kind::Lock), naming the process that holds the lock.
    pub fn lock(&self, verb: &str) -> Result<NodeLock> {
        NodeLock::acquire(Path::new(LOCK_DIR), verb, self.lock_wait)
    }
}

/// How many objects a message names.
const NAMED: usize = 5;

/// The first of some objects, for a message: `a, b, c, d, e, and 2 more`.
fn named(all: &[impl ToString]) -> String {
    let first: Vec<String> = all.iter().take(NAMED).map(ToString::to_string).collect();
    let more = match all.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    first.join(", ") + &more
}
