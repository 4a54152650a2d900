//! The verbs `confirm` and `extend`: keep a run, or give it more time.

use std::time::Duration;

use serde::de::IgnoredAny;

use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::run::announce::announce;
use crate::run::payload::{Payload, StepRef};
use crate::run::stage::switch;
use crate::run::{Context, boot_unit, watchdog};
use crate::state::kubernetes::NoteState;
use crate::state::stage::RunStage;
use crate::store::journal::{Journal, Mark};
use crate::store::run::{Run, RunState};

/// The run that `confirm` confirms, or the run that was confirmed already.
#[derive(Debug, Clone, PartialEq)]
pub enum Confirmed {
    /// This run was unconfirmed, and is confirmed now.
    Now(Run),
    /// No run was unconfirmed. This is the last run, and it was confirmed earlier.
    Already(Run),
}

/// Confirms the unconfirmed run, so that it is kept.
///
/// # Errors
/// [`Kind::NotFound`] when no run is unconfirmed (the error names a run that was rolled back
/// meanwhile); [`Kind::Pending`] when the pending run does not wait to be confirmed yet.
pub fn confirm(context: &Context<'_>) -> Result<Confirmed> {
    let _lock = context.lock("confirm")?;
    let _change = interrupt::begin_change();
    let found = awaited(context)?;
    let Confirmed::Now(mut run) = found else { return Ok(found) };
    if let Err(e) = note(context, &run, Mark::Confirmed, None) {
        // A run that is kept needs no journal; only its undo does.
        context.sink.warning(format!("the run can no longer be undone: {e}"));
    }
    switch::forget(context, &run, true);
    context.store.finish(&mut run, RunState::Done)?;
    boot_unit::remove(context, &run);
    Ok(Confirmed::Now(run))
}

/// The run that [`confirm`] would confirm; nothing is changed.
///
/// # Errors
/// As [`confirm`].
pub fn awaited(context: &Context<'_>) -> Result<Confirmed> {
    let Some(run) = context.store.pending()? else {
        let last = context.store.runs()?.into_iter().rfind(|r| r.pending.is_some());
        return match last {
            Some(run) if run.state == RunState::Done => Ok(Confirmed::Already(run)),
            Some(run) => Err(Error::new(Kind::NotFound, format!("run {}", run.id), ended(&run))
                .hint("`proxyshift status` says what became of it")),
            None => Err(Error::new(Kind::NotFound, "confirm", "no run waits for it")),
        };
    };
    waits(&run)?;
    Ok(Confirmed::Now(run))
}

/// Moves the deadline of the unconfirmed run to `time` from now. Returns the run.
///
/// # Errors
/// As [`confirm`].
pub fn extend(context: &Context<'_>, time: Duration) -> Result<Run> {
    let _lock = context.lock("extend")?;
    let Some(mut run) = context.store.pending()? else {
        return Err(Error::new(Kind::NotFound, "extend", "no run waits to be confirmed"));
    };
    waits(&run)?;
    note(context, &run, Mark::Extended, Some(Payload::Extended { seconds: time.as_secs() }))?;
    if let Some(pending) = &mut run.pending {
        pending.set_deadline(time);
    }
    context.store.update(&mut run)?;
    watchdog::arm(context, &mut run)?;
    announce(context, &run, NoteState::Unconfirmed);
    Ok(run)
}

fn ended(run: &Run) -> &'static str {
    match run.state {
        RunState::RolledBack => "was rolled back",
        RunState::UndonePartly => "failed, and could not be rolled back entirely",
        RunState::Rebooted => "ended with a reboot",
        _ => "ended before there was anything to confirm",
    }
}

fn waits(run: &Run) -> Result<()> {
    let pending = |cause: &str, hint: &str| {
        Err(Error::new(Kind::Pending, format!("run {}", run.id), cause).hint(hint))
    };
    match &run.pending {
        Some(waiting) if run.state == RunState::Unconfirmed => {
            if !waiting.left().is_zero() {
                return Ok(());
            }
            pending(
                "its time to be confirmed is over",
                "`proxyshift status` shows it being undone; `proxyshift rollback` undoes it now",
            )
        }
        _ if run.runner_is_alive() => {
            pending("is still under way", "wait until it has come to its last stage")
        }
        _ => pending(
            "was cut off",
            "`proxyshift resume` goes on with it, `proxyshift rollback` undoes it",
        ),
    }
}

fn note(context: &Context<'_>, run: &Run, kind: Mark, payload: Option<Payload>) -> Result<()> {
    let (mut journal, _) = Journal::open::<IgnoredAny>(&context.store.folder(&run.id))?;
    StepRef::new(RunStage::CONFIRM.name(), 1).append(&mut journal, kind, payload)
}
