//! The stage `settle`: deletes conntrack entries that lead past their service, to endpoints that are
//! gone or to nobody. The stage cannot be undone.

use crate::apply::conntrack::clear_stale;
use crate::error::Result;
use crate::event::{Outcome, Task};
use crate::kube_proxy::mode;
use crate::kube_proxy::stale_entries::ServiceDestinations;
use crate::plan::change::Irreversible;
use crate::plan::playbook::Settle;
use crate::run::Context;
use crate::run::execution::Execution;
use crate::run::payload::StepRef;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::{Stage, Undo};
use crate::state::kube_proxy::Mode;
use crate::state::stage::{RunStage, StageName};

/// Deleted conntrack entries cannot be restored, so nothing undoes the stage.
pub(super) const UNDO: Option<Undo> = None;

/// The stage `settle` with the options of the playbook.
pub(super) fn stage(options: Settle) -> Box<dyn Stage> {
    Box::new(options)
}

impl Stage for Settle {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Settle)
    }

    fn preview(&self, _: &Previewer<'_>) -> Previewed {
        Previewed::line("forgets connections that miss their service; cannot be undone")
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let to = execution.migration()?.modes.to;
        let task = Task::Settle;
        execution.context.sink.started(&task);
        let cleared = settle(execution.context, to)?;
        let step = StepRef::new(StageName::Settle.name(), 1);
        step.note(&mut execution.journal, Irreversible::Conntrack { cleared })?;
        execution.context.sink.finished(&task, Outcome::Settled { deleted: cleared });
        Ok(())
    }
}

/// Deletes the conntrack entries that miss what kube-proxy serves now in `mode`. Returns their number.
///
/// # Errors
/// When the node or conntrack cannot be read, or an entry cannot be deleted.
pub(super) fn settle(context: &Context<'_>, mode: Mode) -> Result<usize> {
    let now = context.observe_objects()?;
    let services = mode::of(mode).services(&now);
    clear_stale(&ServiceDestinations::new(&services, &now.links, &now.ipvs))
}
