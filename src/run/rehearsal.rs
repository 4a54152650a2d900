//! What a run is about to do, tried on a private copy of the node first.

use crate::error::Result;
use crate::event::{Event, Sink};
use crate::plan::edit::Edit;
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

/// Does and undoes it in a private namespace. What happens there is said as a rehearsal, so that
/// nobody takes it for the node.
///
/// # Errors
/// [`Kind::Rehearsal`](crate::error::Kind::Rehearsal), naming what failed.
pub(super) fn rehearse(context: &Context<'_>, taken: &Baseline, tried: Tried<'_>) -> Result<()> {
    let task = "rehearsing in a private namespace";
    context.sink.started(task);
    let sink = Rehearsal(context.sink);
    let (dir, tools) = (&taken.snapshot.dir, context.tools);
    let report = match tried {
        Tried::CleanUp => sandbox::run(Task::Rehearse, dir, tools, &sink)?,
        Tried::Edits(edits) => sandbox::mend(edits, dir, tools, &sink)?,
        Tried::Leaving(to) => sandbox::leave(to, dir, tools, &sink)?,
    };
    context.sink.finished(task, format!("{} proofs", report.proofs.len()));
    Ok(())
}

/// What each event of a rehearsal begins with.
pub(super) const REHEARSAL: &str = "rehearsal: ";

/// Passes events on as those of a rehearsal.
struct Rehearsal<'a>(&'a dyn Sink);

impl Sink for Rehearsal<'_> {
    fn emit(&self, event: Event) {
        let said = |text: String| format!("{REHEARSAL}{text}");
        self.0.emit(match event {
            run @ Event::Run { .. } => run,
            Event::Started { task } => Event::Started { task: said(task) },
            Event::Finished { task, result } => Event::Finished { task: said(task), result },
            Event::Proved { what, evidence } => Event::Proved { what: said(what), evidence },
            Event::Note { text } => Event::Note { text: said(text) },
            Event::Warning { text } => Event::Warning { text: said(text) },
        });
    }
}
