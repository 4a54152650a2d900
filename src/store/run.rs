//! A run: one attempt to change a node, from its first edit until it is finished or undone.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock;
use crate::runtime::NAME;
use crate::runtime::Netns;
use crate::runtime::process_start;
use crate::state::kube_proxy::Mode;

/// The copy of the program in the folder of a run that someone must confirm: what is pending depends
/// on nothing that an upgrade, an unmounted folder or Ansible takes away.
pub const BINARY: &str = NAME;

/// The version of `run.json`; a later one is refused.
pub(super) const VERSION: u32 = 1;

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Under way, or its runner died.
    Running,
    /// All stages done; undone at the deadline unless confirmed.
    Unconfirmed,
    /// Confirmed.
    Done,
    /// Undone, and proven to be.
    RolledBack,
    /// It failed before it changed anything.
    Failed,
    /// It could not be undone entirely: a person is needed.
    UndonePartly,
    /// The node was rebooted meanwhile, and its rules were made anew: nothing of it is left to
    /// undo or to go on with.
    Rebooted,
}

impl RunState {
    /// Whether it waits for `resume`, `rollback` or `confirm`.
    pub fn is_pending(self) -> bool {
        matches!(self, RunState::Running | RunState::Unconfirmed)
    }
}

/// `run.json`: what a run is and how far it has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The version of the format.
    pub v: u32,
    /// Its identifier: the name of its folder.
    pub id: String,
    /// The verb of the command line.
    pub verb: String,
    /// The snapshot that it goes back to.
    pub snapshot: String,
    /// When it began: `2026-11-21T20:15:02Z`.
    pub started: String,
    /// The network namespace that it changes.
    pub netns: Netns,
    /// The boot that it began in.
    pub boot_id: String,
    /// How far it has come.
    pub state: RunState,
    /// When it came to an end, as far as it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// The process that runs it.
    pub pid: u32,
    /// When that process started, in clock ticks since boot.
    pub pid_start: u64,
    /// The plan in short, as the plan's owner writes it.
    pub plan: Value,
    /// What a run has beside that someone must confirm; none if it is done when its work is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

/// From which mode of kube-proxy to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// The mode before the run.
    pub from: Mode,
    /// The mode after it.
    pub to: Mode,
}

/// What a run has beside that is undone unless someone confirms it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What it does to kube-proxy; none for a clean-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modes: Option<Modes>,
    /// The stage it is in, or came to last.
    pub stage: String,
    /// The time since boot at which it is undone, in nanoseconds; it moves with each stage.
    pub deadline_ns: u64,
    /// The snapshot that its clean-up goes back to, which is later than the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_snapshot: Option<String>,
    /// The process that undoes it when nobody else does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogProcess>,
}

/// The process that undoes a run when nobody else does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogProcess {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

impl WatchdogProcess {
    /// Whether it is alive.
    pub fn is_alive(self) -> bool {
        process_start(self.pid) == Some(self.start)
    }
}

impl Pending {
    /// What is left until it is undone; nothing once that is due.
    pub fn left(&self) -> Duration {
        Duration::from_nanos(self.deadline_ns).saturating_sub(clock::boottime())
    }

    /// A run at its first stage, with so much time for it.
    pub fn new(modes: Option<Modes>, stage: &str, time: Duration) -> Pending {
        let (stage, deadline_ns) = (stage.to_owned(), 0);
        let mut pending =
            Pending { modes, stage, deadline_ns, clean_snapshot: None, watchdog: None };
        pending.set_deadline(time);
        pending
    }

    /// Moves the deadline: so much time from now.
    pub fn set_deadline(&mut self, time: Duration) {
        let deadline = clock::boottime().saturating_add(time);
        self.deadline_ns = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
    }
}

impl Run {
    /// Whether the process that runs it is alive.
    pub fn runner_is_alive(&self) -> bool {
        self.boot_id == clock::boot_id() && process_start(self.pid) == Some(self.pid_start)
    }

    /// Makes this process the one that runs it.
    pub fn claim(&mut self) {
        self.pid = std::process::id();
        self.pid_start = process_start(self.pid).unwrap_or(0);
    }

    /// Whether it changed the namespace `here`, in the boot `boot_id`. After a reboot only the
    /// namespace of process 1 is there again.
    pub(super) fn concerns(&self, here: Netns, boot_id: &str) -> bool {
        if self.boot_id == boot_id {
            self.netns.inode == here.inode
        } else {
            self.netns.of_init && here.of_init
        }
    }
}
