//! A run: one attempt to change a node, from its first edit until it is finished or undone.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::runtime::NAME;
use crate::runtime::Netns;
use crate::runtime::process_start;
use crate::state::ipvs::Protocol;
use crate::state::kube_proxy::{ConfigSource, Controller, Mode};
use crate::state::stage::RunStage;

/// The copy of the program in the folder of a run that must be confirmed. A pending run must not
/// depend on the installed program: an upgrade, an unmount or Ansible may remove it.
pub const BINARY: &str = NAME;

/// The version of `run.json`; a later one is refused.
pub(super) const VERSION: u32 = 1;

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Under way, or its process died.
    Running,
    /// All stages are done. Undone at the deadline unless confirmed.
    Unconfirmed,
    /// Confirmed.
    Done,
    /// Undone, and verified.
    RolledBack,
    /// It failed before any change.
    Failed,
    /// It could not be undone entirely: the operator is needed.
    UndonePartly,
    /// The node was rebooted meanwhile, which replaced its rules: nothing is left to undo or to
    /// resume.
    Rebooted,
}

impl RunState {
    /// Whether it waits for `resume`, `rollback` or `confirm`.
    pub fn is_pending(self) -> bool {
        matches!(self, RunState::Running | RunState::Unconfirmed)
    }
}

/// `run.json`: a run and its state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The version of the format.
    pub v: u32,
    /// Its identifier, the name of its folder.
    pub id: String,
    /// Its kind, with options.
    pub kind: RunKind,
    /// The snapshot for its rollback.
    pub snapshot: String,
    /// When it began: `2026-11-21T20:15:02Z`.
    pub started: String,
    /// Its network namespace.
    pub netns: Netns,
    /// The boot in which it began.
    pub boot_id: String,
    /// Its state.
    pub state: RunState,
    /// When it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Its process.
    pub pid: u32,
    /// When its process started, in clock ticks since boot.
    pub pid_start: u64,
    /// Its deadline and watchdog; none for a run that needs no confirmation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

/// The kind of a run, with its options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RunKind {
    /// Remove leftovers.
    Cleanup(CleanupOptions),
    /// Apply remedies of checks.
    Fix {
        /// The ids of the checks.
        checks: Vec<String>,
    },
    /// Migrate kube-proxy to another mode.
    Migrate(Migration),
}

impl RunKind {
    /// The verb that removes leftovers.
    pub const CLEANUP: &'static str = "cleanup";
    /// The verb that applies remedies of checks.
    pub const FIX: &'static str = "check --fix";
    /// The verb that migrates kube-proxy.
    pub const MIGRATE: &'static str = "migrate";

    /// The verb of the command line.
    pub fn verb(&self) -> &'static str {
        match self {
            RunKind::Cleanup(_) => RunKind::CLEANUP,
            RunKind::Fix { .. } => RunKind::FIX,
            RunKind::Migrate(_) => RunKind::MIGRATE,
        }
    }
}

/// The options of a clean-up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanupOptions {
    /// Whose leftovers are removed; all if empty.
    pub owners: Vec<String>,
    /// Whether virtual servers without a backend are removed as well.
    pub black_holes: bool,
    /// The number of planned objects.
    pub objects: usize,
    /// How many seconds the run waits for confirmation; none if it needs no confirmation.
    pub confirm_within: Option<u64>,
}

/// The options of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// The modes before and after it.
    pub modes: Modes,
    /// The name of its playbook.
    pub playbook: String,
    /// How many seconds the run waits for confirmation; none if it needs no confirmation.
    pub confirm_within: Option<u64>,
    /// The probes that were answered before it.
    pub probes: Vec<Probe>,
    /// The controller before it, and the source of the configuration; none for an upgrade.
    pub kube_proxy: Option<ConfiguredBy>,
    /// The findings of its preflight that did not stop it.
    pub findings: Vec<RecordedFinding>,
    /// The checks that the operator ignored.
    pub ignored: Vec<String>,
}

/// The controller, and the source from which kube-proxy reads its mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfiguredBy {
    /// The controller.
    pub controller: Controller,
    /// The source of its configuration.
    pub source: ConfigSource,
}

/// One probe of a service: a connection or a datagram from this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Its target, for people: `DNS at 10.96.0.10:53/udp (kube-system/kube-dns:dns)`.
    pub what: String,
    /// Its address.
    pub address: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// A finding of a check, as stored with a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFinding {
    /// The check's id.
    pub id: String,
    /// The check's title.
    pub title: String,
    /// Its severity: `block`, `warn`, `info`.
    pub severity: String,
    /// The evidence for it.
    pub evidence: Vec<String>,
}

/// The modes before and after a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// The mode before the run.
    pub from: Mode,
    /// The mode after it.
    pub to: Mode,
}

/// The deadline and watchdog of a run that must be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The current or last stage.
    pub stage: RunStage,
    /// The deadline, in nanoseconds since boot; each stage moves it.
    pub deadline_ns: u64,
    /// The snapshot before its clean-up, which is later than the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_snapshot: Option<String>,
    /// Its watchdog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogProcess>,
}

/// The watchdog's process.
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
    /// The time until the deadline; zero after it.
    pub fn left(&self) -> Duration {
        Duration::from_nanos(self.deadline_ns).saturating_sub(clock::boottime())
    }

    /// A run at its first stage, with the time for it.
    pub fn new(stage: RunStage, time: Duration) -> Pending {
        let mut pending = Pending { stage, deadline_ns: 0, clean_snapshot: None, watchdog: None };
        pending.set_deadline(time);
        pending
    }

    /// Moves the deadline to `time` from now.
    pub fn set_deadline(&mut self, time: Duration) {
        let deadline = clock::boottime().saturating_add(time);
        self.deadline_ns = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
    }
}

impl Run {
    /// The verb of the command line.
    pub fn verb(&self) -> &'static str {
        self.kind.verb()
    }

    /// The options of a migration; none for another kind.
    pub fn migration(&self) -> Option<&Migration> {
        match &self.kind {
            RunKind::Migrate(migration) => Some(migration),
            RunKind::Cleanup(_) | RunKind::Fix { .. } => None,
        }
    }

    /// The modes before and after a migration; none for another kind.
    pub fn modes(&self) -> Option<Modes> {
        self.migration().map(|migration| migration.modes)
    }

    /// The snapshot before its clean-up: the run's own in a clean-up, a later one in a migration
    /// that has reached the stage `clean`.
    pub fn clean_snapshot(&self) -> Option<&str> {
        match &self.kind {
            RunKind::Cleanup(_) => Some(&self.snapshot),
            RunKind::Migrate(_) => self.pending.as_ref()?.clean_snapshot.as_deref(),
            RunKind::Fix { .. } => None,
        }
    }

    /// How long the run waits for confirmation; none if it needs no confirmation.
    pub fn confirm_within(&self) -> Option<Duration> {
        let seconds = match &self.kind {
            RunKind::Cleanup(cleanup) => cleanup.confirm_within,
            RunKind::Migrate(migration) => migration.confirm_within,
            RunKind::Fix { .. } => None,
        };
        seconds.map(Duration::from_secs)
    }

    /// Whether its process is alive.
    pub fn runner_is_alive(&self) -> bool {
        self.boot_id == clock::boot_id() && process_start(self.pid) == Some(self.pid_start)
    }

    /// Makes this process the run's process.
    pub fn claim(&mut self) {
        self.pid = std::process::id();
        self.pid_start = process_start(self.pid).unwrap_or(0);
    }

    /// Whether it belongs to the namespace `netns` of the boot `boot_id`. After a reboot only the
    /// namespace of process 1 exists again.
    pub(super) fn concerns(&self, netns: Netns, boot_id: &str) -> bool {
        if self.boot_id == boot_id {
            self.netns.inode == netns.inode
        } else {
            self.netns.of_init && netns.of_init
        }
    }
}
