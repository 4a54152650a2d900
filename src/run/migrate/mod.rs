//! kube-proxy from one mode to another, in the stages of a playbook: the new mode serves before
//! anything of the old one goes, and whatever fails is undone.

mod back;
mod converge;
mod drain;
mod hooks;
mod preview;
mod proof;
mod resume;
mod stages;
mod steps;
mod work;

use std::path::Path;
use std::time::Duration;

use crate::checks::{self, Facts, Finding};
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::interrupt;
use crate::kube_proxy::mode;
use crate::kube_proxy::running::RunningMode;
use crate::node::kube_proxy_controller::config_source;
use crate::node::live_facts;
use crate::node::observe::observe;
use crate::node::systemd;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::plan::playbook::{self, Playbook, Stage, StageName};
use crate::run::change::{begin, prune, refuse_pending};
use crate::run::probes;
use crate::run::rehearsal::{Tried, rehearse};
use crate::run::report::recorded;
use crate::run::snapshot::Baseline;
use crate::run::snapshot::take_snapshot;
use crate::run::watchdog;
use crate::run::{Context, boot_unit};
use crate::state::NodeState;
use crate::state::kube_proxy::{ConfigSource, Controller, Instances, Mode};
use crate::state::stage::RunStage;
use crate::state::tools::Process;
use crate::store::run::{
    BINARY, ConfiguredBy, Migration, Modes, Pending, Probe, Run, RunKind, RunState,
};

pub(super) use back::{after_reboot, undo};
pub use preview::{Preview, StagePreview, preview};
pub use resume::resume;

use work::Execution;

/// The playbook's copy in the run's folder.
const PLAYBOOK: &str = "playbook.yaml";

/// What the dead man's switch allows a stage beyond its own time.
const MARGIN: Duration = Duration::from_secs(300);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// The mode to go to.
    pub to: Mode,
    /// The playbook's file, in place of the built-in one.
    pub playbook: Option<&'a Path>,
    /// How long the run waits to be confirmed, in place of the playbook's time.
    pub confirm_within: Option<Duration>,
    /// False: the run is done when its stages are.
    pub confirm: bool,
    /// Checks whose findings do not stop the run.
    pub ignore: &'a [String],
}

/// What a migration is about to do, for the operator to decide on.
#[derive(Debug, Clone)]
pub struct Intended {
    /// The playbook.
    pub playbook: Playbook,
    /// The mode that runs now.
    pub from: Mode,
    /// Who restarts kube-proxy, and the file that tells it its mode; none for an upgrade, which
    /// somebody else does.
    pub restarts: Option<(String, String)>,
    /// What the checks found that does not stop the run.
    pub warnings: Vec<Finding>,
    /// The questions to the node's services that were answered.
    pub probes: Vec<String>,
}

/// How a migration ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The run.
    pub run: String,
    /// The snapshot to go back to.
    pub snapshot: String,
    /// The mode before.
    pub from: Mode,
    /// The mode now.
    pub to: Mode,
    /// Objects that were removed.
    pub removed: usize,
    /// What others changed meanwhile; kept.
    pub others: Vec<String>,
    /// What is left to confirm it; none if it needs no confirmation.
    pub left: Option<Duration>,
}

/// Carries the node over. `approve` is asked once, before anything is changed.
///
/// # Errors
/// [`Kind::RolledBack`] or [`Kind::NotRolledBack`] when it failed after it had changed something;
/// otherwise the node is as before.
pub fn migrate(
    context: &Context<'_>,
    asked: &Asked<'_>,
    approve: &dyn Fn(&Intended) -> Result<bool>,
) -> Result<Report> {
    supported(asked)?;
    let _lock = context.lock(RunKind::MIGRATE)?;
    let Ready { intended, text, found, probes } = ready(context, asked)?;
    if !approve(&intended)? {
        return Err(Error::new(
            Kind::Interrupted,
            RunKind::MIGRATE,
            "declined; nothing was changed",
        ));
    }
    let Intended { playbook, from, warnings, .. } = intended;
    prune(context)?;
    let taken = take_snapshot(context, &format!("before migrate --to {}", asked.to))?;
    if playbook.stage(StageName::Rehearse).is_some() {
        // Where the new mode runs already, its leftovers are there to be seen.
        let tried = if from == asked.to { Tried::CleanUp } else { Tried::Leaving(asked.to) };
        rehearse(context, &taken, tried)?;
    }
    let migration = Migration {
        modes: Modes { from, to: playbook.to },
        playbook: playbook.name.clone(),
        confirm_within: confirm_within(&playbook, asked).map(|time| time.as_secs()),
        probes: probes.clone(),
        kube_proxy: found.map(|(controller, source)| ConfiguredBy { controller, source }),
        findings: warnings.iter().filter_map(recorded).collect(),
        ignored: asked.ignore.to_vec(),
    };
    let _change = interrupt::change();
    let (run, journal) = open(context, migration, &text, &taken)?;
    let work =
        Execution { context, playbook, run, journal, base: taken.state, later: None, probes };
    work.go(None)
}

/// What [`migrate`] would be about to do; nothing is changed.
///
/// # Errors
/// What keeps the migration from being begun.
pub fn intended(context: &Context<'_>, asked: &Asked<'_>) -> Result<Intended> {
    supported(asked)?;
    ready(context, asked).map(|ready| ready.intended)
}

fn supported(asked: &Asked<'_>) -> Result<()> {
    playbook::supported(asked.to)?;
    match asked.ignore.iter().find(|id| !is_check(id)) {
        None => Ok(()),
        Some(id) => Err(Error::new(Kind::Usage, id, "no check has this id")
            .hint("`proxyshift check --list` names them all")),
    }
}

/// What is known before anything is changed.
struct Ready {
    intended: Intended,
    /// The playbook's text.
    text: String,
    /// Who restarts kube-proxy, and where it is told its mode.
    found: Option<(Controller, ConfigSource)>,
    probes: Vec<Probe>,
}

fn ready(context: &Context<'_>, asked: &Asked<'_>) -> Result<Ready> {
    refuse_pending(context)?;
    let now = observe(context.tools, context.sink)?;
    let from = running(context.catalogue, &now)?;
    let (playbook, text) = read_playbook(asked, from)?;
    playbook.refers_to_known(is_check, |owner| context.catalogue.component(owner).is_some())?;
    let found = kube_proxy(&playbook, &now)?;
    let warnings = preflight(context, &playbook, &now, asked)?;
    let probes = baseline(context, &now, from);
    let intended = Intended {
        from,
        restarts: found.as_ref().map(|(c, s)| (c.to_string(), s.to_string())),
        warnings,
        probes: probes.iter().map(ToString::to_string).collect(),
        playbook,
    };
    Ok(Ready { intended, text, found, probes })
}

fn is_check(id: &str) -> bool {
    checks::find(id).is_some()
}

/// The mode that runs.
fn running(catalogue: &Catalogue, now: &NodeState) -> Result<Mode> {
    let ownership = Ownership::of(catalogue, now);
    let running = RunningMode::of(now, &ownership);
    running.mode.ok_or_else(|| {
        Error::new(Kind::Blocked, "kube-proxy's mode", running.evidence).hint(
            "bring kube-proxy to serve in one mode first; `proxyshift check` says what stands in \
             the way",
        )
    })
}

/// The playbook and its text. A node that is in the mode asked for already is taken as one on the
/// way: what the other mode left is still to be cleaned.
fn read_playbook(asked: &Asked<'_>, running: Mode) -> Result<(Playbook, String)> {
    if let Some(path) = asked.playbook {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::new(Kind::Usage, path.display().to_string(), e))?;
        let playbook = Playbook::parse(&path.display().to_string(), &text, running)?;
        if playbook.to != asked.to {
            let cause = format!("leads to {}, not to {}", playbook.to, asked.to);
            return Err(Error::new(Kind::Usage, path.display().to_string(), cause));
        }
        return Ok((playbook, text));
    }
    let origin = playbook::origin(asked.to).filter(|_| running == asked.to);
    let from = origin.unwrap_or(running);
    let (file, text) = playbook::builtin_text(from, asked.to)?;
    Ok((Playbook::parse(file, text, from)?, text.to_owned()))
}

/// Who runs kube-proxy here, and where it is told its mode. An upgrade needs neither.
///
/// # Errors
/// [`Kind::Blocked`] unless one kube-proxy runs; [`Kind::UnknownController`] where nobody can tell who runs
/// it; [`Kind::Contested`] where its settings are not this node's to change.
pub fn kube_proxy(
    playbook: &Playbook,
    now: &NodeState,
) -> Result<Option<(Controller, ConfigSource)>> {
    let process = only_process(now)?;
    let Some(Stage::Switch(switch)) = playbook.stage(StageName::Switch) else { return Ok(None) };
    let controller = steps::controller(&switch.controller, process)?;
    let source = config_source(&controller, process)?;
    Ok(Some((controller, source)))
}

/// The one kube-proxy of this node.
fn only_process(now: &NodeState) -> Result<&Process> {
    match Instances::of(now.processes.as_deref().unwrap_or_default()) {
        Instances::One(process) => Ok(process),
        Instances::None => Err(Error::new(Kind::Blocked, "kube-proxy", "does not run here")
            .hint("start it; without kube-proxy, `proxyshift cleanup` removes leftovers alone")),
        Instances::Many(all) => {
            let pids: Vec<String> = all.iter().map(|p| p.pid.to_string()).collect();
            let cause = format!("runs {} times here: pid {}", all.len(), pids.join(", "));
            Err(Error::new(Kind::Blocked, "kube-proxy", cause).hint("end all but one"))
        }
    }
}

/// Asks the playbook's checks; those of its `block` list that found something stop the run.
fn preflight(
    context: &Context<'_>,
    playbook: &Playbook,
    now: &NodeState,
    asked: &Asked<'_>,
) -> Result<Vec<Finding>> {
    let Some(Stage::Preflight(lists)) = playbook.stage(StageName::Preflight) else {
        return Ok(Vec::new());
    };
    let task = Task::Check;
    context.sink.started(&task);
    let live = live_facts::probe(now, Some(context.store.dir()));
    let ownership = Ownership::of(context.catalogue, now);
    let facts = Facts {
        live: Some(&live),
        ..Facts::of(now, context.catalogue, &ownership, Some(asked.to))
    };
    let listed = |list: &[String], id: &str| list.iter().any(|i| i == id);
    let wanted = |id: &str| {
        (listed(&lists.block, id) || listed(&lists.warn, id)) && !listed(asked.ignore, id)
    };
    let findings = checks::run(&facts, &wanted);
    context.sink.finished(&task, Outcome::Checked { checks: findings.len() });
    let (found, rest): (Vec<_>, Vec<_>) =
        findings.into_iter().partition(|f| matches!(f.verdict, checks::Verdict::Found(_)));
    for finding in rest.iter().filter(|f| matches!(f.verdict, checks::Verdict::Unknown(_))) {
        if let checks::Verdict::Unknown(missing) = &finding.verdict {
            context.sink.note(format!("{}: not known: {missing}", finding.id));
        }
    }
    let (blocking, warnings): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|f| listed(&lists.block, f.id));
    match blocking.first() {
        None => Ok(warnings),
        Some(first) => {
            let ids: Vec<&str> = blocking.iter().map(|f| f.id).collect();
            let evidence = match &first.verdict {
                checks::Verdict::Found(found) => found.evidence.join("; "),
                _ => String::new(),
            };
            Err(Error::new(Kind::Blocked, ids.join(", "), evidence).hint(format!(
                "`proxyshift check --to {} --only {}` says what to do; `--ignore ID` goes on all \
                 the same",
                asked.to,
                ids.join(",")
            )))
        }
    }
}

/// Asks the services; those that do not answer are named and not asked again.
fn baseline(context: &Context<'_>, now: &NodeState, mode: Mode) -> Vec<Probe> {
    let task = Task::Probe;
    context.sink.started(&task);
    let (passed, failed) = probes::ask(probes::choose(&mode::of(mode).services(now), now));
    for (probe, e) in &failed {
        let text = format!("{probe}: {e}, before anything was changed; it is not judged further");
        context.sink.warning(text);
    }
    let all = passed.len() + failed.len();
    context.sink.finished(&task, Outcome::Probed { answered: passed.len(), all });
    passed
}

fn confirm_within(playbook: &Playbook, asked: &Asked<'_>) -> Option<Duration> {
    let of_playbook = match playbook.stage(StageName::Confirm) {
        Some(Stage::Confirm(confirm)) => Some(confirm.within),
        _ => None,
    };
    asked.confirm_within.or(of_playbook).filter(|_| asked.confirm)
}

/// Begins the run: its folder, its journal, and the process that stands by.
fn open(
    context: &Context<'_>,
    migration: Migration,
    playbook: &str,
    taken: &Baseline,
) -> Result<(Run, crate::store::journal::Journal)> {
    // What will be removed is written down whole, twice with what undoes it.
    let rules: usize = taken.state.files.values().map(|text| text.len()).sum();
    let (mut run, journal) =
        begin(context, RunKind::Migrate(migration), taken, &[], 4 * rules as u64)?;
    run.pending = Some(Pending::new(RunStage::Begun, MARGIN));
    let dir = context.store.run_dir(&run.id);
    let armed = steps::write_private(&dir.join(PLAYBOOK), playbook)
        .and_then(|()| watchdog::arm(context, &mut run))
        .and_then(|()| match systemd::runs_the_node() {
            true => boot_unit::write(&dir.join(BINARY), context.store.dir()),
            false => {
                context.sink.note(
                    "there is no systemd here: after a reboot, undo the run with `proxyshift \
                     rollback`",
                );
                Ok(())
            }
        });
    if let Err(e) = armed {
        context.store.finish(&mut run, RunState::Failed)?;
        boot_unit::remove()?;
        return Err(e);
    }
    Ok((run, journal))
}
