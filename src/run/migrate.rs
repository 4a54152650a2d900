//! The request to move kube-proxy to another mode, or to another version, by a playbook.

use std::path::Path;
use std::time::Duration;

use crate::checks::{self, Finding};
use crate::error::{Error, Kind, Result};
use crate::kube_proxy::mode;
use crate::kube_proxy::running::RunningMode;
use crate::kube_proxy::takeover::predict_takeover;
use crate::node::kube_proxy_controller::find_update;
use crate::node::observe::observe;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::plan::Plan;
use crate::plan::leftovers::leftovers_after;
use crate::plan::playbook::{self, Playbook, StageName, StageOptions, StageSide, UpgradeMethod};
use crate::run::Context;
use crate::run::controller::{find, only_process};
use crate::run::engine::{self, Request, RunResult, Work, refuse_pending};
use crate::run::preview::{Preview, Previewed, Previewer, StagePreview};
use crate::run::probes;
use crate::run::report::recorded;
use crate::run::stage;
use crate::run::stage::preflight::preflight;
use crate::run::stage::rehearse::{Rehearsed, rehearse};
use crate::run::stage::switch;
use crate::run::stored::Baseline;
use crate::state::NodeState;
use crate::state::kube_proxy::{ConfigSource, Controller, Mode};
use crate::store::run::{ConfiguredBy, Migration, Modes, Probe, RunKind};

/// What the operator asks of a migration, on the command line or through Ansible.
#[derive(Debug, Clone)]
pub struct MigrateOptions<'a> {
    /// The mode to move kube-proxy to.
    pub to: Mode,
    /// The operator's own playbook file; none for the built-in playbook.
    pub playbook: Option<&'a Path>,
    /// How long the run waits to be confirmed; none for the time that the playbook says.
    pub confirm_within: Option<Duration>,
    /// Whether the run waits to be confirmed at all; if not, it is done after its last stage.
    pub confirm: bool,
    /// The ids of checks whose findings do not stop the run.
    pub ignore: &'a [String],
}

/// What a migration is about to do, for the operator to approve.
#[derive(Debug, Clone)]
pub struct Intended {
    /// The playbook whose stages will run.
    pub playbook: Playbook,
    /// The mode that kube-proxy runs in now.
    pub from: Mode,
    /// What restarts kube-proxy, and where its configuration comes from, both by name. None for an
    /// upgrade, which restarts nothing.
    pub restarts: Option<(String, String)>,
    /// The findings of the preflight that do not stop the run.
    pub warnings: Vec<Finding>,
    /// The probes that were answered, which are repeated after the switch.
    pub probes: Vec<String>,
}

/// Moves kube-proxy to another mode. `approve` is called once, before anything is changed.
///
/// # Errors
/// [`Kind::RolledBack`] or [`Kind::NotRolledBack`] when the migration failed after it had changed
/// something; after any other error the node is as before.
pub fn migrate(
    context: &Context<'_>,
    options: &MigrateOptions<'_>,
    approve: &dyn Fn(&Intended) -> Result<bool>,
) -> Result<RunResult> {
    supported(options)?;
    let report =
        engine::run(context, &MigrateRequest { options }, &|ready| approve(&ready.intended))?;
    report.ok_or_else(|| Error::new(Kind::Unexpected, RunKind::MIGRATE, "had nothing to do"))
}

/// What [`migrate`] would ask the operator to approve; nothing is changed.
///
/// # Errors
/// What stands in the way of the migration.
pub fn intended(context: &Context<'_>, options: &MigrateOptions<'_>) -> Result<Intended> {
    supported(options)?;
    refuse_pending(context)?;
    ready(context, options).map(|ready| ready.intended)
}

/// A migration as a [`Request`] to the engine.
struct MigrateRequest<'a> {
    options: &'a MigrateOptions<'a>,
}

impl Request for MigrateRequest<'_> {
    type Proposal = Ready;
    type Approved = Ready;

    fn verb(&self) -> &'static str {
        RunKind::MIGRATE
    }

    fn is_watched(&self) -> bool {
        true
    }

    fn reason(&self) -> String {
        format!("before migrate --to {}", self.options.to)
    }

    fn propose(&self, context: &Context<'_>) -> Result<Option<Ready>> {
        ready(context, self.options).map(Some)
    }

    fn approved(&self, proposal: Ready) -> Ready {
        proposal
    }

    fn plan<'a>(
        &'a self,
        context: &Context<'_>,
        ready: Ready,
        baseline: Baseline,
    ) -> Result<Option<Work<'a>>> {
        let Ready { intended, text, found, probes } = ready;
        let Intended { playbook, from, warnings, .. } = intended;
        // Found out before the run begins, but not before the caller has approved: it writes a file
        // beside the configuration, and removes it.
        if let Some(found) = &found {
            switch::can_switch(context.catalogue, &baseline.state, self.options.to, found)?;
        }
        if playbook.stage(StageName::Rehearse).is_some() {
            // If kube-proxy is in the new mode already, the leftovers of the old mode can be found
            // now.
            let to = self.options.to;
            let what = if from == to { Rehearsed::CleanUp } else { Rehearsed::Leaving(to) };
            rehearse(context, &baseline.snapshot, what)?;
        }
        let migration = Migration {
            modes: Modes { from, to: playbook.to },
            playbook: playbook.name.clone(),
            confirm_within: confirm_within(&playbook, self.options).map(|time| time.as_secs()),
            probes,
            kube_proxy: found.map(|(controller, source)| ConfiguredBy { controller, source }),
            findings: warnings.iter().filter_map(recorded).collect(),
            ignored: self.options.ignore.to_vec(),
        };
        // Room in the journal is reserved, because the stage `clean` journals each object that it
        // removes, and the undo of each removal.
        let rules: usize = baseline.state.files.values().map(|text| text.len()).sum();
        Ok(Some(Work {
            stages: stages(&playbook),
            kind: RunKind::Migrate(Box::new(migration)),
            snapshot: baseline.snapshot.id,
            base: Some(baseline.state),
            planned: None,
            room: 4 * rules as u64,
            hooks: playbook.hooks,
            playbook: Some(text),
        }))
    }
}

/// The stages of a playbook, except those that the engine carries out before the run begins.
pub(super) fn stages(playbook: &Playbook) -> Vec<Box<dyn stage::Stage>> {
    let mut stages = playbook.stages.clone();
    stages.retain(|stage| {
        !matches!(
            stage,
            StageOptions::Preflight(_) | StageOptions::Snapshot(_) | StageOptions::Rehearse(_)
        )
    });
    stages.into_iter().map(stage::of).collect()
}

fn supported(options: &MigrateOptions<'_>) -> Result<()> {
    match options.ignore.iter().find(|id| !is_check(id)) {
        None => Ok(()),
        Some(id) => Err(Error::new(Kind::Usage, id, "no check has this id")
            .hint("`proxyshift check --list` names them all")),
    }
}

/// What is known about a migration before anything is changed.
struct Ready {
    intended: Intended,
    /// The text of the playbook file.
    text: String,
    /// The controller, and the source of kube-proxy's configuration; none for an upgrade.
    found: Option<(Controller, ConfigSource)>,
    probes: Vec<Probe>,
}

fn ready(context: &Context<'_>, options: &MigrateOptions<'_>) -> Result<Ready> {
    let now = observe(context.tools, context.sink)?;
    let from = running(context.catalogue, &now)?;
    let (playbook, text) = read_playbook(options, from)?;
    playbook.refers_to_known(is_check, |owner| context.catalogue.component(owner).is_some())?;
    let found = find_controller(&playbook, &now)?;
    let warnings = match playbook.stage(StageName::Preflight) {
        Some(StageOptions::Preflight(lists)) => {
            preflight(context, lists, &now, options.to, options.ignore)?
        }
        _ => Vec::new(),
    };
    let probes = probes::baseline(context, &now, from);
    let intended = Intended {
        from,
        restarts: found.as_ref().map(|(c, s)| (c.to_string(), s.to_string())),
        warnings,
        probes: probes.iter().map(ToString::to_string).collect(),
        playbook,
    };
    Ok(Ready { intended, text, found, probes })
}

/// What restarts kube-proxy, and the source of its configuration. None for an upgrade, and for a switch
/// that somebody is asked for, because somebody else restarts kube-proxy then. Even so, exactly one
/// kube-proxy must run, and for an upgrade by the controller another version must wait.
///
/// # Errors
/// As [`find_update`] for an upgrade by the controller.
/// [`Kind::Blocked`] unless exactly one kube-proxy runs; [`Kind::UnknownController`] where the
/// controller cannot be detected; [`Kind::Contested`] where something beyond this node manages the
/// configuration, such as a DaemonSet.
pub fn find_controller(
    playbook: &Playbook,
    now: &NodeState,
) -> Result<Option<(Controller, ConfigSource)>> {
    if let Some(StageOptions::Switch(switch)) = playbook.stage(StageName::Switch)
        && switch.ask.is_none()
    {
        return find(&switch.controller, now).map(Some);
    }
    let process = only_process(now)?;
    if let Some(StageOptions::Upgrade(upgrade)) = playbook.stage(StageName::Upgrade)
        && matches!(upgrade.by, UpgradeMethod::Controller { .. })
    {
        find_update(process, playbook.to)?;
    }
    Ok(None)
}

fn is_check(id: &str) -> bool {
    checks::find(id).is_some()
}

/// The mode that kube-proxy runs in, which must be clear.
fn running(catalogue: &Catalogue, now: &NodeState) -> Result<Mode> {
    let ownership = Ownership::of(catalogue, now);
    let running = RunningMode::of(now, &ownership);
    let mode = running.mode.ok_or_else(|| {
        Error::new(Kind::Blocked, "kube-proxy's mode", running.evidence).hint(
            "bring kube-proxy to serve in one mode first; `proxyshift check` says what stands in \
             the way",
        )
    })?;
    match mode::of(mode).unlisted_table(now) {
        None => Ok(mode),
        Some(table) => {
            let cause = "the node's nft cannot list it, so which services are served is not known";
            Err(Error::new(Kind::Blocked, table, cause).hint(
                "install an nft that can (1.0.1 or later lists what kube-proxy writes), and see with \
                 `nft -j list table`",
            ))
        }
    }
}

/// The playbook and its text. If kube-proxy already runs in the target mode, this is the playbook
/// of a migration to that mode, because the leftovers of the old mode may still have to be removed.
fn read_playbook(options: &MigrateOptions<'_>, running: Mode) -> Result<(Playbook, String)> {
    if let Some(path) = options.playbook {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::new(Kind::Usage, path.display().to_string(), e))?;
        let playbook = Playbook::parse(&path.display().to_string(), &text, running)?;
        if playbook.to != options.to {
            let cause = format!("leads to {}, not to {}", playbook.to, options.to);
            return Err(Error::new(Kind::Usage, path.display().to_string(), cause));
        }
        return Ok((playbook, text));
    }
    let origin = playbook::origin(options.to).filter(|_| running == options.to);
    let from = origin.unwrap_or(running);
    let (file, text) = playbook::builtin_text(from, options.to)?;
    Ok((Playbook::parse(file, text, from)?, text.to_owned()))
}

fn confirm_within(playbook: &Playbook, options: &MigrateOptions<'_>) -> Option<Duration> {
    let of_playbook = match playbook.stage(StageName::Confirm) {
        Some(StageOptions::Confirm(confirm)) => Some(confirm.within),
        _ => None,
    };
    options.confirm_within.or(of_playbook).filter(|_| options.confirm)
}

/// Previews `migrate` on a node; `live` says whether `state` is the state of this node. None where
/// kube-proxy runs in the mode `to` already and no playbook is given, because a clean-up is all
/// that could be left to do then.
///
/// # Errors
/// [`Kind::Usage`] for a mode without a playbook, or a playbook that does not fit;
/// [`Kind::Blocked`] where it is not clear which mode runs.
pub fn preview(
    catalogue: &Catalogue,
    state: &NodeState,
    live: bool,
    to: Mode,
    playbook: Option<&Path>,
) -> Result<Option<Preview>> {
    let from = running(catalogue, state)?;
    if from == to && playbook.is_none() {
        return Ok(None);
    }
    let options = MigrateOptions { to, playbook, confirm_within: None, confirm: true, ignore: &[] };
    let (playbook, _) = read_playbook(&options, from)?;
    let (served, plan) = (mode::of(from).services(state), leftovers(catalogue, state, &playbook)?);
    let previewer = Previewer {
        catalogue,
        state,
        live,
        from,
        playbook: &playbook,
        served: &served,
        plan: &plan,
    };
    let stages = playbook.stages.iter().map(|stage| preview_stage(&previewer, stage)).collect();
    Ok(Some(Preview { stages, plan, from, playbook }))
}

/// The predicted plan of the stage `clean`: the leftovers of the owner that the playbook names,
/// after kube-proxy has moved to the new mode.
fn leftovers(catalogue: &Catalogue, state: &NodeState, playbook: &Playbook) -> Result<Plan> {
    let Some(StageOptions::Clean(clean)) = playbook.stage(StageName::Clean) else {
        return Ok(Plan::default());
    };
    let after = predict_takeover(catalogue, state, playbook.to)?;
    let plan = leftovers_after(catalogue, &after, playbook.to);
    Ok(plan.of_owners(std::slice::from_ref(&clean.leftovers_of)))
}

/// Previews one stage of the playbook, with the hooks before and after it.
fn preview_stage(previewer: &Previewer<'_>, stage: &StageOptions) -> StagePreview {
    let name = stage.name();
    let Previewed { mut does, with, stops } = stage::of(stage.clone()).preview(previewer);
    for (when, word) in [(StageSide::Before, "before"), (StageSide::After, "after")] {
        let hooks = previewer.playbook.hooks.at(when, name);
        does.extend(hooks.iter().map(|hook| format!("{word} it runs `{}`", hook.run)));
    }
    StagePreview { stage: name, changes: name.changes_the_node(), does, with, stops }
}
