//! The stage `bridge`: loads the bridge, a table of ours that serves while kube-proxy changes its mode.
//!
//! It is made of the services that the present mode serves, and stands behind that mode: it translates
//! nothing while the mode is whole. See [`crate::kube_proxy::bridge`].

use std::cell::Cell;
use std::time::Duration;

use crate::apply;
use crate::apply::conntrack::clear_stale;
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::interrupt;
use crate::kube_proxy::bridge::Bridge;
use crate::kube_proxy::gap::Gap;
use crate::kube_proxy::mode;
use crate::kube_proxy::stale_entries::ServiceDestinations;
use crate::node;
use crate::plan::change::{Change, Edit};
use crate::plan::playbook::BridgeOptions;
use crate::run::Context;
use crate::run::execution::{Execution, UndoContext};
use crate::run::payload::StepRef;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::drain::{self, Leaving};
use crate::run::stage::{Stage, Undo};
use crate::state::stage::{RunStage, StageName};
use crate::state::{Family, NodeState};
use crate::store::run::{Modes, Run};

/// The function that undoes the stage.
pub(super) const UNDO: Option<Undo> = Some(undo);

/// The stage `bridge` with the options of the playbook.
pub(super) fn stage(options: BridgeOptions) -> Box<dyn Stage> {
    Box::new(options)
}

impl Stage for BridgeOptions {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Bridge)
    }

    fn timeout(&self) -> Duration {
        self.drain
    }

    fn preview(&self, previewer: &Previewer<'_>) -> Previewed {
        let bridges = Bridge::of(previewer.state, previewer.from);
        let counts = bridges.iter().map(|bridge| {
            let count = bridge.frontends.len();
            format!("loads a table that answers {count} service ports of {}", bridge.family)
        });
        let mut does: Vec<String> = counts.collect();
        if let Some(gap) = Gap::of(previewer.state, previewer.from, previewer.to()) {
            does.push(format!(
                "it serves from kube-proxy's start until its first sync, about {}; meanwhile the \
                 health-check ports do not answer",
                gap.outage
            ));
            does.extend(gap.ipvs_streams.map(|streams| {
                let seconds = self.drain.as_secs();
                format!("waits up to {seconds} s for open connections through ipvs, {streams} now")
            }));
        }
        Previewed::lines(does)
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let context = execution.context;
        let Modes { from, to } = execution.migration()?.modes;
        if from == to {
            context.sink.note(format!("kube-proxy runs in {to} mode already: no bridge is needed"));
            return Ok(());
        }
        let task = Task::LoadBridge;
        context.sink.started(&task);
        let now = context.observe_with_owners_of(execution.base()?)?;
        let (bridges, leaving) = (Bridge::of(&now, from), Leaving::of_kube_proxy(context, &now));
        drop(now);
        write(context, &execution.run, &bridges)?;
        let families = bridges.iter().map(|bridge| bridge.family).collect();
        let step = StepRef::new(StageName::Bridge.name(), 1);
        step.begin::<Edit>(&mut execution.journal, Change::BridgeLoaded { families })?;
        for bridge in &bridges {
            apply::bridge::load(context.tools, &bridge.script())?;
        }
        step.mark_done(&mut execution.journal)?;
        let frontends = bridges.iter().map(|bridge| bridge.frontends.len()).sum();
        context.sink.finished(&task, Outcome::BridgeLoaded { frontends });
        // From now on new connections go by the bridge, so the number of those through ipvs falls.
        drain::wait(context, &leaving, self.drain, &|| interrupt::check("draining"))
    }
}

/// The name of the file in the run's folder that has the script of a family's bridge.
fn file(family: Family) -> String {
    format!("bridge.{family}.nft")
}

/// Writes the scripts of bridges to the run's folder, for an undo.
///
/// # Errors
/// When the store cannot be written.
pub(super) fn write(context: &Context<'_>, run: &Run, bridges: &[Bridge]) -> Result<()> {
    let folder = context.store.folder(&run.id);
    bridges.iter().try_for_each(|bridge| folder.write(&file(bridge.family), &bridge.script()))
}

/// Loads the bridge of the run where it is not loaded, as the run's folder has it: somebody has deleted
/// it, or an undo needs it again. Does nothing in a run without a bridge.
///
/// A connection that was begun while nobody served keeps an entry of conntrack that misses its service,
/// so such entries are deleted. `base` is the node state before the run.
///
/// # Errors
/// When the bridge or conntrack cannot be read, or the kernel refuses the bridge.
fn ensure(context: &Context<'_>, run: &Run, base: &NodeState) -> Result<()> {
    let folder = context.store.folder(&run.id);
    let mut missing: Vec<Family> =
        Family::ALL.into_iter().filter(|family| folder.contains(&file(*family))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let loaded = node::bridge::loaded()?;
    missing.retain(|family| !loaded.contains(family));
    if missing.is_empty() {
        return Ok(());
    }
    let task = Task::LoadBridge;
    context.sink.started(&task);
    for family in missing {
        apply::bridge::load(context.tools, &folder.read(&file(family))?)?;
    }
    let services = run.modes().map(|modes| mode::of(modes.from).services(base)).unwrap_or_default();
    clear_stale(&ServiceDestinations::new(&services, &base.links, &base.ipvs))?;
    context.sink.finished(&task, Outcome::BridgeLoaded { frontends: services.len() });
    Ok(())
}

/// Keeps the bridge of a run while somebody waits for kube-proxy.
pub(super) struct Keeper<'a> {
    context: &'a Context<'a>,
    run: &'a Run,
    base: &'a NodeState,
    has_failed: Cell<bool>,
}

impl<'a> Keeper<'a> {
    /// `base` is the node state before the run.
    pub(super) fn new(context: &'a Context<'a>, run: &'a Run, base: &'a NodeState) -> Keeper<'a> {
        Keeper { context, run, base, has_failed: Cell::new(false) }
    }

    /// Loads the bridge where it is gone. Where that fails, only warns, and tries no more: kube-proxy
    /// may serve without it, and nothing that waits for kube-proxy must end because of the bridge.
    pub(super) fn keep(&self) {
        if self.has_failed.get() {
            return;
        }
        if let Err(e) = ensure(self.context, self.run, self.base) {
            self.has_failed.set(true);
            self.context.sink.warning(format!(
                "the bridge cannot be loaded ({e}): services fail until kube-proxy serves"
            ));
        }
    }
}

/// Whether the run has loaded a bridge.
pub(super) fn was_loaded(changes: &[Change]) -> bool {
    changes.iter().any(|change| matches!(change, Change::BridgeLoaded { .. }))
}

/// Deletes the bridge, once kube-proxy serves in its old mode.
///
/// # Errors
/// [`Kind::NotRolledBack`] when it cannot be deleted; or when it must stay, because kube-proxy does not
/// serve.
pub(in crate::run) fn undo(undo: &mut UndoContext<'_>) -> Result<()> {
    if !was_loaded(&undo.replay.begun) {
        return Ok(());
    }
    let loaded = node::bridge::loaded()?;
    if loaded.is_empty() {
        return Ok(());
    }
    if !undo.serves {
        let cause = "stays, as kube-proxy does not serve; another rollback deletes it";
        return Err(Error::new(Kind::NotRolledBack, "the bridge", cause));
    }
    loaded.into_iter().try_for_each(|family| apply::bridge::delete(undo.context.tools, family))
}
