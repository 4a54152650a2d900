//! Edits, one after the other, journaled before and after.

use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use crate::apply::Applied;
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::interrupt;
use crate::plan::change::{Change, Edit};
use crate::run::Context;
use crate::run::payload::StepRef;
use crate::state::stage::RunStage;
use crate::store::journal::Journal;

/// How often a lost race leads to a new plan before the run gives up.
const RACES: usize = 5;

/// How often an edit is tried again on a node that is too busy for a short lock.
const BUSY: usize = 5;

/// How long the lock is left to others before a new try: iptables asks for it once a second.
const PAUSE: Duration = Duration::from_secs(1);

/// Applies `edits`; on a lost race, whatever `plan_again` says is left to do. Returns those that were
/// applied.
///
/// # Errors
/// The first failure, journaled. What was applied before it stays, for the caller to undo.
pub fn execute(
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
                    context.sink.finished(&task, Outcome::AppliedUnexpectedly);
                    let cause = "this changed too, and nobody else wrote";
                    return Err(Error::new(Kind::Kernel, difference.to_string(), cause));
                }
                context.sink.finished(&task, Outcome::Applied);
                applied.push(edit);
            }
            Err(e) => {
                step.mark_failed(journal, &e)?;
                context.sink.finished(&task, Outcome::NotApplied { cause: e.to_string() });
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

/// Makes one edit. When others would wait for the xtables lock for too long, it is tried again. Undoing
/// is not given up for that, nor for a lock that was not to be had: in the end others wait for as long
/// as it takes.
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
