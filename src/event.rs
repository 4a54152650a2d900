//! The events that the core reports while it works, as data. The user interface turns them into
//! sentences.

use serde::{Deserialize, Serialize};

/// One event. The core emits events and never prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A run begins, or is resumed.
    Run {
        /// The identifier of the run.
        id: String,
        /// The verb that started it: `cleanup`, `migrate`, `check --fix`.
        verb: String,
    },
    /// A task begins.
    Started {
        /// Which task.
        task: Task,
    },
    /// The task that was started last is over.
    Finished {
        /// The same task as in [`Event::Started`].
        task: Task,
        /// How the task ended.
        outcome: Outcome,
    },
    /// A rehearsal verified a claim.
    Verified {
        /// What was verified.
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
    /// An event of a rehearsal: it happened in a sandbox, not on the node.
    Rehearsal {
        /// The event in the sandbox.
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
    /// Making a bundle for a report of a bug.
    Bundle,
    /// Probing the node's services before anything is changed.
    Probe,
    /// Probing again the services that answered before.
    ProbeAgain,
    /// Loading modules and setting sysctls.
    Prepare,
    /// Loading the bridge, which serves while kube-proxy changes its mode.
    LoadBridge,
    /// Deleting the bridge.
    DeleteBridge,
    /// Writing kube-proxy's configuration for another mode, and restarting kube-proxy.
    Switch {
        /// The new mode.
        mode: String,
    },
    /// Running the operator's command that upgrades kube-proxy.
    Upgrade {
        /// The operator's command, as it was configured.
        command: String,
    },
    /// Deleting kube-proxy's pod, and waiting until its DaemonSet has made another one.
    ReplacePod {
        /// The name of the pod.
        pod: String,
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
        /// Which edit, in words: `remove 1 rule in iptables-nft nat`.
        edit: String,
    },
    /// Deleting entries of conntrack that lead past their service.
    Settle,
    /// Verifying that the kernel holds what the run should have changed, and that all else is as
    /// before.
    VerifyKernel,
    /// Restoring kube-proxy's earlier configuration and mode.
    RestoreConfig {
        /// The earlier mode.
        mode: String,
    },
    /// Verifying that a run is undone.
    VerifyRollback,
    /// Running a hook of the playbook.
    Hook {
        /// The command of the hook.
        command: String,
    },
}

impl Task {
    /// Whether the outcome of this task is evidence of the node's state after the run.
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
        /// The number of rules on the node.
        rules: usize,
        /// The number of tables that hold these rules.
        tables: usize,
        /// The number of ipsets on the node.
        sets: usize,
    },
    /// The snapshot is written, and can be restored.
    Written {
        /// The identifier of the snapshot.
        snapshot: String,
        /// The store's directory.
        store: String,
    },
    /// The rehearsal succeeded.
    Rehearsed {
        /// The number of claims that the rehearsal verified.
        claims: usize,
    },
    /// A sandbox holds the node's state.
    Loaded {
        /// The number of rules in the sandbox, which are equivalent to the captured ones.
        rules: usize,
        /// Only in the rehearsal of a migration: the new mode. What kube-proxy writes over when it
        /// starts in this mode is left out of the captured rules.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        less: Option<String>,
    },
    /// A sandbox holds the node's state, except some objects.
    LoadedPartly {
        /// The number of objects that are left out, because this kernel does not support them.
        unsupported: usize,
    },
    /// The checks have run.
    Checked {
        /// The number of checks.
        checks: usize,
    },
    /// The services were probed.
    Probed {
        /// The number of probes that were answered.
        answered: usize,
        /// The number of all probes.
        all: usize,
    },
    /// The modules are loaded and the sysctls set that the new mode needs.
    Prepared {
        /// The number of modules that the new mode needs, all of them loaded now.
        modules: usize,
        /// The number of sysctls and files that were changed.
        settings: usize,
    },
    /// The bridge is loaded.
    BridgeLoaded {
        /// How many service ports it answers.
        frontends: usize,
    },
    /// The bridge is deleted.
    BridgeDeleted {
        /// How many connections it translated.
        translated: u64,
    },
    /// kube-proxy serves in the new mode already, so there is nothing to do.
    AlreadySwitched,
    /// kube-proxy was restarted with its new configuration.
    Switched {
        /// The configuration file that was changed.
        file: String,
        /// The controller that restarted kube-proxy.
        controller: String,
        /// The PID of the new kube-proxy process.
        pid: u32,
    },
    /// The operator's command succeeded.
    Succeeded,
    /// The operator has replaced kube-proxy, and the new one runs.
    Replaced,
    /// kube-proxy serves every service that was served before.
    Converged {
        /// The number of service ports that were served before.
        ports: usize,
    },
    /// The time for the task was up before it was done.
    TimedOut,
    /// No connection uses the virtual servers to remove any more.
    Drained,
    /// Some connections still use the virtual servers to remove.
    StillOpen {
        /// The number of these connections.
        connections: u64,
    },
    /// The edit was made in one transaction, and changed nothing else.
    Applied,
    /// The edit was made, and something changed that is not part of it.
    AppliedUnexpectedly,
    /// The edit was not made.
    NotApplied {
        /// The reason, for people.
        cause: String,
    },
    /// Entries of conntrack that led past their service were deleted.
    Settled {
        /// The number of deleted entries.
        deleted: usize,
    },
    /// Every rule that the run should not change is as before.
    Unchanged {
        /// The number of these rules.
        rules: usize,
    },
    /// Every foreign rule is as before.
    ForeignUnchanged,
    /// Foreign rules are missing.
    ForeignMissing {
        /// The number of missing rules.
        rules: usize,
    },
    /// kube-proxy serves in its earlier mode.
    ConfigRestored {
        /// The path of kube-proxy's configuration file.
        file: String,
    },
    /// kube-proxy does not serve in its earlier mode.
    NotServing,
    /// Every object that the run removed is restored.
    Restored,
    /// Every object that the run added is removed.
    AdditionsRemoved,
    /// Some objects that the run removed are not restored.
    NotRestored {
        /// The number of these objects.
        objects: usize,
    },
    /// The migration is undone.
    Undone,
    /// Something that the migration did could not be undone.
    NotUndone {
        /// The number of steps that could not be undone.
        failures: usize,
    },
}

/// What a rehearsal verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Claim {
    /// The sandbox holds the node's state.
    Loaded {
        /// [`Outcome::Loaded`] for all of the state, [`Outcome::LoadedPartly`] for a part of it.
        outcome: Outcome,
    },
    /// A packet arrives at its destination.
    Packet {
        /// When the packet was sent.
        when: Moment,
        /// The path of the packet, in words.
        path: String,
    },
    /// Every rule that was not to be changed is as before.
    Rules {
        /// When the rules were compared.
        when: Moment,
        /// The number of these rules.
        count: usize,
        /// Whether the rules are the same to the byte. If false, they are equivalent.
        identical: bool,
    },
    /// The bridge loads, and can be listed and deleted.
    Bridge {
        /// How many service ports it answers.
        frontends: usize,
    },
    /// The bridge leads packets where kube-proxy's own rules lead them, with the same source, and
    /// nowhere while these are there.
    Carried {
        /// How many kinds of connections, a client to a service port each, were compared.
        carried: usize,
        /// How many of them there are.
        all: usize,
        /// What could not be compared, and why.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        untried: Vec<String>,
    },
    /// An edit of kube-proxy's configuration can be made.
    Config {
        /// Which edit, in words.
        edit: String,
    },
}

/// The time of a rehearsal at which a claim was verified.
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
    /// Reports that a task begins.
    pub fn started(&self, task: &Task) {
        self.emit(Event::Started { task: task.clone() });
    }

    /// Reports that a task ended with `outcome`.
    pub fn finished(&self, task: &Task, outcome: Outcome) {
        self.emit(Event::Finished { task: task.clone(), outcome });
    }

    /// Reports that the run `id`, started by `verb`, begins or is resumed.
    pub fn run(&self, id: &str, verb: &str) {
        self.emit(Event::Run { id: id.into(), verb: verb.into() });
    }

    /// Reports that a rehearsal verified a claim.
    pub fn verified(&self, claim: Claim) {
        self.emit(Event::Verified { claim });
    }

    /// Reports something that the operator should know.
    pub fn note(&self, text: impl Into<String>) {
        self.emit(Event::Note { text: text.into() });
    }

    /// Reports something that may need the operator.
    pub fn warning(&self, text: impl Into<String>) {
        self.emit(Event::Warning { text: text.into() });
    }
}

/// Drops every event.
pub struct Silent;

impl Sink for Silent {
    fn emit(&self, _: Event) {}
}
