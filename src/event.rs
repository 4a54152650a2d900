//! What the core reports while it works, as data. The user interface has the sentences.

use serde::{Deserialize, Serialize};

/// One event. The core emits events and never prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A run begins, or is resumed.
    Run {
        /// The run.
        id: String,
        /// Its verb: `cleanup`, `migrate`, `check --fix`.
        verb: String,
    },
    /// A task begins.
    Started {
        /// The task.
        task: Task,
    },
    /// The last started task is over.
    Finished {
        /// The task, the same as when it was started.
        task: Task,
        /// Its outcome.
        outcome: Outcome,
    },
    /// A claim was verified.
    Verified {
        /// The claim.
        claim: Claim,
    },
    /// Information for the operator; nothing failed.
    Note {
        /// A sentence for people.
        text: String,
    },
    /// A warning that may need the operator; the work continues.
    Warning {
        /// A sentence for people.
        text: String,
    },
    /// An event of a rehearsal: it happened in the sandbox, not on the node.
    Rehearsal {
        /// The event.
        inner: Box<Event>,
    },
}

/// A piece of work that takes time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Task {
    /// Capturing the node.
    Capture,
    /// Capturing the node until two captures in a row are equivalent.
    CaptureStable,
    /// Writing the snapshot and restoring it in a sandbox.
    Snapshot,
    /// Rehearsing in a sandbox.
    Rehearse,
    /// Loading a node's state into a sandbox.
    Load,
    /// Running the checks.
    Check,
    /// Probing the node's services before anything is changed.
    Probe,
    /// Probing again the services that answered before.
    ProbeAgain,
    /// Loading modules and setting sysctls.
    Prepare,
    /// Giving kube-proxy another mode and restarting it.
    Switch {
        /// The mode.
        mode: String,
    },
    /// Running the operator's command that upgrades kube-proxy.
    Upgrade {
        /// The command.
        command: String,
    },
    /// Waiting until the operator has replaced kube-proxy.
    AwaitUpgrade,
    /// Waiting until kube-proxy serves.
    Converge {
        /// The mode in which it is to serve.
        mode: String,
    },
    /// Waiting until no connection uses the virtual servers to remove.
    Drain,
    /// Making one edit.
    Edit {
        /// The edit, in words.
        edit: String,
    },
    /// Deleting stale UDP entries of conntrack.
    Settle,
    /// Verifying the run's changes, and everything else, against the kernel.
    VerifyKernel,
    /// Restoring kube-proxy's earlier configuration and mode.
    RestoreConfig {
        /// The mode.
        mode: String,
    },
    /// Verifying that a run is undone.
    VerifyRollback,
    /// Running a hook of the playbook.
    Hook {
        /// The command.
        command: String,
    },
}

impl Task {
    /// Whether the outcome is evidence of the node's state after the run.
    pub fn verifies(&self) -> bool {
        matches!(self, Task::VerifyKernel | Task::VerifyRollback | Task::Probe | Task::ProbeAgain)
    }
}

/// The outcome of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Outcome {
    /// The node is captured.
    Captured {
        /// Its rules.
        rules: usize,
        /// The tables that hold them.
        tables: usize,
        /// Its ipsets.
        sets: usize,
    },
    /// The snapshot is written, and can be restored.
    Written {
        /// Its identifier.
        snapshot: String,
        /// The store's directory.
        store: String,
    },
    /// The rehearsal succeeded.
    Rehearsed {
        /// The claims that it verified.
        claims: usize,
    },
    /// A sandbox holds the node's state.
    Loaded {
        /// Its rules, equivalent to the captured ones.
        rules: usize,
        /// The mode whose writes are removed from the captured rules, in a rehearsal of a
        /// migration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        less: Option<String>,
    },
    /// A sandbox holds the node's state but for some objects.
    LoadedPartly {
        /// The objects that this kernel does not support.
        unsupported: usize,
    },
    /// The checks have run.
    Checked {
        /// How many.
        checks: usize,
    },
    /// The services were probed.
    Probed {
        /// The probes that were answered.
        answered: usize,
        /// All probes.
        all: usize,
    },
    /// The kernel is prepared.
    Prepared {
        /// Modules that are loaded.
        modules: usize,
        /// Sysctls and files that were changed.
        settings: usize,
    },
    /// kube-proxy serves in this mode already.
    AlreadySwitched,
    /// kube-proxy was restarted with its new configuration.
    Switched {
        /// The file that was edited.
        file: String,
        /// The controller that restarted kube-proxy.
        controller: String,
        /// The new process.
        pid: u32,
    },
    /// The operator's command succeeded.
    Succeeded,
    /// Another kube-proxy runs.
    Replaced,
    /// kube-proxy serves every service that was served before.
    Converged {
        /// The service ports that were served before.
        ports: usize,
    },
    /// The time is up.
    TimedOut,
    /// No connection is open.
    Drained,
    /// Some connections are still open.
    StillOpen {
        /// How many.
        connections: u64,
    },
    /// The edit was made in one transaction, and changed nothing else.
    Applied,
    /// The edit was made, and something else changed with it.
    AppliedUnexpectedly,
    /// The edit was not made.
    NotApplied {
        /// Evidence, for people.
        cause: String,
    },
    /// Stale entries were deleted.
    Settled {
        /// How many.
        deleted: usize,
    },
    /// Every other rule is as before.
    Unchanged {
        /// How many there are.
        rules: usize,
    },
    /// Every foreign rule is as before.
    ForeignUnchanged,
    /// Foreign rules are missing.
    ForeignMissing {
        /// How many.
        rules: usize,
    },
    /// kube-proxy serves in its earlier mode.
    ConfigRestored {
        /// The file of its configuration.
        file: String,
    },
    /// kube-proxy does not serve in its earlier mode.
    NotServing,
    /// Every object is restored.
    Restored,
    /// Every object that the run added is removed.
    AdditionsRemoved,
    /// Objects are not restored.
    NotRestored {
        /// How many.
        objects: usize,
    },
    /// The migration is undone.
    Undone,
    /// Part of the migration is not undone.
    NotUndone {
        /// How many failures.
        failures: usize,
    },
}

/// What a rehearsal verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Claim {
    /// The sandbox holds the node's state.
    Loaded {
        /// How much of it.
        outcome: Outcome,
    },
    /// A packet arrives at its destination.
    Packet {
        /// When it was sent.
        when: Moment,
        /// Its path, in words.
        path: String,
    },
    /// Every other rule is as before.
    Rules {
        /// When they were compared.
        when: Moment,
        /// How many there are.
        count: usize,
        /// Whether they are the same to the byte; else they are equivalent.
        identical: bool,
    },
    /// An edit of kube-proxy's configuration can be made.
    Config {
        /// The edit, in words.
        edit: String,
    },
}

/// A moment of a rehearsal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// Before anything was changed.
    Before,
    /// After the clean-up.
    AfterCleanup,
    /// After the remedies of checks.
    AfterFix,
    /// After the rollback.
    AfterRollback,
}

/// The receiver of events.
pub trait Sink: Sync {
    /// Takes one event. Must not fail, nor block for long.
    fn emit(&self, event: Event);
}

impl dyn Sink + '_ {
    /// A task begins.
    pub fn started(&self, task: &Task) {
        self.emit(Event::Started { task: task.clone() });
    }

    /// The task ended with `outcome`.
    pub fn finished(&self, task: &Task, outcome: Outcome) {
        self.emit(Event::Finished { task: task.clone(), outcome });
    }

    /// The run `id` of `verb` begins, or is resumed.
    pub fn run(&self, id: &str, verb: &str) {
        self.emit(Event::Run { id: id.into(), verb: verb.into() });
    }

    /// A claim was verified.
    pub fn verified(&self, claim: Claim) {
        self.emit(Event::Verified { claim });
    }

    /// Something the operator should know.
    pub fn note(&self, text: impl Into<String>) {
        self.emit(Event::Note { text: text.into() });
    }

    /// Something that may need the operator.
    pub fn warning(&self, text: impl Into<String>) {
        self.emit(Event::Warning { text: text.into() });
    }
}

/// Drops every event.
pub struct Silent;

impl Sink for Silent {
    fn emit(&self, _: Event) {}
}
