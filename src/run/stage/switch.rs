//! The stage `switch`: edits kube-proxy's configuration, and restarts kube-proxy so that kube-proxy
//! reads the edited configuration.

use std::time::Duration;

use similar::{ChangeTag, TextDiff};

use crate::apply::kube_proxy::operate;
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::kube_proxy::mode;
use crate::kube_proxy::proxy_state::ProxyState;
use crate::node::kube_proxy_controller::read_config;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::plan::change::{Change, Edit};
use crate::plan::playbook::Switch;
use crate::run::Context;
use crate::run::announce::{announce, announce_end};
use crate::run::bridge::keeper::{Follower, Keeper};
use crate::run::controller::{find, only_process};
use crate::run::execution::{Execution, UndoContext};
use crate::run::payload::StepRef;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::{Stage, Undo, bridge, converge, requested_switch};
use crate::runtime::ProcessId;
use crate::state::NodeState;
use crate::state::kube_proxy::{CommandLine, ConfigSource, Controller, Delivery, Mode};
use crate::state::kubernetes::NoteState;
use crate::state::stage::{RunStage, StageName};
use crate::store::run::{ConfiguredBy, Modes, Run};

/// How long kube-proxy may take to restart, and then to serve, when the switch is undone.
const RESTART: Duration = Duration::from_secs(120);

/// The files in the run's folder that hold the text of kube-proxy's configuration before and after
/// the switch.
const BEFORE: &str = "settings.before";
const AFTER: &str = "settings.after";

/// The file in the run's folder that holds kube-proxy's processes before the switch.
const PROCESSES: &str = "processes.before";

/// The function that undoes the stage.
pub(super) const UNDO: Option<Undo> = Some(undo);

/// The stage `switch` with the options of the playbook.
pub(super) fn stage(options: Switch) -> Box<dyn Stage> {
    Box::new(options)
}

impl Stage for Switch {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Switch)
    }

    /// kube-proxy's stop and its start may take that long each.
    fn timeout(&self) -> Duration {
        2 * self.timeout
    }

    fn preview(&self, previewer: &Previewer<'_>) -> Previewed {
        if let Some(ask) = &self.ask {
            return Previewed::line(format!("asks: {ask}"));
        }
        match config_diff(previewer, self) {
            Ok(lines) => Previewed::lines(lines),
            Err(e) => Previewed::stops(&e),
        }
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        if let Some(ask) = &self.ask {
            return requested_switch::run(execution, ask, self.timeout);
        }
        let (context, stage) = (execution.context, StageName::Switch.name());
        let sink = context.sink;
        let Modes { from: old, to } = execution.migration()?.modes;
        let task = Task::Switch { mode: to.to_string() };
        sink.started(&task);
        let (controller, source) = configured_by(execution)?;
        let folder = context.store.folder(&execution.run.id);
        let before = match folder.read(BEFORE) {
            Ok(text) => text,
            Err(_) => read_config(&controller, &source)?
                .ok_or_else(|| Error::new(Kind::NotFound, source.to_string(), "is gone"))?,
        };
        let base = execution.base()?;
        let ownership = Ownership::of(context.catalogue, base);
        let edit = mode::of(to).config_edit(base, &ownership);
        let after = source.edit(&before, &edit)?;
        if after == before && old == to {
            sink.finished(&task, Outcome::AlreadySwitched);
            return Ok(());
        }
        let now = execution.context.observe_objects()?;
        execution.later = Some(mode::of(old).services(&now));
        drop(now);
        // Not again in a run that is resumed: kube-proxy may have been restarted.
        if !folder.contains(PROCESSES) {
            // An old configuration that is still there is of a run that was killed at its end.
            operate(&controller).forget(&source)?;
            folder.write(PROCESSES, &as_text(&operate(&controller).processes()?)?)?;
        }
        for (name, text) in [(BEFORE, &before), (AFTER, &after)] {
            folder.write(name, text)?;
        }
        let step = StepRef::new(stage, 1);
        let change =
            Change::Configuration { source: source.clone(), controller: controller.clone() };
        step.begin::<Edit>(&mut execution.journal, change)?;
        announce(context, &execution.run, NoteState::Running);
        let base = execution.take_base()?;
        let keeper = Keeper::new(context, &execution.run, &base, &execution.follower);
        let configured = keeper
            .beside(|| operate(&controller).configure(&source, &before, &after, self.timeout));
        execution.keep_base(base);
        let pid = configured?;
        step.mark_done(&mut execution.journal)?;
        let (file, controller) = (controller.edited(&source), controller.to_string());
        sink.finished(&task, Outcome::Switched { file, controller, pid });
        Ok(())
    }
}

/// kube-proxy's controller and the source of its configuration, as they were found before the run.
fn configured_by(execution: &Execution<'_>) -> Result<(Controller, ConfigSource)> {
    let found = execution.run.migration().and_then(|migration| migration.kube_proxy.clone());
    let ConfiguredBy { controller, source } = found.ok_or_else(|| {
        let cause = "does not say what restarts kube-proxy";
        Error::new(Kind::Store, format!("run {}", execution.run.id), cause)
    })?;
    Ok((controller, source))
}

/// A sentence on the edit of kube-proxy's configuration, then the changed lines as a diff.
fn config_diff(previewer: &Previewer<'_>, switch: &Switch) -> Result<Vec<String>> {
    let LocatedConfig { source, text, edited, who } =
        if previewer.live { live_config(previewer, switch)? } else { captured_config(previewer)? };
    let ownership = Ownership::of(previewer.catalogue, previewer.state);
    let edit = mode::of(previewer.to()).config_edit(previewer.state, &ownership);
    let after = source.edit(&text, &edit)?;
    let diff = TextDiff::from_lines(text.as_str(), after.as_str());
    let lines = diff.iter_all_changes().filter_map(|change| {
        let sign = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => return None,
        };
        Some(format!("{sign} {}", change.value().trim_end()))
    });
    let mut does = vec![format!("edits {edited}, and {who} kube-proxy at once")];
    does.extend(lines);
    Ok(does)
}

/// kube-proxy's configuration, where it is, and what becomes of it.
struct LocatedConfig {
    source: ConfigSource,
    text: String,
    /// What is edited.
    edited: String,
    /// What restarts kube-proxy, and that it does.
    who: String,
}

fn live_config(previewer: &Previewer<'_>, switch: &Switch) -> Result<LocatedConfig> {
    let (controller, source) = find(&switch.controller, previewer.state)?;
    let text = read_config(&controller, &source)?
        .ok_or_else(|| Error::new(Kind::NotFound, source.to_string(), "is gone"))?;
    let (edited, who) = (controller.edited(&source), format!("by {controller} restarts"));
    Ok(LocatedConfig { source, text, edited, who })
}

/// kube-proxy's configuration in a capture: the file that kube-proxy was started with, and its
/// text.
fn captured_config(previewer: &Previewer<'_>) -> Result<LocatedConfig> {
    let unknown = |cause: &str| {
        Err(Error::new(Kind::NotFound, "kube-proxy's settings", cause)
            .hint("on the node itself, `proxyshift plan` finds them"))
    };
    let process = only_process(previewer.state)?;
    let delivery = ProxyState::of(previewer.state).delivery(previewer.state);
    if let Some(error) = delivery.refusal() {
        let prepared = match delivery {
            Delivery::DaemonSet(_) => "; a capture cannot tell whether the cluster is prepared",
            _ => "",
        };
        let hint = error.hint.clone().unwrap_or_default();
        return Err(error.hint(format!("{hint}{prepared}")));
    }
    if delivery == Delivery::Pod {
        return unknown("are a static pod's, or in a ConfigMap: a capture does not tell which");
    }
    let Some(config) = CommandLine::parse(&process.args)?.config else {
        return unknown("are flags of its command line, in no file of this state");
    };
    let Some(text) = previewer.state.file(&config).map(str::to_owned) else {
        return unknown("are in a file that this state does not hold");
    };
    let source = ConfigSource::File(config.into());
    Ok(LocatedConfig { edited: source.to_string(), source, text, who: "restarts".into() })
}

/// Restores the old configuration, restarts kube-proxy, and waits until the old mode serves.
///
/// # Errors
/// None, because failures are collected in `undo`.
pub(in crate::run) fn undo(undo: &mut UndoContext<'_>) -> Result<()> {
    let Some(Modes { from, .. }) = undo.run.modes() else { return Ok(()) };
    let Some((source, controller)) = switched(&undo.replay.begun) else {
        return requested_switch::undo(undo);
    };
    let context = undo.context;
    let task = Task::RestoreConfig { mode: from.to_string() };
    context.sink.started(&task);
    let restored = if was_never_switched(context, undo.run, source, controller) {
        Ok(())
    } else {
        let keeper = Keeper::new(context, undo.run, undo.base, &undo.follower);
        texts(context, undo.run).and_then(|(after, before)| {
            keeper.beside(|| configure_back(source, controller, &after, &before))
        })
    };
    // A stop that failed does not show that the old mode does not serve.
    let serves = if restored.is_ok() || may_serve(context, undo.run, source, controller) {
        let follower = &undo.follower;
        let (run, base) = (undo.run, undo.base);
        let before = mode::of(from).services(base);
        let judge = converge::Judge::Controller(controller);
        converge::wait_for_return(context, run, base, &before, judge, RESTART, follower)
    } else {
        Err(Error::new(Kind::Command, "kube-proxy", "does not serve in its old mode"))
    };
    undo.serves = serves.is_ok();
    let outcome = match (&restored, &serves) {
        (Ok(()), Ok(())) => Outcome::ConfigRestored { file: controller.edited(source) },
        _ => Outcome::NotServing,
    };
    context.sink.finished(&task, outcome);
    [restored, serves].iter().filter_map(|result| result.as_ref().err()).for_each(|e| undo.fail(e));
    Ok(())
}

/// Restores the old configuration after a reboot. Returns false if the run had not switched
/// kube-proxy. A kube-proxy that runs already is restarted, and a bridge serves until it is back where
/// the run had one; one that has not started yet will read the restored configuration.
///
/// # Errors
/// When the configuration cannot be restored; or when a bridge must stay, as kube-proxy does not serve.
pub(in crate::run) fn restore_after_reboot(
    context: &Context<'_>,
    run: &Run,
    changes: &[Change],
) -> Result<bool> {
    let Some((source, controller)) = switched(changes) else {
        return requested_switch::verify_after_reboot(context, run, changes);
    };
    let running = operate(controller).processes();
    if running.as_ref().is_ok_and(|processes| !processes.is_empty()) {
        let (after, before) = texts(context, run)?;
        let bridge = bridge::load_after_reboot(context, run, changes).unwrap_or_else(|e| {
            context.sink.warning(format!(
                "the bridge cannot be loaded ({e}): services fail until kube-proxy serves"
            ));
            None
        });
        let Some((now, services)) = bridge else {
            configure_back(source, controller, &after, &before)?;
            return Ok(true);
        };
        let follower = Follower::default();
        Keeper::new(context, run, &now, &follower)
            .beside(|| configure_back(source, controller, &after, &before))?;
        // What configures kube-proxy is another text now.
        let now = context.observe_owners()?;
        let judge = converge::Judge::Controller(controller);
        converge::wait_for_return(context, run, &now, &services, judge, RESTART, &follower)?;
        bridge::delete_loaded(context, run)?;
    } else {
        let (after, before) = texts(context, run)?;
        operate(controller).configure_stopped(source, &after, &before)?;
    }
    // Reported last, because the next boot needs the old configuration in any case.
    running.map(|_| true)
}

/// The source of kube-proxy's configuration, and the controller; none if the run has not switched
/// kube-proxy.
fn switched(changes: &[Change]) -> Option<(&ConfigSource, &Controller)> {
    changes.iter().rev().find_map(|change| match change {
        Change::Configuration { source, controller } => Some((source, controller)),
        _ => None,
    })
}

/// Whether the switch failed before it changed anything: kube-proxy's processes are those of before,
/// and its configuration is the old one. kube-proxy is then left alone.
fn was_never_switched(
    context: &Context<'_>,
    run: &Run,
    source: &ConfigSource,
    controller: &Controller,
) -> bool {
    let operate = operate(controller);
    let same_processes = || {
        let before = context.store.folder(&run.id).read(PROCESSES).ok()?;
        let now = operate.processes().ok().filter(|processes| !processes.is_empty())?;
        Some(as_text(&now).ok()? == before)
    };
    operate.is_in_place()
        && same_processes() == Some(true)
        && is_old(context, run, source, controller)
}

/// Processes as the text of [`PROCESSES`], whatever their order.
fn as_text(processes: &[ProcessId]) -> Result<String> {
    let mut sorted = processes.to_vec();
    sorted.sort();
    serde_json::to_string(&sorted).map_err(|e| Error::new(Kind::Unexpected, "processes", e))
}

/// Verifies that the configuration can be replaced by that of the mode `to`, without doing it. `now` is
/// the node's state.
///
/// # Errors
/// [`Kind::Blocked`], naming what stands in the way.
pub(in crate::run) fn can_switch(
    catalogue: &Catalogue,
    now: &NodeState,
    to: Mode,
    found: &(Controller, ConfigSource),
) -> Result<()> {
    let (controller, source) = found;
    let text = read_config(controller, source)?
        .ok_or_else(|| Error::new(Kind::NotFound, source.to_string(), "is gone"))?;
    let edit = mode::of(to).config_edit(now, &Ownership::of(catalogue, now));
    let after = source.edit(&text, &edit)?;
    operate(controller).can_configure(source, &text, &after)
}

/// Removes the old configuration that the switch kept for an undo of `run`. Called when the run is
/// about to end, because it is kept or was undone.
pub(in crate::run) fn forget(context: &Context<'_>, run: &Run, is_kept: bool) {
    let found = run.migration().and_then(|migration| migration.kube_proxy.as_ref());
    let Some(ConfiguredBy { controller, source }) = found else { return };
    if let Err(e) = operate(controller).forget(source) {
        context.sink.warning(format!("the old configuration is still kept: {e}"));
    }
    announce_end(context, run, is_kept);
}

/// Whether kube-proxy runs and its configuration is the old one.
fn may_serve(
    context: &Context<'_>,
    run: &Run,
    source: &ConfigSource,
    controller: &Controller,
) -> bool {
    let runs = operate(controller).processes().is_ok_and(|processes| !processes.is_empty());
    runs && is_old(context, run, source, controller)
}

/// Whether the configuration is the old one.
fn is_old(
    context: &Context<'_>,
    run: &Run,
    source: &ConfigSource,
    controller: &Controller,
) -> bool {
    match (read_config(controller, source), texts(context, run)) {
        (Ok(Some(now)), Ok((_, before))) => now == before,
        _ => false,
    }
}

/// Writes the old configuration `before`, and restarts kube-proxy with it.
fn configure_back(
    source: &ConfigSource,
    controller: &Controller,
    after: &str,
    before: &str,
) -> Result<()> {
    operate(controller).configure(source, after, before, RESTART).map(drop)
}

/// The text of kube-proxy's configuration after the switch, and the text before it.
fn texts(context: &Context<'_>, run: &Run) -> Result<(String, String)> {
    let folder = context.store.folder(&run.id);
    Ok((folder.read(AFTER)?, folder.read(BEFORE)?))
}
