//! `status`: the run in hand, and the last ones.

use std::time::Duration;

use serde_json::json;

use crate::error::Result;
use crate::front::cli::command::Command;
use crate::store::run::{Run, RunState, WatchdogProcess};
use crate::ui::table::columns;

pub(in crate::front) fn run(command: &Command<'_>) -> Result<u8> {
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
            r.verb().to_owned(),
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
pub(in crate::front) fn pending(run: &Run) -> String {
    let id = &run.id;
    let ways = "`proxyshift resume` goes on with it, `proxyshift rollback` undoes it";
    let Some(pending) = &run.pending else {
        return match run.runner_is_alive() {
            true => format!("run {id} is under way in process {}", run.pid),
            false => format!("run {id} was cut off: {ways}"),
        };
    };
    let (stage, left) = (&pending.stage, time(pending.left()));
    let watched = match pending.watchdog.is_some_and(WatchdogProcess::is_alive) {
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
pub(in crate::front) fn row(run: &Run) -> serde_json::Value {
    let pending = run.pending.as_ref();
    json!({
        "id": run.id, "verb": run.verb(), "state": state(run), "started": run.started,
        "snapshot": run.snapshot, "alive": run.runner_is_alive(),
        "stage": pending.map(|s| s.stage),
        "from": run.modes().map(|modes| modes.from),
        "to": run.modes().map(|modes| modes.to),
        "seconds_left": pending.filter(|_| run.state.is_pending()).map(|s| s.left().as_secs()),
        "watchdog": pending.map(|s| s.watchdog.is_some_and(WatchdogProcess::is_alive)),
    })
}
