//! Applies edits one after the other. Each edit is journaled before it is made and again after.

use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use crate::apply::Applied;
use crate::error::{Error, Kind, Result};
use crate::event::{self, Task};
use crate::interrupt;
use crate::plan::change::{Change, Direction, Edit};
use crate::plan::invariants::{EditProgress, progress, unexpected_changes};
use crate::run::Context;
use crate::run::payload::{StepRef, replay};
use crate::run::writers::Writers;
use crate::state::NodeState;
use crate::state::stage::RunStage;
use crate::store::journal::{self, Journal};
use crate::store::run::Run;

/// After how many lost races, each followed by a new plan, the run gives up.
const RACES: usize = 5;

/// How often an edit is tried on a node so busy that the xtables lock would be held for too long.
const BUSY: usize = 5;

/// The pause before an edit is tried again. iptables asks for the xtables lock once a second, so
/// other programs get the lock during the pause.
const PAUSE: Duration = Duration::from_secs(1);

/// What a stage that applies edits did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AppliedEdits {
    /// How many objects the applied edits changed.
    pub(super) objects: usize,
    /// Foreign changes that were made meanwhile and are kept, one sentence each.
    pub(super) foreign: Vec<String>,
}

/// Applies `edits`. When another writer was first (a lost race), the remaining edits are replaced
/// by those that `plan_again` plans. Returns the edits that were applied.
///
/// # Errors
/// The first failure, which is also in the journal. Earlier edits stay applied; the caller undoes
/// them.
pub(super) fn execute(
    context: &Context<'_>,
    journal: &mut Journal,
    stage: RunStage,
    edits: Vec<Edit>,
    plan_again: &dyn Fn() -> Result<Vec<Edit>>,
) -> Result<Vec<Edit>> {
    let mut edits = VecDeque::from(edits);
    let (mut number, mut races) = (0, 0);
    let mut applied = Vec::new();
    let undoing = stage == RunStage::Rollback;
    while let Some(edit) = edits.pop_front() {
        if !undoing {
            interrupt::check(stage.name())?;
        }
        number += 1;
        let step = StepRef::new(stage.name(), number);
        let words = if undoing { edit.describe_undo() } else { edit.to_string() };
        let task = Task::Edit { edit: words };
        context.sink.started(&task);
        step.begin(journal, Change::Objects(&edit))?;
        match apply(context, &edit, undoing) {
            Ok(result) => {
                if undoing {
                    step.mark_undone(journal)?;
                } else {
                    step.mark_done(journal)?;
                }
                if let Some(difference) = result.unexpected.first() {
                    context.sink.finished(&task, event::Outcome::AppliedUnexpectedly);
                    let cause = "this changed too, and nobody else wrote";
                    return Err(Error::new(Kind::Kernel, difference.to_string(), cause));
                }
                context.sink.finished(&task, event::Outcome::Applied);
                applied.push(edit);
            }
            Err(e) => {
                step.mark_failed(journal, &e)?;
                context.sink.finished(&task, event::Outcome::NotApplied { cause: e.to_string() });
                if e.kind != Kind::LostRace || races == RACES {
                    return Err(e);
                }
                races += 1;
                context.sink.note("someone else wrote first; planning again");
                edits = plan_again()?.into();
            }
        }
    }
    Ok(applied)
}

/// Applies one edit. Tries again while the node is too busy to hold the xtables lock for only a
/// short time. An undo is never given up because of the lock: the last try of an undo holds the
/// lock for as long as the edit takes.
fn apply(context: &Context<'_>, edit: &Edit, undoing: bool) -> Result<Applied> {
    let kernel = context.kernel();
    for _ in 0..BUSY {
        match kernel.apply(edit) {
            Err(e) if e.kind == Kind::Busy || undoing && e.kind == Kind::Lock => {
                context.sink.note(format!("{e}; trying again"));
                thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
    if !undoing {
        return kernel.apply(edit);
    }
    context.sink.note("now others wait for the xtables lock for as long as it takes");
    kernel.without_limit().apply(edit)
}

/// Applies `edits`, and verifies them against the kernel. `base` is the node state before the
/// edits, or the part of that state that the edits leave unchanged (see
/// [`remaining_state`](crate::plan::invariants::remaining_state)).
///
/// # Errors
/// As [`execute`]; [`Kind::Kernel`] when the kernel does not show the effect of an edit.
pub(super) fn apply_and_verify(
    context: &Context<'_>,
    run: &Run,
    journal: &mut Journal,
    stage: RunStage,
    base: &NodeState,
    edits: Vec<Edit>,
    plan_again: &dyn Fn() -> Result<Vec<Edit>>,
) -> Result<AppliedEdits> {
    let mut writers = Writers::of(base, &edits);
    execute(context, journal, stage, edits, plan_again)
        // The applied edits are dropped here, so that two copies are never in memory together. All
        // edits, including those from before a crash, are then read back from the journal.
        .map(drop)
        .and_then(|()| done_edits(context, run))
        .and_then(|done| verify(context, &done, base, &mut writers))
}

/// Verifies that the objects of `edits` have changed and that nothing else has, except by foreign
/// changes since the snapshot, which are named and kept.
fn verify(
    context: &Context<'_>,
    edits: &[Edit],
    base: &NodeState,
    writers: &mut Writers,
) -> Result<AppliedEdits> {
    let task = Task::VerifyKernel;
    context.sink.started(&task);
    let now = context.observe_objects()?;
    for edit in edits {
        if progress(edit, base, &now) != EditProgress::Done {
            let cause = match edit.direction {
                Direction::Remove => "is there again after the edit",
                Direction::Add => "is gone again after the edit",
            };
            return Err(Error::new(Kind::Kernel, edit.to_string(), cause));
        }
    }
    // Each transaction was compared with its plan when it was applied. So any other difference that
    // shows now is a foreign change, and is kept.
    let mut foreign = Vec::new();
    for id in base.rulesets.keys().chain(now.rulesets.keys()) {
        let (before, after) = (base.rulesets.get(id), now.rulesets.get(id));
        foreign
            .extend(unexpected_changes(*id, before, after, edits).iter().map(ToString::to_string));
    }
    foreign.sort();
    foreign.dedup();
    let all: usize = now.rulesets.values().map(|r| r.rule_count()).sum();
    let kept = all.saturating_sub(edits.iter().map(Edit::rules_added).sum());
    context.sink.finished(&task, event::Outcome::Unchanged { rules: kept });
    for change in &foreign {
        context.sink.note(format!("changed by someone else meanwhile, kept: {change}"));
    }
    if !foreign.is_empty() {
        writers.others(edits).into_iter().for_each(|text| context.sink.note(text));
    }
    Ok(AppliedEdits { objects: edits.iter().map(Edit::objects).sum(), foreign })
}

fn done_edits(context: &Context<'_>, run: &Run) -> Result<Vec<Edit>> {
    Ok(replay(journal::read(&context.store.folder(&run.id))?)?.done)
}
