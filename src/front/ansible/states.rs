//! Brings the node into the requested state, with the functions that the verbs use.

use std::cell::RefCell;

use serde_json::{Value, json};

use crate::checks::{Finding, Verdict};
use crate::error::{Error, Kind, Result};
use crate::front::ansible::answer::ModuleResult;
use crate::front::ansible::options::ModuleTask;
use crate::front::ansible::options::State;
use crate::front::cli::args;
use crate::front::cli::check;
use crate::front::cli::check::CheckInput;
use crate::front::cli::status;
use crate::guard::Exception;
use crate::guard::Guard;
use crate::guard::unit::Unit;
use crate::kube_proxy::running::RunningMode;
use crate::node::live_facts;
use crate::node::observe::observe;
use crate::node::systemd;
use crate::owners::matcher::Ownership;
use crate::plan::leftovers::CleanupScope;
use crate::run::Context;
use crate::run::cleanup;
use crate::run::confirm::{self, Confirmed};
use crate::run::migrate::{self, MigrateOptions};
use crate::run::rollback::{self, to::rollback_to};
use crate::run::snapshot;
use crate::run::stored::parse_snapshot;
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::store::run::{Run, RunKind, RunState};
use crate::store::snapshots::Snapshot;
use crate::ui::table::counted;

/// Brings the node into the requested state.
///
/// # Errors
/// The errors of the verb that brings the node into that state.
pub(super) fn perform(context: &Context<'_>, task: &ModuleTask) -> Result<ModuleResult> {
    match &task.state {
        State::Checked { to, snapshot, ignore } => {
            checked(context, *to, snapshot.as_deref(), ignore)
        }
        State::Snapshotted => snapshotted(context),
        State::Cleaned { owners, confirm_within } => {
            if let Some(answer) = cleaned_already(context, owners)? {
                return Ok(answer);
            }
            let wanted = CleanupScope { owners: owners.clone(), black_holes: false };
            let report = cleanup::cleanup(context, &wanted, *confirm_within, &|_| Ok(true))?;
            Ok(match report {
                None => unchanged("no leftovers were found"),
                Some(report) => {
                    let done = format!("{} removed", counted(report.objects, "object"));
                    let waits = report.left().is_some();
                    ran(report.run.id, done, waits)
                }
            })
        }
        State::Migrated { to, playbook, confirm_within, ignore } => {
            let requested = MigrateOptions {
                to: *to,
                playbook: playbook.as_deref(),
                confirm_within: *confirm_within,
                confirm: true,
                ignore,
            };
            migrated(context, &requested)
        }
        State::Confirmed => Ok(match confirm::confirm(context)? {
            Confirmed::Now(run) => ran(run.id.clone(), "confirmed".into(), false),
            Confirmed::Already(run) => ModuleResult {
                run: Some(run.id.clone()),
                ..unchanged(&format!("run {} was confirmed before", run.id))
            },
        }),
        State::RolledBack { to: None } => rolled_back(context),
        State::RolledBack { to: Some(snapshot) } => rolled_back_to(context, snapshot),
        State::Guarded { exceptions } => {
            let guard = guard(context, exceptions);
            if systemd::runs_the_node() {
                let _lock = context.lock("guarded")?;
                let changed = Unit::new(&guard, context.store).install()?;
                return Ok(ModuleResult {
                    changed,
                    ..unchanged("a unit of systemd keeps the exceptions")
                });
            }
            let report = guard.once()?;
            let rules = counted(report.rules.len(), "rule");
            let msg =
                format!("{rules} in place, which nobody keeps there: systemd does not run here");
            Ok(ModuleResult { changed: report.changed, ..unchanged(&msg) })
        }
    }
}

/// Checks the node, or a snapshot. If a finding blocks, the result has an error.
pub(super) fn checked(
    context: &Context<'_>,
    to: Option<Mode>,
    snapshot: Option<&str>,
    ignore: &[String],
) -> Result<ModuleResult> {
    let options = args::CheckArgs { to, ignore: ignore.to_vec(), ..args::CheckArgs::default() };
    check::known_ids(&options)?;
    let now = match snapshot {
        None => observe(context.tools, context.sink)?,
        Some(name) => parse_snapshot(Snapshot::load(&context.store.find(name)?.dir)?.files)?,
    };
    let live = match snapshot {
        None => Some(live_facts::probe(&now, Some(context.store.dir()))),
        Some(_) => None,
    };
    let input = CheckInput { now, earlier: None, interval: None, live, unread: None };
    let findings = check::judge(&input, &input.now, &options)?;
    let blocking: Vec<&str> = findings.iter().filter(|f| f.blocks()).map(|f| f.id).collect();
    let error = (!blocking.is_empty()).then(|| {
        Error::new(Kind::Blocked, blocking.join(", "), "must be mended first")
            .hint("`findings` has the evidence and the remedies; `ignore` leaves a check out")
    });
    let found = findings.iter().filter(|f| matches!(f.verdict, Verdict::Found(_))).count();
    let msg = format!("{} found something, nothing blocks", counted(found, "check"));
    Ok(ModuleResult { findings: rows(&findings), error, ..unchanged(&msg) })
}

/// The findings as JSON. Checks whose outcome is unknown are included; checks that are ok are left
/// out.
fn rows(findings: &[Finding]) -> Vec<Value> {
    let reported = findings.iter().filter(|f| !matches!(f.verdict, Verdict::Ok(_)));
    reported.map(check::row).collect()
}

fn snapshotted(context: &Context<'_>) -> Result<ModuleResult> {
    let _lock = context.lock("snapshot")?;
    if let Some(snapshot) = snapshot::latest_if_current(context)? {
        return Ok(unchanged(&format!("snapshot {} still tells what the node is", snapshot.id)));
    }
    let baseline = snapshot::take_snapshot(context, "asked for by Ansible")?;
    let msg = format!("snapshot {} was taken", baseline.snapshot.id);
    Ok(ModuleResult { changed: true, ..unchanged(&msg) })
}

/// The result if the same clean-up was run already and waits to be confirmed; otherwise none.
///
/// # Errors
/// [`Kind::Usage`] for an owner that the catalogue does not have.
pub(super) fn cleaned_already(
    context: &Context<'_>,
    owners: &[String],
) -> Result<Option<ModuleResult>> {
    if let Some(owner) = owners.iter().find(|o| context.catalogue.component(o).is_none()) {
        return Err(Error::new(Kind::Usage, "option `owners`", format!("nobody knows `{owner}`"))
            .hint("`proxyshift snapshot show` counts what a node holds by owner"));
    }
    let own =
        |run: &Run| matches!(&run.kind, RunKind::Cleanup(options) if options.owners == owners);
    Ok(unconfirmed(context)?.filter(own).map(|run| waits(&run)))
}

/// The result if kube-proxy needs no migration, because kube-proxy serves in the mode `to` without
/// leftovers, or because a run that migrated to `to` waits to be confirmed; otherwise none.
pub(super) fn migrated_already(context: &Context<'_>, to: Mode) -> Result<Option<ModuleResult>> {
    let own = |run: &Run| run.modes().is_some_and(|modes| modes.to == to);
    if let Some(run) = unconfirmed(context)?.filter(own) {
        return Ok(Some(waits(&run)));
    }
    if context.store.pending()?.is_some() {
        return Ok(None);
    }
    let now = observe(context.tools, context.sink)?;
    let migrated = mode_of(context, &now) == Some(to.name())
        && CleanupScope::of_owner("kube-proxy").plan(context.catalogue, &now)?.is_empty();
    Ok(migrated.then(|| unchanged(&format!("kube-proxy serves in {to} mode, and left nothing"))))
}

fn migrated(context: &Context<'_>, requested: &MigrateOptions<'_>) -> Result<ModuleResult> {
    if let Some(answer) = migrated_already(context, requested.to)? {
        return Ok(answer);
    }
    let findings = RefCell::new(Vec::new());
    let report = migrate::migrate(context, requested, &|intended| {
        *findings.borrow_mut() = rows(&intended.warnings);
        Ok(true)
    });
    let report = match report {
        // The checks run again, so that the result has the blocking findings besides the error.
        Err(error) if error.kind == Kind::Blocked => {
            let findings = checked(context, Some(requested.to), None, requested.ignore)?.findings;
            return Ok(ModuleResult { findings, ..ModuleResult::failed(error) });
        }
        other => other?,
    };
    let from = report.run.modes().map_or(requested.to, |modes| modes.from);
    let done = format!("kube-proxy went from {from} to {} mode", requested.to);
    let waits = report.left().is_some();
    Ok(ModuleResult { findings: findings.into_inner(), ..ran(report.run.id, done, waits) })
}

fn rolled_back(context: &Context<'_>) -> Result<ModuleResult> {
    let migrated = rollback::revertible_run(context)?.is_some_and(|run| run.migration().is_some());
    match rollback::rollback_once(context) {
        Ok(Some(report)) => {
            let changed = migrated || report.restored + report.taken_out > 0;
            let msg = format!("run {} is undone", report.run);
            Ok(ModuleResult { changed, run: Some(report.run), ..unchanged(&msg) })
        }
        Ok(None) => Ok(unchanged(NOTHING_TO_UNDO)),
        // The run to undo is of an earlier boot. The changes of that run were lost in the reboot,
        // so nothing is left to undo.
        Err(e) if e.kind == Kind::NotFound => Ok(unchanged(&e.to_string())),
        Err(e) => Err(e),
    }
}

fn rolled_back_to(context: &Context<'_>, snapshot: &str) -> Result<ModuleResult> {
    let report = rollback_to(context, &context.store.find(snapshot)?.dir, &|_| Ok(true))?;
    let runs: Vec<&str> = report.undone.iter().map(|undone| undone.run.as_str()).collect();
    Ok(ModuleResult {
        changed: !runs.is_empty(),
        ..unchanged(&undone(&report.snapshot, &runs, "undone"))
    })
}

/// The sentence on a rollback to a snapshot: `back to snapshot S: undone R1, R2`.
pub(super) fn undone(snapshot: &str, runs: &[&str], done: &str) -> String {
    match runs {
        [] => format!("no run since snapshot {snapshot} is left to undo"),
        _ => format!("back to snapshot {snapshot}: {done} {}", runs.join(", ")),
    }
}

pub(super) const NOTHING_TO_UNDO: &str = "no run is left to undo";

/// The guard that keeps these exceptions in front of the INVALID drops.
pub(super) fn guard<'a>(context: &Context<'a>, exceptions: &'a [Exception]) -> Guard<'a> {
    Guard {
        tools: context.tools,
        catalogue: context.catalogue,
        sink: context.sink,
        lock_wait: context.lock_wait,
        exceptions,
        contest: false,
    }
}

/// The pending run, if it waits to be confirmed.
fn unconfirmed(context: &Context<'_>) -> Result<Option<Run>> {
    Ok(context.store.pending()?.filter(|run| run.state == RunState::Unconfirmed))
}

fn waits(run: &Run) -> ModuleResult {
    ModuleResult { run: Some(run.id.clone()), ..unchanged(&status::pending(run)) }
}

fn ran(run: String, done: String, waits: bool) -> ModuleResult {
    let deadline = if waits { ", which is undone unless it is confirmed" } else { "" };
    let msg = format!("{done} in run {run}{deadline}");
    ModuleResult { changed: true, run: Some(run), ..unchanged(&msg) }
}

pub(super) fn unchanged(msg: &str) -> ModuleResult {
    ModuleResult { msg: msg.to_owned(), ..ModuleResult::default() }
}

/// The mode that kube-proxy serves in; none if that is not clear.
pub(super) fn mode_of(context: &Context<'_>, state: &NodeState) -> Option<&'static str> {
    RunningMode::of(state, &Ownership::of(context.catalogue, state)).mode.map(Mode::name)
}

/// The facts for templates. A fact that is unknown is null.
pub(super) fn facts(context: &Context<'_>, now: Option<&NodeState>) -> Value {
    let leftovers = now.and_then(|now| CleanupScope::default().plan(context.catalogue, now).ok());
    let runs = context.store.runs().unwrap_or_default();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": rustix::system::uname().nodename().to_string_lossy(),
        "mode": now.and_then(|now| mode_of(context, now)),
        "leftovers": leftovers.map(|plan| plan.removals().count()),
        "pending": context.store.pending().ok().flatten().as_ref().map(status::row),
        "last_run": runs.last().map(status::row),
        "snapshot": context.store.find("latest").ok().map(|snapshot| snapshot.id),
    })
}
