//! A run under way, and one that is undone: what each stage may use.

use crate::error::{Error, Kind, Result};
use crate::kube_proxy::services::Services;
use crate::node::observe::observe_tolerant;
use crate::plan::change::Edit;
use crate::run::Context;
use crate::run::apply_edits::apply_and_verify;
use crate::run::payload::Replay;
use crate::run::stored::{load_baseline, load_state};
use crate::state::NodeState;
use crate::state::object::ObjectId;
use crate::state::stage::RunStage;
use crate::store::journal::Journal;
use crate::store::run::{Migration, Run};

/// Edits that were planned before the run began.
pub(super) struct Planned {
    /// The node before them, or what they leave of it.
    pub(super) base: NodeState,
    /// The edits.
    pub(super) edits: Vec<Edit>,
}

/// A run under way.
pub(super) struct Execution<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) run: Run,
    pub(super) journal: Journal,
    /// The node before the run, once a stage has asked for it.
    base: Option<NodeState>,
    /// The edits of a run that is nothing but edits.
    pub(super) planned: Option<Planned>,
    /// What the old mode served right before the switch: endpoints come and go.
    pub(super) later: Option<Services>,
    /// How many objects were changed.
    pub(super) objects: usize,
    /// Foreign changes meanwhile; kept.
    pub(super) foreign: Vec<String>,
}

impl<'a> Execution<'a> {
    /// A run that begins, or is resumed.
    pub(super) fn new(context: &'a Context<'a>, run: Run, journal: Journal) -> Execution<'a> {
        Execution {
            context,
            run,
            journal,
            base: None,
            planned: None,
            later: None,
            objects: 0,
            foreign: Vec::new(),
        }
    }

    /// The node before the run.
    ///
    /// # Errors
    /// When it must be read from the snapshot, and cannot be.
    pub(super) fn base(&mut self) -> Result<&NodeState> {
        if self.base.is_none() {
            self.base = Some(load_baseline(self.context, &self.run)?);
        }
        self.base.as_ref().ok_or_else(|| no_base(&self.run))
    }

    /// As [`base`](Self::base), by value, when the run needs it no more.
    ///
    /// # Errors
    /// As [`base`](Self::base).
    pub(super) fn take_base(&mut self) -> Result<NodeState> {
        match self.base.take() {
            Some(base) => Ok(base),
            None => load_baseline(self.context, &self.run),
        }
    }

    /// The node that the clean-up of this run is undone to, once that has begun.
    ///
    /// # Errors
    /// When the snapshot cannot be read.
    pub(super) fn clean_base(&self) -> Result<Option<NodeState>> {
        self.run.clean_snapshot().map(|id| load_state(self.context, id)).transpose()
    }

    /// The options of the migration that this is.
    ///
    /// # Errors
    /// [`Kind::Unexpected`] for another run.
    pub(super) fn migration(&self) -> Result<&Migration> {
        self.run.migration().ok_or_else(|| {
            Error::new(Kind::Unexpected, format!("run {}", self.run.id), "is no migration")
        })
    }

    /// Observes the node, whoever else writes to it.
    ///
    /// # Errors
    /// What the capture fails with.
    pub(super) fn observe(&self) -> Result<NodeState> {
        observe_tolerant(self.context.tools, self.context.sink)
    }

    /// Applies and verifies the edits of a stage, and counts them. After a lost race `plan_again`
    /// plans what is still to do.
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

fn no_base(run: &Run) -> Error {
    Error::new(Kind::Unexpected, format!("run {}", run.id), "has no baseline")
}

/// A run that is undone. Each stage undoes its own part; what fails is collected, so that the rest
/// is undone all the same.
pub(super) struct UndoContext<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) run: &'a Run,
    pub(super) journal: &'a mut Journal,
    /// The node before the run.
    pub(super) base: &'a NodeState,
    /// What the journal says of the run.
    pub(super) replay: Replay,
    /// Whether kube-proxy serves in the mode that it had before.
    pub(super) serves: bool,
    /// Objects, files and sysctls that were restored.
    pub(super) restored: usize,
    /// Objects that the run had added, and that were removed.
    pub(super) removed: usize,
    /// Objects that somebody else had restored before.
    pub(super) already_restored: Vec<ObjectId>,
    /// What could not be undone.
    pub(super) failures: Vec<String>,
}

impl UndoContext<'_> {
    /// Observes the node, whoever else writes to it.
    ///
    /// # Errors
    /// What the capture fails with.
    pub(super) fn observe(&self) -> Result<NodeState> {
        observe_tolerant(self.context.tools, self.context.sink)
    }

    /// Adds a failure.
    pub(super) fn fail(&mut self, error: &Error) {
        self.failures.push(error.to_string());
    }
}
