//! Leftovers out, nothing else: snapshot, rehearsal, edits, proof. And going on with a clean-up
//! that was cut off.

use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::event::{Event, Sink};
use crate::owners::matcher::Ownership;
use crate::plan::edit::{Edit, edits};
use crate::plan::invariants::{Outcome, outcome};
use crate::plan::leftovers::leftovers;
use crate::plan::{Action, Plan};
use crate::run::Context;
use crate::run::change::{begin, carry_out, prune, refuse_pending};
use crate::run::execute::{CLEAN, settle, told};
use crate::run::fix;
use crate::run::inside::{self, Job};
use crate::run::look::{look, look_again};
use crate::run::rollback;
use crate::run::take::{Taken, parsed, take};
use crate::state::NodeState;
use crate::store::journal::Journal;
use crate::store::runs::{Run, RunState};
use crate::store::snapshots::Snapshot;

/// How many snapshots, and how many runs, are kept after a run.
pub const KEEP: usize = 10;

/// The plan for `state`: its leftovers, of these owners only if any are named.
///
/// # Errors
/// When the state cannot be judged.
pub fn plan(context: &Context<'_>, state: &NodeState, owners: &[String]) -> Result<Plan> {
    plan_with(context.catalogue, state, owners)
}

/// As [`plan`], without a store.
pub fn plan_with(
    catalogue: &crate::owners::catalogue::Catalogue,
    state: &NodeState,
    owners: &[String],
) -> Result<Plan> {
    let ownership = Ownership::of(catalogue, state);
    let mut plan = leftovers(catalogue, state, &ownership);
    if !owners.is_empty() {
        for object in plan.objects.iter_mut().filter(|o| o.action == Action::Remove) {
            if !owners.iter().any(|o| **o == *object.owner) {
                object.action = Action::Keep;
                object.reason =
                    format!("a leftover, but of an owner not asked for: {}", object.reason).into();
            }
        }
        plan.objects.sort();
    }
    Ok(plan)
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
}

/// Cleans the node up. `approve` is asked once, with the plan, before anything is changed.
///
/// # Errors
/// [`Kind::RolledBack`] or [`Kind::NotRolledBack`] when it failed after it had changed something;
/// otherwise the node is as before.
pub fn cleanup(
    context: &Context<'_>,
    owners: &[String],
    approve: &dyn Fn(&Plan) -> Result<bool>,
) -> Result<Report> {
    let _lock = context.lock("cleanup")?;
    refuse_pending(context)?;
    let first = plan(context, &look(context.tools, context.sink)?, owners)?;
    if first.is_empty() {
        return Ok(Report { run: None, snapshot: None, removed: 0, others: Vec::new() });
    }
    if !approve(&first)? {
        return Err(Error::new(Kind::Interrupted, "cleanup", "declined; nothing was changed"));
    }
    drop(first);
    // Attempts that were refused before they became runs leave their snapshots behind.
    prune(context)?;
    let taken = take(context, "before cleanup")?;
    let plan = plan(context, &taken.state, owners)?;
    let edits = edits(&plan, &taken.state);
    rehearse(context, &taken, None)?;
    let summary = json!({"owners": owners, "remove": plan.removals().count()});
    // A large plan is as large as the node.
    drop(plan);
    let (mut run, mut journal) = begin(context, "cleanup", &taken, summary, &edits)?;
    clean(context, &mut run, &mut journal, &taken.state, edits, owners)
}

/// The run's edits on a private namespace first, the clean-up's if none are given. What happens
/// there is said as a rehearsal, so that nobody takes it for the node.
pub(super) fn rehearse(context: &Context<'_>, taken: &Taken, edits: Option<&[Edit]>) -> Result<()> {
    let task = "rehearsing in a private namespace";
    context.sink.started(task);
    let sink = Rehearsal(context.sink);
    let dir = &taken.snapshot.dir;
    let report = match edits {
        Some(edits) => inside::mend(edits, dir, context.tools, &sink)?,
        None => inside::run(Job::Rehearse, dir, context.tools, &sink)?,
    };
    context.sink.finished(task, format!("{} proofs", report.proofs.len()));
    Ok(())
}

/// Passes events on as those of a rehearsal.
struct Rehearsal<'a>(&'a dyn Sink);

impl Sink for Rehearsal<'_> {
    fn emit(&self, event: Event) {
        let said = |text: String| format!("rehearsal: {text}");
        self.0.emit(match event {
            Event::Started { task } => Event::Started { task: said(task) },
            Event::Finished { task, result } => Event::Finished { task: said(task), result },
            Event::Proved { what, evidence } => Event::Proved { what: said(what), evidence },
            Event::Note { text } => Event::Note { text: said(text) },
            Event::Warning { text } => Event::Warning { text: said(text) },
        });
    }
}

/// Makes the edits, and on a lost race those of a new plan.
fn clean(
    context: &Context<'_>,
    run: &mut Run,
    journal: &mut Journal,
    base: &NodeState,
    edits: Vec<Edit>,
    owners: &[String],
) -> Result<Report> {
    let plan_again = || {
        let now = look_again(context.tools, context.sink)?;
        Ok(crate::plan::edit::edits(&plan(context, &now, owners)?, &now))
    };
    let changed = carry_out(context, run, journal, CLEAN, base, edits, &plan_again)?;
    let (id, snapshot) = (Some(run.id.clone()), Some(run.snapshot.clone()));
    Ok(Report { run: id, snapshot, removed: changed.objects, others: changed.others })
}

/// Goes on with the unfinished clean-up.
///
/// # Errors
/// [`Kind::NotFound`] when there is none; [`Kind::Pending`] when only a rollback can be offered.
pub fn resume(context: &Context<'_>) -> Result<Report> {
    let _lock = context.lock("resume")?;
    let Some(mut run) = context.store.pending()? else {
        return Err(Error::new(Kind::NotFound, "resume", "no run is pending")
            .hint("`proxyshift status` lists the runs"));
    };
    rollback::same_boot(context, &mut run)?;
    if run.verb == fix::FIX {
        return Err(fix::not_resumed(&run.id));
    }
    let base = base_of(context, &run)?;
    let dir = context.store.run_dir(&run.id);
    let only_back = |cause: &str| {
        Error::new(Kind::Pending, format!("run {}", run.id), cause)
            .hint("`proxyshift rollback` brings the node back")
    };
    if !dir.join(crate::store::journal::JOURNAL).exists() {
        // It died before it could change anything.
        context.store.finish(&mut run, RunState::Failed)?;
        return Err(Error::new(
            Kind::NotFound,
            "resume",
            "the run had not changed anything; it is closed",
        )
        .hint("start again with `proxyshift cleanup`"));
    }
    let (mut journal, entries) = Journal::open(&dir)?;
    let told = told(&entries)?;
    if told.rolling_back {
        return Err(only_back("it had begun to roll back"));
    }
    let now = look_again(context.tools, context.sink)?;
    if let Some((edit, entry)) = &told.open {
        match outcome(edit, &base, &now) {
            Outcome::Done => settle(&mut journal, entry)?,
            Outcome::NotDone => {}
            Outcome::Unclear => {
                return Err(only_back(
                    "the kernel shows neither the state before nor after its last edit",
                ));
            }
        }
    }
    run.take_over();
    context.store.update(&run)?;
    let owners = owners_of(&run);
    let left = edits(&plan(context, &now, &owners)?, &now);
    clean(context, &mut run, &mut journal, &base, left, &owners)
}

fn owners_of(run: &Run) -> Vec<String> {
    let names = run.plan["owners"].as_array().into_iter().flatten();
    names.filter_map(|n| n.as_str().map(str::to_owned)).collect()
}

/// The state that a run goes back to.
pub(super) fn base_of(context: &Context<'_>, run: &Run) -> Result<NodeState> {
    let snapshot = context.store.find(&run.snapshot)?;
    let loaded = Snapshot::load(&snapshot.dir)?;
    loaded.for_rollback()?;
    parsed(loaded.files)
}
