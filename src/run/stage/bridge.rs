//! The stage `bridge`: loads the bridge, a table of ours that serves while kube-proxy changes its mode.
//!
//! It is made of the services that the present mode serves, and stands behind that mode: it translates
//! nothing while the mode is whole. See [`crate::kube_proxy::bridge`].

use std::time::Duration;

use crate::apply;
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::interrupt;
use crate::kube_proxy::bridge::{Bridge, sticky_clients};
use crate::kube_proxy::gap::Gap;
use crate::kube_proxy::mode;
use crate::kube_proxy::services::Services;
use crate::node;
use crate::plan::change::{Change, Edit};
use crate::plan::playbook::BridgeOptions;
use crate::run::Context;
use crate::run::bridge::bridges_of;
use crate::run::bridge::files::write;
use crate::run::bridge::follow::EndpointFollower;
use crate::run::bridge::keeper::Keeper;
use crate::run::execution::{Execution, UndoContext};
use crate::run::payload::StepRef;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::drain::{self, Leaving};
use crate::run::stage::settle::settle;
use crate::run::stage::{Stage, Undo};
use crate::state::NodeState;
use crate::state::stage::{RunStage, StageName};
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
        let frontends = bridges.iter().flat_map(|bridge| bridge.frontends.values());
        if frontends.clone().any(|backends| backends.has_affinity) {
            does.push(format!(
                "clients stay with their endpoints by session affinity until kube-proxy serves; {} \
                 mode begins without knowing who has which",
                previewer.to()
            ));
        }
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
        let leaving = Leaving::of_kube_proxy(context, &now);
        let bridges = bridges_of(context, &now, from);
        write(context, &execution.run, &bridges)?;
        drop(now);
        let families = bridges.iter().map(|bridge| bridge.family).collect();
        let step = StepRef::new(StageName::Bridge.name(), 1);
        step.begin::<Edit>(&mut execution.journal, Change::BridgeLoaded { families })?;
        for bridge in &bridges {
            apply::bridge::load(context.tools, &bridge.script())?;
        }
        step.mark_done(&mut execution.journal)?;
        let frontends = bridges.iter().map(|bridge| bridge.frontends.len()).sum();
        context.sink.finished(&task, Outcome::BridgeLoaded { frontends });
        let clients = sticky_clients(&bridges);
        if clients > 0 {
            context.sink.note(format!(
                "session affinity: {clients} clients stay with their endpoints until kube-proxy \
                 serves; {to} mode does not know them"
            ));
        }
        let base = execution.take_base()?;
        let follower = EndpointFollower::start(context, &execution.run, &base, true);
        execution.follower.replace(follower);
        let keeper = Keeper::new(context, &execution.run, &base, &execution.follower);
        let keep_waiting = || {
            keeper.keep();
            interrupt::check("draining")
        };
        // From now on new connections go by the bridge, so the number of those through ipvs falls.
        drain::wait(context, &leaving, self.drain, &keep_waiting)?;
        execution.keep_base(base);
        Ok(())
    }
}

/// Whether the run has loaded a bridge.
pub(super) fn was_loaded(changes: &[Change]) -> bool {
    changes.iter().any(|change| matches!(change, Change::BridgeLoaded { .. }))
}

/// Loads a bridge in place of the one that a reboot has taken from `run`, made of what kube-proxy serves
/// now. Returns the node state and the services that the old mode must serve before the bridge goes; none
/// if the run had no bridge, or kube-proxy does not serve in its new mode.
///
/// # Errors
/// When the node cannot be read, the store cannot be written, or the kernel refuses the bridge; then none
/// is loaded.
pub(super) fn load_after_reboot(
    context: &Context<'_>,
    run: &Run,
    changes: &[Change],
) -> Result<Option<(NodeState, Services)>> {
    let Some(Modes { from, to }) = run.modes().filter(|_| was_loaded(changes)) else {
        return Ok(None);
    };
    let now = context.observe_owners()?;
    let bridges = bridges_of(context, &now, to);
    if bridges.is_empty() {
        // It serves in its old mode, or not at all: an earlier undo may have left a bridge.
        let is_left = !node::bridge::loaded()?.is_empty();
        let services = mode::of(from).services(&now);
        return Ok(is_left.then_some((now, services)));
    }
    let task = Task::LoadBridge;
    context.sink.started(&task);
    write(context, run, &bridges)?;
    for bridge in &bridges {
        if let Err(e) = apply::bridge::load(context.tools, &bridge.script()) {
            delete_loaded(context, run)?;
            return Err(e);
        }
    }
    let frontends = bridges.iter().map(|bridge| bridge.frontends.len()).sum();
    context.sink.finished(&task, Outcome::BridgeLoaded { frontends });
    let services = mode::of(to).services(&now);
    Ok(Some((now, services)))
}

/// Deletes the bridge of every family that has one, as the old mode of `run` serves.
///
/// # Errors
/// When it cannot be read or deleted.
pub(super) fn delete_loaded(context: &Context<'_>, run: &Run) -> Result<()> {
    let loaded = node::bridge::loaded()?;
    if loaded.is_empty() {
        return Ok(());
    }
    loaded.into_iter().try_for_each(|family| apply::bridge::delete(context.tools, family))?;
    // Connections of the mode that was left hang otherwise: those through ipvs.
    if let Some(modes) = run.modes()
        && let Err(e) = settle(context, modes.from)
    {
        context.sink.warning(format!("connections may miss their services for minutes: {e}"));
    }
    Ok(())
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
    if !undo.serves && !node::bridge::loaded()?.is_empty() {
        let cause = "stays, as kube-proxy does not serve; another rollback deletes it";
        return Err(Error::new(Kind::NotRolledBack, "the bridge", cause));
    }
    delete_loaded(undo.context, undo.run)
}
