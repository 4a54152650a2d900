//! The stage `remove-bridge`: deletes the bridge, once kube-proxy serves in its new mode.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::apply;
use crate::error::Result;
use crate::event::{Outcome, Task};
use crate::kube_proxy::api_services::ApiServices;
use crate::kube_proxy::bridge::{Bridge, Frontend};
use crate::kube_proxy::mode;
use crate::node;
use crate::plan::change::{Change, Edit};
use crate::plan::playbook::NoOptions;
use crate::run::Context;
use crate::run::bridge::bridges_of;
use crate::run::bridge::files::write;
use crate::run::bridge::keeper::Keeper;
use crate::run::execution::{Execution, UndoContext};
use crate::run::named;
use crate::run::payload::StepRef;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::bridge::was_loaded;
use crate::run::stage::drain::{self, Leaving};
use crate::run::stage::{Stage, Undo};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::state::stage::{RunStage, StageName};
use crate::store::run::Modes;

/// The function that undoes the stage.
pub(super) const UNDO: Option<Undo> = Some(undo);

/// The stage `remove-bridge`, which has no options.
pub(super) fn stage(_: NoOptions) -> Box<dyn Stage> {
    Box::new(DeleteBridge)
}

/// Deletes the bridge.
struct DeleteBridge;

impl Stage for DeleteBridge {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::RemoveBridge)
    }

    fn preview(&self, previewer: &Previewer<'_>) -> Previewed {
        Previewed::line(format!("deletes the bridge, as {} mode serves", previewer.to()))
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let context = execution.context;
        let loaded = node::bridge::loaded()?;
        if loaded.is_empty() {
            return Ok(());
        }
        let task = Task::DeleteBridge;
        context.sink.started(&task);
        let modes = execution.migration()?.modes;
        let base = execution.take_base()?;
        let now = context.observe_with_owners_of(&base)?;
        let alone = {
            let mut follower = execution.follower.borrow_mut();
            if let Some(follower) = &mut *follower {
                follower.say_if_silent(context);
            }
            let api = follower.as_ref().and_then(|follower| follower.services());
            only_by_bridge(&base, &now, modes, api)
        };
        execution.keep_base(base);
        if let Some(warning) = ends(&alone, modes.to) {
            context.sink.warning(warning);
        }
        let counts = loaded.iter().map(|family| node::bridge::translated(context.tools, *family));
        let translated = counts.map(|count| Ok(count?.packets)).sum::<Result<u64>>()?;
        let step = StepRef::new(StageName::RemoveBridge.name(), 1);
        step.begin::<Edit>(&mut execution.journal, Change::BridgeDeleted)?;
        for family in loaded {
            apply::bridge::delete(context.tools, family)?;
        }
        step.mark_done(&mut execution.journal)?;
        context.sink.finished(&task, Outcome::BridgeDeleted { translated });
        Ok(())
    }
}

/// The frontends with endpoints in the old mode, in the state `before`, that the new mode does not
/// answer `now`. Without the word of the `api`, they are not told from the services that somebody
/// deleted meanwhile.
fn only_by_bridge(
    before: &NodeState,
    now: &NodeState,
    modes: Modes,
    api: Option<&ApiServices>,
) -> Vec<Frontend> {
    let of =
        |state: &NodeState, mode| Bridge::of(state, mode).into_iter().flat_map(|b| b.frontends);
    let answered: BTreeSet<Frontend> = of(now, modes.to).map(|(frontend, _)| frontend).collect();
    let is_served = |Frontend { address, protocol, port }: &Frontend| {
        let served = |api: &ApiServices| {
            api.at(*address, *port, *protocol).is_some_and(|s| s.has_endpoints())
        };
        api.is_none_or(served)
    };
    let served = of(before, modes.from).filter(|(_, backends)| !backends.endpoints.is_empty());
    let alone = served.map(|(frontend, _)| frontend).filter(|f| !answered.contains(f));
    alone.filter(is_served).collect()
}

/// The warning about what is answered no more: `not answered in nftables mode, and gone with the
/// bridge: …`.
fn ends(frontends: &[Frontend], to: Mode) -> Option<String> {
    let what = format!("not answered in {to} mode, and gone with the bridge");
    (!frontends.is_empty()).then(|| format!("{what}: {}", named(frontends)))
}

/// Puts the bridge back, before kube-proxy goes back to its old mode. A run that has deleted the bridge
/// may have been confirmed long ago, so the bridge is then made of what the new mode serves now.
///
/// # Errors
/// When the bridge cannot be loaded.
pub(in crate::run) fn undo(undo: &mut UndoContext<'_>) -> Result<()> {
    let changes = &undo.replay.begun;
    let is_switch = |change: &Change| {
        matches!(change, Change::Configuration { .. } | Change::SwitchRequested { .. })
    };
    let was_switched = changes.iter().any(is_switch);
    if !was_switched || !was_loaded(changes) {
        return Ok(());
    }
    let context = undo.context;
    if let Some(modes) = undo.run.modes()
        && changes.contains(&Change::BridgeDeleted)
        && node::bridge::loaded()?.is_empty()
    {
        let now = context.observe_with_owners_of(undo.base)?;
        let served = bridges_of(context, &now, modes.to);
        // Where the new mode serves nothing any more, the services of before the run are what is known.
        // On a disk that fails, the scripts of before are all there is.
        if !served.is_empty()
            && let Err(e) = write(context, undo.run, &served)
        {
            context.sink.warning(format!("the bridge has the services of before the run: {e}"));
        }
    }
    Keeper::new(context, undo.run, undo.base, &undo.follower).keep();
    if undo.run.modes().is_some_and(|modes| mode::of(modes.to).has_virtual_servers())
        && let Err(e) = name_open_connections(context, undo.base)
    {
        context.sink.warning(format!("open connections through ipvs are not known: {e}"));
    }
    Ok(())
}

/// Names the connections that end as kube-proxy leaves ipvs mode, without waiting for them: an undo
/// must not wait.
///
/// # Errors
/// When the node or its connections cannot be read.
fn name_open_connections(context: &Context<'_>, base: &NodeState) -> Result<()> {
    let now = context.observe_with_owners_of(base)?;
    drain::wait(context, &Leaving::of_kube_proxy(context, &now), Duration::ZERO, &|| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_bridge_answers_is_named() {
        let at = |port: u16| format!("192.168.1.5:{port}/tcp");
        let frontends: Vec<Frontend> = (30_000..30_007)
            .map(|port| Frontend {
                address: "192.168.1.5".parse().unwrap(),
                protocol: crate::state::ipvs::Protocol::Tcp,
                port,
            })
            .collect();
        assert_eq!(ends(&[], Mode::Nftables), None);
        let text = ends(&frontends[..1], Mode::Nftables).unwrap();
        assert!(text.ends_with(&format!("bridge: {}", at(30_000))), "{text}");
        let text = ends(&frontends, Mode::Nftables).unwrap();
        assert!(text.contains(&at(30_004)) && text.ends_with(", and 2 more"), "{text}");
    }
}
