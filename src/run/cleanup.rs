//! Leftovers out, nothing else: snapshot, rehearsal, edits, proof. And going on with a clean-up
//! that was cut off.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::node::observe::observe;
use crate::node::observe::observe_tolerant;
use crate::plan::Plan;
use crate::plan::change::{Edit, detach, edits};
use crate::plan::invariants::{Outcome, outcome, remaining_state};
use crate::plan::leftovers::CleanupScope;
use crate::run::Context;
use crate::run::change::{apply_or_undo, begin, prune, refuse_pending};
use crate::run::confirm;
use crate::run::fix;
use crate::run::payload::replay;
use crate::run::rehearsal::{Tried, rehearse};
use crate::run::rollback;
use crate::run::snapshot::Baseline;
use crate::run::snapshot::load_baseline;
use crate::run::snapshot::parse_snapshot;
use crate::run::snapshot::take_snapshot;
use crate::run::watchdog;
use crate::state::NodeState;
use crate::state::stage::RunStage;
use crate::store::journal::{JOURNAL, Journal};
use crate::store::run::{self, Pending, Run, RunKind, RunState};
use crate::store::snapshots::Snapshot;

/// How long a clean-up that is to be confirmed may take.
const STAGE_TIME: Duration = Duration::from_secs(600);

/// The edits that a clean-up would make now; nothing is changed.
///
/// # Errors
/// [`Kind::Pending`] while another run is in hand; when the node cannot be captured.
pub fn intended(context: &Context<'_>, wanted: &CleanupScope) -> Result<Vec<Edit>> {
    refuse_pending(context)?;
    wanted.edits(context.catalogue, &observe(context.tools, context.sink)?)
}

/// What a clean-up did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The run, if there was anything to do.
    pub run: Option<String>,
    /// The snapshot to go back to.
    pub snapshot: Option<String>,
    /// Objects removed.
    pub removed: usize,
    /// What others changed meanwhile; kept.
    pub others: Vec<String>,
    /// Seconds that are left to confirm it; none if it needs no confirmation.
    pub confirm_within: Option<u64>,
}

/// Cleans the node up. `approve` is asked once, with the plan, before anything is changed. With
/// `confirm_within`, the run is undone when nobody confirms it in that time.
///
/// # Errors
/// [`Kind::RolledBack`] or [`Kind::NotRolledBack`] when it failed after it had changed something;
/// otherwise the node is as before.
pub fn cleanup(
    context: &Context<'_>,
    wanted: &CleanupScope,
    confirm_within: Option<Duration>,
    approve: &dyn Fn(&Plan) -> Result<bool>,
) -> Result<Report> {
    let _lock = context.lock(RunKind::CLEANUP)?;
    refuse_pending(context)?;
    let first = wanted.plan(context.catalogue, &observe(context.tools, context.sink)?)?;
    if first.is_empty() {
        return Ok(Report {
            run: None,
            snapshot: None,
            removed: 0,
            others: Vec::new(),
            confirm_within: None,
        });
    }
    if !approve(&first)? {
        return Err(Error::new(
            Kind::Interrupted,
            RunKind::CLEANUP,
            "declined; nothing was changed",
        ));
    }
    drop(first);
    // Attempts that were refused before they became runs leave their snapshots behind.
    prune(context)?;
    let snapshot = take_snapshot(context, "before cleanup")?.snapshot;
    // Read from there again: what is captured lies scattered in memory, and none of it is given back.
    let state = parse_snapshot(Snapshot::load(&snapshot.dir)?.files)?;
    let plan = wanted.plan(context.catalogue, &state)?;
    let edits = edits(&plan, &state);
    let kind = RunKind::Cleanup(run::Cleanup {
        owners: wanted.owners.clone(),
        black_holes: wanted.black_holes,
        objects: plan.removals().count(),
        confirm_within: confirm_within.map(|time| time.as_secs()),
    });
    // A large plan is as large as the node, and so is its state, which the snapshot has.
    drop(plan);
    let taken = Baseline { snapshot, state: remaining_state(state, &edits)? };
    let edits = detach(edits)?;
    // What is no leftover must be told to the rehearsal.
    let tried = if wanted.black_holes { Tried::Edits(&edits) } else { Tried::CleanUp };
    rehearse(context, &taken, tried)?;
    let _change = interrupt::change();
    let (mut run, mut journal) = begin(context, kind, &taken, &edits, 0)?;
    if confirm_within.is_some() {
        run.pending = Some(Pending::new(RunStage::CLEAN, STAGE_TIME));
        if let Err(e) = watchdog::arm(context, &mut run) {
            context.store.finish(&mut run, RunState::Failed)?;
            return Err(e);
        }
    }
    clean(context, &mut run, &mut journal, &taken.state, edits, wanted)
}

/// Makes the edits, and on a lost race those of a new plan.
fn clean(
    context: &Context<'_>,
    run: &mut Run,
    journal: &mut Journal,
    base: &NodeState,
    edits: Vec<Edit>,
    wanted: &CleanupScope,
) -> Result<Report> {
    let plan_again =
        || wanted.edits(context.catalogue, &observe_tolerant(context.tools, context.sink)?);
    let changed = apply_or_undo(context, run, journal, RunStage::CLEAN, base, edits, &plan_again)?;
    if let Some(time) = run.confirm_within().filter(|_| run.pending.is_some()) {
        confirm::wait_for(context, run, time)?;
    }
    let (id, snapshot) = (Some(run.id.clone()), Some(run.snapshot.clone()));
    let confirm_within = run.pending.as_ref().map(|s| s.left().as_secs());
    Ok(Report {
        run: id,
        snapshot,
        removed: changed.objects,
        others: changed.others,
        confirm_within,
    })
}

/// Goes on with a clean-up that was cut off; the caller holds the node's lock.
///
/// # Errors
/// [`Kind::NotFound`] when it had changed nothing; [`Kind::Pending`] when only a rollback can be
/// offered.
pub(super) fn keep_waiting(context: &Context<'_>, mut run: Run) -> Result<Report> {
    rollback::same_boot(context, &mut run)?;
    let wanted = match &run.kind {
        RunKind::Cleanup(options) => wanted_of(options),
        RunKind::Fix { .. } => return Err(fix::not_resumed(&run.id)),
        RunKind::Migrate(_) => {
            return Err(Error::new(Kind::Unexpected, format!("run {}", run.id), "is no clean-up"));
        }
    };
    let base = load_baseline(context, &run)?;
    let dir = context.store.run_dir(&run.id);
    let only_back = |cause: &str| {
        Error::new(Kind::Pending, format!("run {}", run.id), cause)
            .hint("`proxyshift rollback` brings the node back")
    };
    if !dir.join(JOURNAL).exists() {
        // It died before it could change anything.
        context.store.finish(&mut run, RunState::Failed)?;
        return Err(Error::new(
            Kind::NotFound,
            "resume",
            "the run had not changed anything; it is closed",
        )
        .hint("start again with `proxyshift cleanup`"));
    }
    let (mut journal, lines) = Journal::open(&dir)?;
    let replay = replay(lines)?;
    if replay.rolling_back {
        return Err(only_back("it had begun to roll back"));
    }
    let now = observe_tolerant(context.tools, context.sink)?;
    if let Some((edit, step)) = &replay.open {
        match outcome(edit, &base, &now) {
            Outcome::Done => step.mark_done(&mut journal)?,
            Outcome::NotDone => {}
            Outcome::Unclear => {
                return Err(only_back(
                    "the kernel shows neither the state before nor after its last edit",
                ));
            }
        }
    }
    run.claim();
    if let Some(pending) = &mut run.pending {
        pending.set_deadline(STAGE_TIME);
    }
    context.store.update(&run)?;
    context.sink.run(&run.id, run.verb());
    watchdog::arm(context, &mut run)?;
    let left = wanted.edits(context.catalogue, &now)?;
    clean(context, &mut run, &mut journal, &base, left, &wanted)
}

/// What the operator wanted of a clean-up.
pub(super) fn wanted_of(options: &run::Cleanup) -> CleanupScope {
    CleanupScope { owners: options.owners.clone(), black_holes: options.black_holes }
}
