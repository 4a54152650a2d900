//! `status`: the run in hand, and the last ones.

use std::time::Duration;

use serde_json::json;

use crate::cli::Command;
use crate::error::Result;
use crate::store::run::{Run, RunState, Standby};
use crate::ui::table::columns;

pub(super) fn run(command: &Command<'_>) -> Result<u8> {
    let store = command.store()?;
    let in_hand = store.pending()?;
    let mut runs = store.runs()?;
    runs.reverse();
    runs.truncate(10);
    let document = json!({
        "schema": "proxyshift.status", "version": 1,
        "pending": in_hand.as_ref().map(row), "runs": runs.iter().map(row).collect::<Vec<_>>(),
    });
    let mut text = match &in_hand {
        None => "No run is pending.\n".to_owned(),
        Some(run) => capital(&pending(run)) + ".\n",
    };
    let lines = runs.iter().map(|r| {
        vec![
            r.id.clone(),
            r.verb.clone(),
            state(r),
            r.started.clone(),
            format!("snapshot {}", r.snapshot),
        ]
    });
    text += &columns(&lines.collect::<Vec<_>>());
    command.answer(&document, &text);
    Ok(if in_hand.is_some() { 6 } else { 0 })
}

/// What a pending run waits for, and what can be done with it.
pub(super) fn pending(run: &Run) -> String {
    let id = &run.id;
    let ways = "`proxyshift resume` goes on with it, `proxyshift rollback` undoes it";
    let Some(staged) = &run.staged else {
        return match run.runner_is_alive() {
            true => format!("run {id} is under way in process {}", run.pid),
            false => format!("run {id} was cut off: {ways}"),
        };
    };
    let (stage, left) = (&staged.stage, time(staged.left()));
    let watched = match staged.stand_by.is_some_and(Standby::is_alive) {
        true => format!("it is undone in {left}"),
        false => "nobody stands by to undo it".into(),
    };
    match run.state {
        RunState::Unconfirmed => format!(
            "run {id} waits to be confirmed, else {watched}: `proxyshift confirm` keeps it, \
             `proxyshift extend T` waits longer, `proxyshift rollback` undoes it now"
        ),
        _ if run.runner_is_alive() => {
            format!("run {id} is under way in process {}, at its stage {stage}", run.pid)
        }
        _ => format!("run {id} was cut off at its stage {stage}, and {watched}: {ways}"),
    }
}

/// `4 min 30 s`.
pub(super) fn time(time: Duration) -> String {
    let (minutes, seconds) = (time.as_secs() / 60, time.as_secs() % 60);
    match minutes {
        0 => format!("{seconds} s"),
        _ => format!("{minutes} min {seconds} s"),
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|c| c.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn state(run: &Run) -> String {
    serde_json::to_value(run.state)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// A run as part of a document.
pub(super) fn row(run: &Run) -> serde_json::Value {
    let staged = run.staged.as_ref();
    json!({
        "id": run.id, "verb": run.verb, "state": state(run), "started": run.started,
        "snapshot": run.snapshot, "alive": run.runner_is_alive(),
        "stage": staged.map(|s| &s.stage),
        "from": staged.and_then(|s| s.shift).map(|s| s.from),
        "to": staged.and_then(|s| s.shift).map(|s| s.to),
        "seconds_left": staged.filter(|_| run.state.is_pending()).map(|s| s.left().as_secs()),
        "stand_by": staged.map(|s| s.stand_by.is_some_and(Standby::is_alive)),
    })
}
