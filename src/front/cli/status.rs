//! The verb `status`: the pending run, and the last runs.

use std::time::Duration;

use serde_json::json;

use crate::error::Result;
use crate::front::cli::command::Invocation;
use crate::run::caller::begun_by;
use crate::run::watchdog::{form_of, watchdog_of};
use crate::store::run::{Run, RunState};
use crate::ui::page::Page;

pub(in crate::front) fn run(command: &Invocation<'_>) -> Result<u8> {
    let store = command.store()?;
    let current = store.pending()?;
    let mut runs = store.runs()?;
    runs.reverse();
    runs.truncate(10);
    let document = json!({
        "schema": "proxyshift.status", "version": 1,
        "pending": current.as_ref().map(row), "runs": runs.iter().map(row).collect::<Vec<_>>(),
    });
    let mut text = Page::from(match &current {
        None => "No run is pending.".to_owned(),
        Some(run) => capital(&pending(run)) + "." + &watched(run),
    });
    let lines = runs.iter().map(|r| {
        vec![
            r.id.clone(),
            r.verb().to_owned(),
            state(r),
            r.started.clone(),
            format!("snapshot {}", r.snapshot),
        ]
    });
    text.columns(&lines.collect::<Vec<_>>());
    command.answer(&document, text);
    Ok(if current.is_some() { 6 } else { 0 })
}

/// A sentence on the state of a pending run, and on the verbs that resolve it.
pub(in crate::front) fn pending(run: &Run) -> String {
    let id = &run.id;
    let verbs = "`proxyshift resume` goes on with it, `proxyshift rollback` undoes it";
    let Some(pending) = &run.pending else {
        return if run.runner_is_alive() {
            format!("run {id} is under way in process {}", run.pid)
        } else {
            format!("run {id} was cut off: {verbs}")
        };
    };
    let stage = &pending.stage;
    let watched = if watchdog_of(run).is_some() {
        format!("it is undone in {}", time(pending.left()))
    } else {
        "nobody stands by to undo it".into()
    };
    match run.state {
        RunState::Unconfirmed if pending.left().is_zero() => format!(
            "run {id} was not confirmed in time: `proxyshift rollback` undoes it, if the watchdog \
             has not done so already"
        ),
        RunState::Unconfirmed => format!(
            "run {id} waits to be confirmed, else {watched}: `proxyshift confirm` keeps it, \
             `proxyshift extend T` waits longer, `proxyshift rollback` undoes it now"
        ),
        _ if run.runner_is_alive() => {
            format!("run {id} is under way in process {}, at its stage {stage}", run.pid)
        }
        _ => format!("run {id} was cut off at its stage {stage}, and {watched}: {verbs}"),
    }
}

/// A sentence on who watches a pending run; empty if that is not known.
fn watched(run: &Run) -> String {
    form_of(run).map_or_else(String::new, |form| format!(" It is watched by {form}."))
}

/// A duration as text: `4 min 30 s`.
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

/// A run as one row of a JSON document.
pub(in crate::front) fn row(run: &Run) -> serde_json::Value {
    let pending = run.pending.as_ref();
    json!({
        "id": run.id, "verb": run.verb(), "state": state(run), "started": run.started,
        "by": begun_by(run), "snapshot": run.snapshot, "alive": run.runner_is_alive(),
        "stage": pending.map(|s| s.stage),
        "from": run.modes().map(|modes| modes.from),
        "to": run.modes().map(|modes| modes.to),
        "seconds_left": pending.filter(|_| run.state.is_pending()).map(|s| s.left().as_secs()),
        "watchdog": pending.map(|_| watchdog_of(run).is_some()),
    })
}
