//! A run: one attempt to change a node, from its first edit until it is finished or undone.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock;
use crate::runtime::NAME;
use crate::runtime::process_start;
use crate::runtime::{Caller, Netns};
use crate::state::ipvs::Protocol;
use crate::state::kube_proxy::{ConfigSource, Controller, Mode};
use crate::state::stage::RunStage;

/// The name of the copy of proxyshift in a run's folder. A run that must be confirmed has this
/// copy, because an upgrade, an unmount or Ansible may remove the installed program before the run
/// ends.
pub const BINARY: &str = NAME;

/// The name of the file in a run's folder that describes the run.
pub const RUN: &str = "run.json";

/// The version of the format of `run.json`. A later version is refused.
pub(super) const VERSION: u32 = 1;

/// How far a run has come, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// The run is under way, or its process died.
    Running,
    /// All stages are done, and the operator must confirm the run. Otherwise the run is undone at
    /// its deadline.
    Unconfirmed,
    /// The run is finished, and the operator confirmed it if that was required.
    Done,
    /// The run was undone, and the undo was verified.
    RolledBack,
    /// The run failed before it changed anything.
    Failed,
    /// The run could not be undone entirely, so the operator is needed.
    UndonePartly,
    /// The node was rebooted during the run. The reboot replaced the node's rules, so nothing is
    /// left to undo or to resume.
    Rebooted,
}

impl RunState {
    /// Whether the run waits for `resume`, `rollback` or `confirm`.
    pub fn is_pending(self) -> bool {
        matches!(self, RunState::Running | RunState::Unconfirmed)
    }
}

/// The content of `run.json`: what a run does, and how far it has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The version of the format of `run.json`.
    pub v: u32,
    /// The identifier of the run, which is also the name of its folder.
    pub id: String,
    /// The run's number in the store, from 1. Runs and snapshots are in the order of their numbers;
    /// what has none, or 0, is older than what has one.
    #[serde(default)]
    pub seq: u64,
    /// What the run does, with its options.
    pub kind: RunKind,
    /// The identifier of the snapshot that a rollback goes back to.
    pub snapshot: String,
    /// When the run began: `2026-11-21T20:15:02Z`.
    pub started: String,
    /// Who began the run, from where and with which words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Caller>,
    /// The network namespace that the run changes.
    pub netns: Netns,
    /// The kernel's identifier of the boot in which the run began.
    pub boot_id: String,
    /// How far the run has come, or how it ended.
    pub state: RunState,
    /// When the run ended; none while it is pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// The PID of the process that executes the run.
    pub pid: u32,
    /// When that process started, in clock ticks since boot. The PID alone does not identify the
    /// process, because the kernel may give it to another process later.
    pub pid_start: u64,
    /// The run's deadline and watchdog; none for a run that needs no confirmation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// The last line of the journal when `run.json` was written, which the journal must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalEnd>,
    /// How often `run.json` was written. Of two copies, that with the larger number is the newer.
    #[serde(default)]
    pub writes: u64,
}

/// Up to where a journal is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEnd {
    /// The offset in the file at which the last known line ends.
    pub bytes: u64,
    /// The checksum of that line, and so of all lines before it.
    pub sum: String,
}

/// What a run does, with its options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RunKind {
    /// The run removes leftovers (`cleanup`).
    Cleanup(CleanupOptions),
    /// The run applies the remedies of checks (`check --fix`).
    Fix {
        /// The ids of the checks whose remedies are applied.
        checks: Vec<String>,
    },
    /// The run migrates kube-proxy to another mode (`migrate`).
    Migrate(Box<Migration>),
}

impl RunKind {
    /// The verb of a run that removes leftovers.
    pub const CLEANUP: &'static str = "cleanup";
    /// The verb of a run that applies the remedies of checks.
    pub const FIX: &'static str = "check --fix";
    /// The verb of a run that migrates kube-proxy.
    pub const MIGRATE: &'static str = "migrate";

    /// The verb that starts this kind of run on the command line.
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
    /// The owners whose leftovers are removed; empty means all owners.
    pub owners: Vec<String>,
    /// Whether black holes are removed as well: real servers at weight 0 that still get packets of
    /// earlier UDP clients.
    pub black_holes: bool,
    /// The number of objects that the plan removes.
    pub objects: usize,
    /// How many seconds the run waits for confirmation; none if it needs no confirmation.
    pub confirm_within: Option<u64>,
}

/// The options of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// The modes before and after the migration.
    pub modes: Modes,
    /// The name of the migration's playbook: `iptables-to-ipvs`.
    pub playbook: String,
    /// How many seconds the run waits for confirmation; none if it needs no confirmation.
    pub confirm_within: Option<u64>,
    /// The probes that services answered before the migration.
    pub probes: Vec<Probe>,
    /// kube-proxy's controller before the migration, and the source of its configuration; none for
    /// an upgrade.
    pub kube_proxy: Option<ConfiguredBy>,
    /// The findings of the stage `preflight` that did not stop the migration.
    pub findings: Vec<RecordedFinding>,
    /// The ids of the checks that the operator chose to ignore.
    pub ignored: Vec<String>,
}

/// kube-proxy's controller, and the source from which kube-proxy reads its mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfiguredBy {
    /// What starts and stops kube-proxy.
    pub controller: Controller,
    /// The file that holds kube-proxy's mode.
    pub source: ConfigSource,
}

/// One probe of a service: a connection or a datagram from this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is probed, in a form for people: `DNS at 10.96.0.10:53/udp (kube-system/kube-dns:dns)`.
    pub what: String,
    /// The address and port to which the probe is sent.
    pub address: SocketAddr,
    /// The transport protocol of the probe.
    pub protocol: Protocol,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// A finding of a check, in the form that is stored with a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFinding {
    /// The id of the check: `ipvs.expiry`.
    pub id: String,
    /// The title of the check.
    pub title: String,
    /// The severity of the finding: `block`, `warn`, `info`.
    pub severity: String,
    /// The lines of evidence for the finding.
    pub evidence: Vec<String>,
}

/// The modes before and after a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// The mode before the migration.
    pub from: Mode,
    /// The mode after the migration.
    pub to: Mode,
}

/// The deadline and watchdog of a run that must be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The stage that the run is in, or that it was in last.
    pub stage: RunStage,
    /// The deadline in nanoseconds since boot. Each stage moves it.
    pub deadline_ns: u64,
    /// The identifier of the snapshot that a migration takes before its stage `clean`. This
    /// snapshot is later than [`Run::snapshot`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clean_snapshot: Option<String>,
    /// The process of the watchdog; none before it is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogProcess>,
}

/// The process of a run's watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogProcess {
    /// The watchdog's PID.
    pub pid: u32,
    /// When the watchdog started, in clock ticks since boot. The PID alone does not identify the
    /// watchdog, because the kernel may give it to another process later.
    pub start: u64,
}

impl WatchdogProcess {
    /// Whether the watchdog still runs.
    pub fn is_alive(self) -> bool {
        process_start(self.pid) == Some(self.start)
    }
}

impl Pending {
    /// The time until the deadline; zero if it has passed.
    pub fn left(&self) -> Duration {
        Duration::from_nanos(self.deadline_ns).saturating_sub(clock::boottime())
    }

    /// The deadline and watchdog of a run in `stage`: the deadline is `time` from now, and no
    /// watchdog is started yet.
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
    /// The verb that starts this run on the command line.
    pub fn verb(&self) -> &'static str {
        self.kind.verb()
    }

    /// The options of a migration; none if the run is no migration.
    pub fn migration(&self) -> Option<&Migration> {
        match &self.kind {
            RunKind::Migrate(migration) => Some(migration),
            RunKind::Cleanup(_) | RunKind::Fix { .. } => None,
        }
    }

    /// The modes before and after a migration; none if the run is no migration.
    pub fn modes(&self) -> Option<Modes> {
        self.migration().map(|migration| migration.modes)
    }

    /// The identifier of the snapshot that was taken before leftovers were removed. For a clean-up
    /// it is the run's own snapshot; for a migration that has reached the stage `clean`, a later
    /// one. None for other runs.
    pub fn clean_snapshot(&self) -> Option<&str> {
        match &self.kind {
            RunKind::Cleanup(_) => Some(&self.snapshot),
            RunKind::Migrate(_) => self.pending.as_ref()?.clean_snapshot.as_deref(),
            RunKind::Fix { .. } => None,
        }
    }

    /// The identifiers of the snapshots that an undo of the run needs.
    pub fn snapshots(&self) -> BTreeSet<&str> {
        [Some(self.snapshot.as_str()), self.clean_snapshot()].into_iter().flatten().collect()
    }

    /// How long the run waits for the operator's confirmation; none if it needs no confirmation.
    pub fn confirm_within(&self) -> Option<Duration> {
        let seconds = match &self.kind {
            RunKind::Cleanup(cleanup) => cleanup.confirm_within,
            RunKind::Migrate(migration) => migration.confirm_within,
            RunKind::Fix { .. } => None,
        };
        seconds.map(Duration::from_secs)
    }

    /// Whether the process that executes the run is alive.
    pub fn runner_is_alive(&self) -> bool {
        self.boot_id == clock::boot_id() && process_start(self.pid) == Some(self.pid_start)
    }

    /// Whether the run must be undone now: its deadline has passed, or its runner is dead. The
    /// answer holds only for who has the node's lock; everybody else may see it change.
    pub fn is_due(&self) -> bool {
        let late = self.pending.as_ref().is_some_and(|pending| pending.left().is_zero());
        let died = self.state == RunState::Running && !self.runner_is_alive();
        self.state.is_pending() && (late || died)
    }

    /// Records that the run is in `state`, and when it ended.
    pub(super) fn end(&mut self, state: RunState) {
        self.state = state;
        self.ended = (!state.is_pending()).then(clock::now);
    }

    /// Records this process as the one that executes the run.
    pub fn claim(&mut self) {
        self.pid = std::process::id();
        self.pid_start = process_start(self.pid).unwrap_or(0);
    }

    /// Whether the run belongs to the network namespace `netns` of the boot `boot_id`. A run of an
    /// earlier boot belongs only to the namespace of process 1, because no other namespace exists
    /// again after a reboot.
    pub(super) fn concerns(&self, netns: Netns, boot_id: &str) -> bool {
        if self.boot_id == boot_id {
            self.netns.inode == netns.inode
        } else {
            self.netns.of_init && netns.of_init
        }
    }
}
