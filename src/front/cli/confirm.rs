//! The verbs `confirm` and `extend`.

use std::time::Duration;

use serde_json::json;

use crate::error::Result;
use crate::front::cli::command::Invocation;
use crate::front::cli::status::time;
use crate::run::confirm::{self, Confirmed};

pub(in crate::front) fn confirm(command: &Invocation<'_>) -> Result<u8> {
    let (run, changed) = match command.with_context(confirm::confirm)? {
        Confirmed::Now(run) => (run, true),
        Confirmed::Already(run) => (run, false),
    };
    let document = json!({
        "schema": "proxyshift.confirm", "version": 1, "run": run.id, "changed": changed,
    });
    let text = if changed {
        format!("Run {} is confirmed and stays.", run.id)
    } else {
        format!("Nothing waits; run {} was confirmed before.", run.id)
    };
    command.answer(&document, text);
    Ok(0)
}

pub(in crate::front) fn extend(command: &Invocation<'_>, by: Duration) -> Result<u8> {
    let run = command.with_context(|context| confirm::extend(context, by))?;
    let left = run.pending.as_ref().map(|s| s.left()).unwrap_or_default();
    let document = json!({
        "schema": "proxyshift.extend", "version": 1, "run": run.id, "seconds_left": left.as_secs(),
    });
    let text = format!("Run {} is undone in {} unless it is confirmed.", run.id, time(left));
    command.answer(&document, text);
    Ok(0)
}
