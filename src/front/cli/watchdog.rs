//! The hidden verb of the watchdogs, and of their attempts to undo a run.

use std::path::Path;

use crate::error::Result;
use crate::front::cli::args::WatchdogArgs;
use crate::front::cli::command::{Invocation, as_root};
use crate::run::rollback::{rollback_run, undo_again};
use crate::run::watchdog::{AttemptResult, Role, Watched, armed_line, ignore_signals, watch};
use crate::store::DEFAULT_DIR;

pub(in crate::front) fn run(command: &Invocation<'_>, options: &WatchdogArgs) -> Result<u8> {
    if matches!(options.role, Role::Undo | Role::UndoAgain) {
        return undo(command, options);
    }
    as_root()?;
    let watched = Watched {
        store: command.args.store.as_deref().unwrap_or(Path::new(DEFAULT_DIR)),
        id: &options.run,
        role: options.role,
        first: options.first,
        sink: command.sink(),
    };
    watch(&watched, &|form| command.ui.print(armed_line(form)))?;
    Ok(0)
}

/// Undoes the run in this process, for a watchdog.
fn undo(command: &Invocation<'_>, options: &WatchdogArgs) -> Result<u8> {
    let WatchdogArgs { run, why, .. } = options;
    ignore_signals()?;
    // A store that is away is not made anew.
    if command.store()?.run(run)?.is_none() {
        command.ui.print_json(&AttemptResult { undone: false });
        return Ok(0);
    }
    let report = command.with_context(|context| {
        context.sink.warning(format!("run {run}: {why}; rolling back"));
        match options.role {
            Role::UndoAgain => undo_again(context, run),
            _ => rollback_run(context, run),
        }
    })?;
    command.ui.print_json(&AttemptResult { undone: report.is_some() });
    Ok(0)
}
