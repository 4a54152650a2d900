//! What a run is about to do, tried on a private copy of the node first.

use crate::error::Result;
use crate::event::{self, Event, Outcome, Sink};
use crate::plan::change::Edit;
use crate::run::Context;
use crate::run::sandbox;
use crate::run::sandbox::Task;
use crate::run::snapshot::Baseline;
use crate::state::kube_proxy::Mode;

/// What is tried.
pub(super) enum Tried<'a> {
    /// The removal of what is left over now.
    CleanUp,
    /// These edits.
    Edits(&'a [Edit]),
    /// The removal of what will be left over when kube-proxy has gone to that mode.
    Leaving(Mode),
}

/// Does and undoes it in a private namespace. Its events are those of a rehearsal, not of the node.
///
/// # Errors
/// [`Kind::Rehearsal`](crate::error::Kind::Rehearsal), naming what failed.
pub(super) fn rehearse(context: &Context<'_>, taken: &Baseline, tried: Tried<'_>) -> Result<()> {
    let task = event::Task::Rehearse;
    context.sink.started(&task);
    let sink = Rehearsal(context.sink);
    let (dir, tools) = (&taken.snapshot.dir, context.tools);
    let report = match tried {
        Tried::CleanUp => sandbox::run(Task::Rehearse, dir, tools, &sink)?,
        Tried::Edits(edits) => sandbox::mend(edits, dir, tools, &sink)?,
        Tried::Leaving(to) => sandbox::leave(to, dir, tools, &sink)?,
    };
    context.sink.finished(&task, Outcome::Rehearsed { claims: report.claims.len() });
    Ok(())
}

/// Passes events on as those of a rehearsal.
struct Rehearsal<'a>(&'a dyn Sink);

impl Sink for Rehearsal<'_> {
    fn emit(&self, event: Event) {
        self.0.emit(Event::Rehearsal { inner: Box::new(event) });
    }
}
