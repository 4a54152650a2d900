//! What the stages of a run share, both while the run goes forward and while it is undone.

use crate::error::{Error, Kind, Result};
use crate::kube_proxy::services::Services;
use crate::plan::change::Edit;
use crate::run::Context;
use crate::run::apply_edits::apply_and_verify;
use crate::run::bridge::keeper::Follower;
use crate::run::payload::Replay;
use crate::run::stored::{load_baseline, load_state};
use crate::state::NodeState;
use crate::state::object::ObjectId;
use crate::state::stage::RunStage;
use crate::store::journal::Journal;
use crate::store::run::{Migration, Run};

/// Edits that were planned before the run's stages began, or by the stage that applies them.
pub(super) struct Planned {
    /// The node state before the edits, or the part of it that they leave unchanged.
    pub(super) base: NodeState,
    /// The edits, in the order in which they are applied.
    pub(super) edits: Vec<Edit>,
}

/// A run that is being executed, stage by stage.
pub(super) struct Execution<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) run: Run,
    pub(super) journal: Journal,
    /// The node state before the run; none until a stage asks for it.
    base: Option<NodeState>,
    /// The edits of a run that consists of edits alone, until its stage takes them.
    pub(super) planned: Option<Planned>,
    /// The services of the old mode right before the switch. They may differ from those before the
    /// run, because endpoints come and go.
    pub(super) later: Option<Services>,
    /// What follows the API server for the bridge.
    pub(super) follower: Follower,
    /// How many objects the run has changed.
    pub(super) objects: usize,
    /// Foreign changes that were made meanwhile and are kept, one sentence each.
    pub(super) foreign: Vec<String>,
}

impl<'a> Execution<'a> {
    /// The execution of a run that begins, or is resumed.
    pub(super) fn new(
        context: &'a Context<'a>,
        run: Run,
        journal: Journal,
        base: Option<NodeState>,
    ) -> Execution<'a> {
        Execution {
            context,
            run,
            journal,
            base,
            planned: None,
            later: None,
            follower: Follower::default(),
            objects: 0,
            foreign: Vec::new(),
        }
    }

    /// The node state before the run.
    ///
    /// # Errors
    /// When the state must be read from the snapshot, and that fails.
    pub(super) fn base(&mut self) -> Result<&NodeState> {
        let base = self.take_base()?;
        Ok(self.base.insert(base))
    }

    /// As [`base`](Self::base), but moved out of the execution, at the end of the run.
    ///
    /// # Errors
    /// As [`base`](Self::base).
    pub(super) fn take_base(&mut self) -> Result<NodeState> {
        match self.base.take() {
            Some(base) => Ok(base),
            None => load_baseline(self.context, &self.run),
        }
    }

    /// Gives back what [`take_base`](Self::take_base) has moved out.
    pub(super) fn keep_base(&mut self, base: NodeState) {
        self.base = Some(base);
    }

    /// The node state that an undo of the clean-up restores; none before the clean-up has begun.
    ///
    /// # Errors
    /// When the snapshot cannot be read.
    pub(super) fn clean_base(&self) -> Result<Option<NodeState>> {
        match self.run.clean_snapshot() {
            None => Ok(None),
            Some(id) if id == self.run.snapshot => load_baseline(self.context, &self.run).map(Some),
            Some(id) => load_state(self.context, &self.run, id).map(Some),
        }
    }

    /// The options of this run, which must be a migration.
    ///
    /// # Errors
    /// [`Kind::Unexpected`] when this run is no migration.
    pub(super) fn migration(&self) -> Result<&Migration> {
        self.run.migration().ok_or_else(|| {
            Error::new(Kind::Unexpected, format!("run {}", self.run.id), "is no migration")
        })
    }

    /// Applies and verifies the edits of a stage, and counts the changed objects. After a lost
    /// race, `plan_again` plans what is still to do.
    ///
    /// # Errors
    /// As [`apply_and_verify`].
    pub(super) fn apply(
        &mut self,
        stage: RunStage,
        planned: Planned,
        plan_again: &dyn Fn() -> Result<Vec<Edit>>,
    ) -> Result<()> {
        let Execution { context, run, journal, .. } = self;
        let Planned { base, edits } = planned;
        let applied = apply_and_verify(context, run, journal, stage, &base, edits, plan_again)?;
        self.objects += applied.objects;
        self.foreign.extend(applied.foreign);
        Ok(())
    }
}

/// A run that is being undone. Each stage undoes its own part. A failure is collected rather than
/// returned, so that the other stages are undone all the same.
pub(super) struct UndoContext<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) run: &'a Run,
    pub(super) journal: &'a mut Journal,
    /// The node state before the run.
    pub(super) base: &'a NodeState,
    /// The changes of the run, read from its journal.
    pub(super) replay: Replay,
    /// Whether kube-proxy serves in its old mode; false after that failed.
    pub(super) serves: bool,
    /// What follows the API server for the bridge.
    pub(super) follower: Follower,
    /// How many objects, files and sysctls were restored.
    pub(super) restored: usize,
    /// How many objects that the run had added were removed.
    pub(super) removed: usize,
    /// Objects that somebody else had already restored.
    pub(super) already_restored: Vec<ObjectId>,
    /// What could not be undone, one sentence each.
    pub(super) failures: Vec<String>,
}

impl UndoContext<'_> {
    /// Adds a failure.
    pub(super) fn fail(&mut self, error: &Error) {
        self.failures.push(error.to_string());
    }
}
