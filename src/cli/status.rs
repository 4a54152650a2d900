//! `status`: the run in hand, and the last ones.

use serde_json::json;

use crate::cli::Command;
use crate::error::Result;
use crate::store::runs::Run;
use crate::ui::table::columns;

pub(super) fn run(command: &Command<'_>) -> Result<u8> {
    let store = command.store()?;
    let pending = store.pending()?;
    let mut runs = store.runs()?;
    runs.reverse();
    runs.truncate(10);
    let document = json!({
        "schema": "proxyshift.status", "version": 1,
        "pending": pending.as_ref().map(row), "runs": runs.iter().map(row).collect::<Vec<_>>(),
    });
    let mut text = match &pending {
        None => "No run is pending.\n".to_owned(),
        Some(run) if run.runner_is_alive() => {
            format!("Run {} is under way in process {}.\n", run.id, run.pid)
        }
        Some(run) => format!(
            "Run {} was cut off. `proxyshift resume` goes on with it, `proxyshift rollback` undoes \
             it.\n",
            run.id
        ),
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
    Ok(if pending.is_some() { 6 } else { 0 })
}

fn state(run: &Run) -> String {
    serde_json::to_value(run.state)
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn row(run: &Run) -> serde_json::Value {
    json!({
        "id": run.id, "verb": run.verb, "state": state(run), "started": run.started,
        "snapshot": run.snapshot, "alive": run.runner_is_alive(),
    })
}
