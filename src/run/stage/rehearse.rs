//! The stage `rehearse`: applies and undoes the edits of a run in a private namespace.

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

/// The stage changes nothing on the node, so nothing undoes it.
pub(super) const UNDO: Option<Undo> = None;

/// The stage `rehearse`, which has no options.
pub(super) fn stage(_: NoOptions) -> Box<dyn Stage> {
    Box::new(RehearseCleanup)
}

/// The rehearsal of a clean-up, as a stage of a playbook.
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
        // Nothing to do: the rehearsal ran before the run had a journal.
        Ok(())
    }
}

/// What is rehearsed: where its edits come from.
pub(in crate::run) enum Rehearsed<'a> {
    /// The removal of leftovers.
    CleanUp,
    /// The edits that the caller gives, such as the remedies of checks.
    Edits(&'a [Edit]),
    /// The removal of the leftovers that exist after kube-proxy has moved to that mode.
    Leaving(Mode),
}

/// Applies and undoes the edits in a private namespace that holds the node state of `snapshot`.
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

/// Passes events on to another sink, marked as events of a rehearsal.
struct RehearsalSink<'a>(&'a dyn Sink);

impl Sink for RehearsalSink<'_> {
    fn emit(&self, event: Event) {
        self.0.emit(Event::Rehearsal { inner: Box::new(event) });
    }
}
