//! Edits, one after the other, journaled before and after.

use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::apply::Applied;
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::interrupt;
use crate::plan::change::{Direction, Edit, Target};
use crate::run::Context;
use crate::state::stage::RunStage;
use crate::store::journal::{Entry, Journal, Mark, Record};

/// How often a lost race leads to a new plan before the run gives up.
const RACES: usize = 5;

/// How often an edit is tried again on a node that is too busy for a short lock.
const BUSY: usize = 5;

/// How long the lock is left to others before a new try: iptables asks for it once a second.
const PAUSE: Duration = Duration::from_secs(1);

/// The stages whose entries are edits.
const STAGES: [RunStage; 3] = [RunStage::CLEAN, RunStage::Fix, RunStage::Rollback];

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
    let (mut step, mut races, mut applied) = (0, 0, Vec::new());
    let undoing = stage == RunStage::Rollback;
    let done = if undoing { Mark::Undone } else { Mark::Done };
    while let Some(edit) = edits.pop_front() {
        if !undoing {
            interrupt::check(stage.name())?;
        }
        step += 1;
        let words = if undoing { edit.describe_undo() } else { edit.to_string() };
        let task = Task::Edit { edit: words };
        context.sink.started(&task);
        journal.append(record(stage, step, Mark::Intent, &edit))?;
        match apply(context, &edit, undoing) {
            Ok(result) => {
                journal.append(record(stage, step, done, &edit))?;
                if let Some(difference) = result.unexpected.first() {
                    context.sink.finished(&task, Outcome::AppliedUnexpectedly);
                    let cause = "this changed too, and nobody else wrote";
                    return Err(Error::new(Kind::Kernel, difference.to_string(), cause));
                }
                context.sink.finished(&task, Outcome::Applied);
                applied.push(edit);
            }
            Err(e) => {
                journal.append(failure(stage, step, &e))?;
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

fn record<'a>(stage: RunStage, step: u32, kind: Mark, edit: &'a Edit) -> Record<Option<&'a Edit>> {
    // What became of an edit needs no second copy of it.
    let edit = Some(edit).filter(|_| kind == Mark::Intent);
    Record { stage: stage.name().into(), step, kind, edit, undo: Value::Null }
}

fn failure<'a>(stage: RunStage, step: u32, error: &'a Error) -> Record<&'a Error> {
    Record { stage: stage.name().into(), step, kind: Mark::Failed, edit: error, undo: Value::Null }
}

/// What a line of the journal has in the place of its edit: an edit, an error, or nothing. Read as
/// such, for a large edit in general JSON is several times as large.
#[derive(Debug, Deserialize)]
pub struct Noted {
    direction: Option<Direction>,
    target: Option<Target>,
}

/// A line of a run's journal.
pub type Line = Entry<Option<Noted>>;

/// Where an intent stands.
#[derive(Debug)]
pub struct Place {
    stage: String,
    step: u32,
}

/// What a journal says of its edits.
#[derive(Debug, Default)]
pub struct Told {
    /// Edits that were made, in order.
    pub done: Vec<Edit>,
    /// An edit that was begun, and of which nothing more is known.
    pub open: Option<(Edit, Place)>,
    /// True once the run began to be undone.
    pub rolling_back: bool,
}

/// Reads a journal's entries.
///
/// # Errors
/// [`Kind::Store`] when an intent is not an edit.
pub fn told(entries: Vec<Line>) -> Result<Told> {
    let mut told = Told::default();
    let mut intent: Option<Line> = None;
    // Other stages change no objects of the kernel's.
    for entry in entries {
        let Some(stage) = RunStage::find(&entry.stage).filter(|s| STAGES.contains(s)) else {
            continue;
        };
        if stage == RunStage::Rollback {
            // An edit that was open when the run began to be undone may be in the kernel all the
            // same: it stays open, for the next rollback to look at.
            told.rolling_back = true;
            continue;
        }
        match entry.kind {
            Mark::Intent => intent = Some(entry),
            Mark::Done => told.done.extend(intent.take().map(edit).transpose()?),
            Mark::Failed | Mark::Undone => intent = None,
            Mark::Extended | Mark::Confirmed => {}
        }
    }
    if let Some(entry) = intent {
        let place = Place { stage: entry.stage.clone(), step: entry.step };
        told.open = Some((edit(entry)?, place));
    }
    Ok(told)
}

fn edit(entry: Line) -> Result<Edit> {
    let noted = entry.edit.and_then(|noted| Some((noted.direction?, noted.target?)));
    let (direction, target) = noted.ok_or_else(|| {
        Error::new(Kind::Store, format!("journal entry {}", entry.seq), "holds no edit")
    })?;
    Ok(Edit { direction, target })
}

/// Closes an intent of which the kernel shows that it was carried out.
pub fn settle(journal: &mut Journal, place: &Place) -> Result<()> {
    let (edit, undo) = (Value::Null, Value::Null);
    let stage = place.stage.clone();
    journal.append(Record { stage, step: place.step, kind: Mark::Done, edit, undo }).map(|_| ())
}
