//! The stage `verify`: checks what must hold after a migration, and after the undo of a migration.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::kube_proxy::mode;
use crate::kube_proxy::parity::{MissingPart, parity};
use crate::kube_proxy::services::Services;
use crate::plan::foreign_rules::missing_foreign;
use crate::plan::playbook::Verify;
use crate::run::Context;
use crate::run::bridge::keeper::Keeper;
use crate::run::execution::{Execution, UndoContext};
use crate::run::preview::{Previewed, Previewer};
use crate::run::probes;
use crate::run::stage::{Stage, Undo};
use crate::run::wait::{Poll, poll};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::state::stage::{RunStage, StageName};
use crate::store::run::{Migration, Modes, Probe};

/// The function that undoes the stage: it verifies the old mode.
pub(super) const UNDO: Option<Undo> = Some(undo);

/// The stage `verify` with the options of the playbook.
pub(super) fn stage(options: Verify) -> Box<dyn Stage> {
    Box::new(options)
}

impl Stage for Verify {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Verify)
    }

    fn preview(&self, previewer: &Previewer<'_>) -> Previewed {
        let probes = probes::choose(previewer.served, previewer.state);
        let with: Vec<String> = probes.iter().map(ToString::to_string).collect();
        let line = format!(
            "proves that what is not kube-proxy's is all there, in the same order, and asks {} \
             services that answered before",
            with.len()
        );
        Previewed { with, ..Previewed::line(line) }
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let Migration { modes, probes, .. } = execution.migration()?.clone();
        let context = execution.context;
        let base = execution.take_base()?;
        let keeper = Keeper::new(context, &execution.run, &base, &execution.follower);
        verify(context, &base, modes.to, modes, &probes, &keeper)?;
        execution.keep_base(base);
        Ok(())
    }
}

/// Verifies that the node is as it was before the migration.
///
/// # Errors
/// None, because failures are collected in `undo`.
pub(in crate::run) fn undo(undo: &mut UndoContext<'_>) -> Result<()> {
    let Some(Migration { modes, probes, .. }) = undo.run.migration() else { return Ok(()) };
    let keeper = Keeper::new(undo.context, undo.run, undo.base, &undo.follower);
    if let Err(e) = verify(undo.context, undo.base, modes.from, *modes, probes, &keeper) {
        undo.fail(&e);
    }
    Ok(())
}

/// How long a kube-proxy that has just started may lack services. kube-proxy writes for the first
/// time when it has the list of services, and may not have handled each service by then.
const LATE: Duration = Duration::from_secs(30);

/// Verifies that foreign rules are as in `base`, that every service is served in `mode` that the API
/// still has, as far as `keeper` knows, and that the probes are answered.
///
/// # Errors
/// [`Kind::Kernel`], naming what is missing or different.
fn verify(
    context: &Context<'_>,
    base: &NodeState,
    mode: Mode,
    modes: Modes,
    probes: &[Probe],
    keeper: &Keeper<'_>,
) -> Result<()> {
    let sink = context.sink;
    let task = Task::VerifyKernel;
    sink.started(&task);
    let now = context.observe_with_owners_of(base)?;
    let (gone, healing): (Vec<_>, Vec<_>) =
        missing_foreign(context.catalogue, base, &now).into_iter().partition(|l| l.is_permanent());
    for lost in &healing {
        sink.note(format!("not there now, its owner puts it back within {}: {lost}", lost.heals));
    }
    if let Some(first) = gone.first() {
        sink.finished(&task, Outcome::ForeignMissing { rules: gone.len() });
        let cause = "was there before, and is not in its place now";
        return Err(Error::new(Kind::Kernel, first.to_string(), cause));
    }
    sink.finished(&task, Outcome::ForeignUnchanged);
    let served = wait_for_parity(context, &mode::of(modes.from).services(base), now, mode, keeper)?;
    let task = Task::ProbeAgain;
    sink.started(&task);
    let (passed, failed) = probes::ask(probes::where_answered(probes, &served));
    let all = passed.len() + failed.len();
    sink.finished(&task, Outcome::Probed { answered: passed.len(), all });
    match failed.first() {
        None => Ok(()),
        Some((probe, e)) => Err(Error::new(
            Kind::Kernel,
            probe.to_string(),
            format!("answered before, and now: {e}"),
        )),
    }
}

/// Waits until each service of `before` is served in `mode`, and returns what is served then. `now` is
/// the first observation; others follow while services are missing.
fn wait_for_parity(
    context: &Context<'_>,
    before: &Services,
    now: NodeState,
    mode: Mode,
    keeper: &Keeper<'_>,
) -> Result<Services> {
    let mut first = Some(now);
    let result = poll(LATE, &|| Ok(()), || {
        let now = first.take().map_or_else(|| context.observe_objects(), Ok)?;
        let served = mode::of(mode).services(&now);
        // A missing endpoint is only noted, because each endpoint was there when the mode
        // converged, and endpoints may have come and gone since.
        let still = keeper.still_served(before);
        let missing = parity(still.as_ref().unwrap_or(before), &served);
        let (backends, whole): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|m| matches!(m.what, MissingPart::Backend(_)));
        Ok(match whole.into_iter().next() {
            None => Poll::Ready((served, backends)),
            Some(first) => Poll::NotYet(first),
        })
    })?;
    match result {
        Poll::Ready((served, backends)) => {
            backends.iter().for_each(|backend| context.sink.note(backend.to_string()));
            Ok(served)
        }
        Poll::NotYet(first) => {
            let cause = "a service is not served as before";
            Err(Error::new(Kind::Kernel, first.to_string(), cause))
        }
    }
}
