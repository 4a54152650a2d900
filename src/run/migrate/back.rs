//! The way back from a migration: the old mode first, then what the new one made goes, then what
//! was cleaned comes back where nobody else puts it back.

use std::fs;
use std::time::Duration;

use crate::apply::kube_proxy::operate;
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::kube_proxy::mode;
use crate::node::observe::observe_tolerant;
use crate::node::processes;
use crate::owners::matcher::{Owner, Ownership};
use crate::plan::change::{Change, Edit, TableEdit, Target, edits};
use crate::plan::leftovers::CleanupScope;
use crate::plan::merge;
use crate::plan::{Action, Plan};
use crate::run::apply_edits::execute;
use crate::run::migrate::proof::verify;
use crate::run::migrate::steps::{AFTER, BEFORE};
use crate::run::migrate::{converge, drain, steps};
use crate::run::payload::{Replay, replay};
use crate::run::rollback::Report;
use crate::run::snapshot::parse_snapshot;
use crate::run::watchdog;
use crate::run::{Context, boot_unit};
use crate::state::NodeState;
use crate::state::kube_proxy::{ConfigSource, Controller};
use crate::state::stage::RunStage;
use crate::store::journal::{Journal, read};
use crate::store::run::{Migration, Modes, Run, RunState};
use crate::store::snapshots::Snapshot;

/// How long the way back may take before somebody else begins it anew.
const TIME: Duration = Duration::from_secs(15 * 60);

/// How long kube-proxy may take to stop, start, and serve.
const RESTART: Duration = Duration::from_secs(120);

/// The component whose objects a mode makes.
const KUBE_PROXY: &str = "kube-proxy";

/// Undoes the migration `run`, and proves it.
///
/// # Errors
/// [`Kind::NotRolledBack`] naming what could not be undone.
pub(in crate::run) fn undo(
    context: &Context<'_>,
    run: &mut Run,
    journal: &mut Journal,
    base: &NodeState,
) -> Result<Report> {
    run.claim();
    run.state = RunState::Running;
    let Some(Migration { modes, probes, .. }) = run.migration().cloned() else {
        return Err(Error::new(Kind::Unexpected, format!("run {}", run.id), "is no migration"));
    };
    if let Some(pending) = &mut run.pending {
        pending.stage = RunStage::Rollback;
        pending.set_deadline(TIME);
    }
    context.store.update(run)?;
    if let Err(e) = watchdog::arm(context, run) {
        context.sink.warning(format!("nobody stands by: {e}"));
    }
    let replay = replay(read(&context.store.run_dir(&run.id))?)?;
    let mut trouble: Vec<String> = Vec::new();
    let (mut restored, mut taken_out) = (0, 0);

    let serves = restore_config(context, run, &replay.begun, base, modes, &mut trouble)?;
    restored += restore_files(replay.begun.iter().rev(), &mut trouble);
    if serves {
        taken_out += remove_new_mode(context, journal, base)?;
    }
    // In the mode that it was in all along, kube-proxy does not make anew what another one left.
    let made_anew = serves && modes.from != modes.to;
    restored += restore_cleaned(context, run, journal, replay, !made_anew)?;
    if let Err(e) = verify(context, context.catalogue, base, modes.from, modes, &probes) {
        trouble.push(e.to_string());
    }
    finish(context, run, (restored, taken_out), trouble)
}

/// Undoes the migration `run` of an earlier boot: its settings and what was persisted. The rules
/// went with that boot, and so did what could be compared with them.
///
/// # Errors
/// As [`undo`].
pub(in crate::run) fn after_reboot(context: &Context<'_>, run: &mut Run) -> Result<Report> {
    let changes = replay(read(&context.store.run_dir(&run.id))?)?.begun;
    let mut trouble = Vec::new();
    let persisted = changes.iter().rev().filter(|c| matches!(c, Change::File { .. }));
    let mut restored = restore_files(persisted, &mut trouble);
    if let Some((source, controller)) = settings(&changes) {
        // One that this boot has not started yet reads the old file when it is started.
        let back = || match processes::pids(KUBE_PROXY)?.is_empty() {
            true => {
                let (after, before) = texts(context, run)?;
                operate(controller).configure_stopped(source, Some(&after), Some(&before))
            }
            false => configure_back(context, run, source, controller),
        };
        match back() {
            Ok(()) => restored += 1,
            Err(e) => trouble.push(e.to_string()),
        }
    }
    finish(context, run, (restored, 0), trouble)
}

fn finish(
    context: &Context<'_>,
    run: &mut Run,
    (restored, taken_out): (usize, usize),
    trouble: Vec<String>,
) -> Result<Report> {
    let task = Task::VerifyRollback;
    context.sink.started(&task);
    boot_unit::remove()?;
    if trouble.is_empty() {
        context.store.finish(run, RunState::RolledBack)?;
        context.sink.finished(&task, Outcome::Undone);
        let (run, already_back) = (run.id.clone(), Vec::new());
        return Ok(Report { run, restored, taken_out, already_back });
    }
    context.store.finish(run, RunState::UndonePartly)?;
    context.sink.finished(&task, Outcome::NotUndone { failures: trouble.len() });
    Err(Error::new(Kind::NotRolledBack, format!("run {}", run.id), trouble.join("; "))
        .hint("mend these by hand; the snapshot has the rules, and its restore.sh"))
}

/// The old settings back, the old mode started; whether it serves.
fn restore_config(
    context: &Context<'_>,
    run: &Run,
    changes: &[Change],
    base: &NodeState,
    modes: Modes,
    trouble: &mut Vec<String>,
) -> Result<bool> {
    let Some((source, controller)) = settings(changes) else { return Ok(true) };
    let task = Task::RestoreConfig { mode: modes.from.to_string() };
    context.sink.started(&task);
    let back = configure_back(context, run, source, controller).and_then(|()| {
        let before = mode::of(modes.from).services(base);
        converge::wait(context, modes.from, &before, None, RESTART, &|| Ok(()))
    });
    match back {
        Ok(_) => {
            context.sink.finished(&task, Outcome::ConfigRestored { file: source.to_string() });
            Ok(true)
        }
        Err(e) => {
            context.sink.finished(&task, Outcome::NotServing);
            trouble.push(e.to_string());
            Ok(false)
        }
    }
}

/// The file that told kube-proxy its mode, and who restarts it, if the run came to that.
fn settings(changes: &[Change]) -> Option<(&ConfigSource, &Controller)> {
    changes.iter().rev().find_map(|change| match change {
        Change::Configuration { source, controller } => Some((source, controller)),
        _ => None,
    })
}

/// The old text of kube-proxy's settings back into their file, and kube-proxy started with it.
fn configure_back(
    context: &Context<'_>,
    run: &Run,
    source: &ConfigSource,
    controller: &Controller,
) -> Result<()> {
    let (after, before) = texts(context, run)?;
    operate(controller).configure(source, Some(&after), Some(&before), RESTART).map(drop)
}

/// The texts of kube-proxy's settings after the switch, and before it.
fn texts(context: &Context<'_>, run: &Run) -> Result<(String, String)> {
    let dir = context.store.run_dir(&run.id);
    let text =
        |name: &str| fs::read_to_string(dir.join(name)).map_err(|e| Error::io(dir.join(name), &e));
    Ok((text(AFTER)?, text(BEFORE)?))
}

/// Files and sysctls as they were, in this order; how many.
fn restore_files<'a>(
    changes: impl Iterator<Item = &'a Change>,
    trouble: &mut Vec<String>,
) -> usize {
    let mut count = 0;
    for change in changes {
        match steps::undo(change) {
            Ok(undone) => count += usize::from(undone),
            Err(e) => trouble.push(e.to_string()),
        }
    }
    count
}

/// Removes what kube-proxy made in its new mode: leftovers now, that `base` did not have.
fn remove_new_mode(
    context: &Context<'_>,
    journal: &mut Journal,
    base: &NodeState,
) -> Result<usize> {
    let left = |now: &NodeState| -> Result<Vec<Edit>> {
        let mut plan: Plan = CleanupScope::of_owner(KUBE_PROXY).plan(context.catalogue, now)?;
        plan.objects.retain(|o| o.action == Action::Remove && !o.id.present_in(base));
        Ok(edits(&plan, now))
    };
    let going = left(&observe_tolerant(context.tools, context.sink)?)?;
    let count = going.iter().map(Edit::objects).sum();
    // Nobody waits on the way back, but what it cuts is said.
    drain::wait(context, &going, Duration::ZERO, &|| Ok(()))?;
    let plan_again = || left(&observe_tolerant(context.tools, context.sink)?);
    execute(context, journal, RunStage::Rollback, going, &plan_again).map_err(not_back)?;
    Ok(count)
}

/// Puts back what the stage `clean` removed, in a three-way merge: what is not kube-proxy's, and all
/// of it when kube-proxy does not make its own anew.
fn restore_cleaned(
    context: &Context<'_>,
    run: &Run,
    journal: &mut Journal,
    replay: Replay,
    all: bool,
) -> Result<usize> {
    let clean_snapshot = run.pending.as_ref().and_then(|s| s.clean_snapshot.clone());
    let Some(id) = clean_snapshot else { return Ok(0) };
    let mut done = replay.done;
    done.extend(replay.open.map(|(edit, _)| edit));
    if done.is_empty() {
        return Ok(0);
    }
    let base = parse_snapshot(Snapshot::load(&context.store.find(&id)?.dir)?.files)?;
    if !all {
        let ownership = Ownership::of(context.catalogue, &base);
        done = done.into_iter().filter_map(|edit| foreign_part(edit, &ownership)).collect();
    }
    let way_back = |now: &NodeState| merge::undo(&done, &base, now);
    let back = way_back(&observe_tolerant(context.tools, context.sink)?);
    let count = back.edits.iter().map(Edit::objects).sum();
    let plan_again = || Ok(way_back(&observe_tolerant(context.tools, context.sink)?).edits);
    execute(context, journal, RunStage::Rollback, back.edits, &plan_again).map_err(not_back)?;
    Ok(count)
}

/// The part of an edit that is not kube-proxy's, which makes its own anew.
fn foreign_part(edit: Edit, ownership: &Ownership<'_>) -> Option<Edit> {
    let ours = |owner: Option<Owner<'_>>| owner.is_some_and(|owner| owner.name == KUBE_PROXY);
    let Edit { direction, target } = edit;
    let Target::Table(mut table) = target else {
        let foreign = target.id().is_some_and(|id| !ours(ownership.of_object(&id)));
        return foreign.then_some(Edit { direction, target });
    };
    let TableEdit { ruleset, table: name, rules, chains } = &mut table;
    chains.retain(|chain| !ours(ownership.chain(*ruleset, name, &chain.name)));
    rules.retain(|rule| !ours(ownership.rule(*ruleset, name, &rule.chain, rule.position)));
    let is_empty = chains.is_empty() && rules.is_empty();
    (!is_empty).then_some(Edit { direction, target: Target::Table(table) })
}

fn not_back(e: Error) -> Error {
    Error { kind: Kind::NotRolledBack, ..e }
}
