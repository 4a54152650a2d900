//! The stage `rehearse`: the edits of a run, applied and undone in a private namespace.

use crate::error::Result;
use crate::event::{self, Event, Outcome, Sink};
use crate::plan::change::Edit;
use crate::plan::playbook::NoOptions;
use crate::run::Context;
use crate::run::execution::Execution;
use crate::run::preview::{Previewed, Previewer};
use crate::run::sandbox::{self, SandboxTask};
use crate::run::stage::{Stage, Undo};
use crate::state::kube_proxy::Mode;
use crate::state::stage::{RunStage, StageName};
use crate::store::snapshots::Snapshot;

/// What undoes the stage.
pub(super) const UNDO: Option<Undo> = None;

/// The stage with these options.
pub(super) fn stage(_: NoOptions) -> Box<dyn Stage> {
    Box::new(RehearseCleanup)
}

/// Rehearses the clean-up.
pub(in crate::run) struct RehearseCleanup;

impl Stage for RehearseCleanup {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Rehearse)
    }

    fn preview(&self, previewer: &Previewer<'_>) -> Previewed {
        Previewed::line(format!(
            "tries the clean-up and its undoing on a private copy; `proxyshift rehearse --to {}` \
             does it now",
            previewer.to()
        ))
    }

    fn run(&self, _: &mut Execution<'_>) -> Result<()> {
        // Done before the run has a journal.
        Ok(())
    }
}

/// The edits that are rehearsed.
pub(in crate::run) enum Rehearsed<'a> {
    /// The removal of leftovers.
    CleanUp,
    /// These edits.
    Edits(&'a [Edit]),
    /// The removal of leftovers after kube-proxy has gone to that mode.
    Leaving(Mode),
}

/// Applies and undoes the edits in a private namespace that holds the state of `snapshot`.
///
/// # Errors
/// [`Kind::Rehearsal`](crate::error::Kind::Rehearsal), naming what failed.
pub(in crate::run) fn rehearse(
    context: &Context<'_>,
    snapshot: &Snapshot,
    what: Rehearsed<'_>,
) -> Result<()> {
    let task = event::Task::Rehearse;
    context.sink.started(&task);
    let sink = RehearsalSink(context.sink);
    let (dir, tools) = (&snapshot.dir, context.tools);
    let report = match what {
        Rehearsed::CleanUp => sandbox::run(SandboxTask::Rehearse, dir, tools, &sink)?,
        Rehearsed::Edits(edits) => sandbox::rehearse_edits(edits, dir, tools, &sink)?,
        Rehearsed::Leaving(to) => sandbox::rehearse_takeover(to, dir, tools, &sink)?,
    };
    context.sink.finished(&task, Outcome::Rehearsed { claims: report.claims.len() });
    Ok(())
}

/// Passes events on as those of a rehearsal.
struct RehearsalSink<'a>(&'a dyn Sink);

impl Sink for RehearsalSink<'_> {
    fn emit(&self, event: Event) {
        self.0.emit(Event::Rehearsal { inner: Box::new(event) });
    }
}
