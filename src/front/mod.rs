//! The front ends: the command line, the Ansible module, and the wizard.

pub mod ansible;
pub mod cli;
mod wizard;

use crate::error::Kind;
use crate::front::cli::args::{Args, Verb};
use crate::front::cli::command::Invocation;
use crate::front::cli::{
    check, cleanup, cluster, completions, confirm, guard, migrate, output, plan, rehearse, report,
    rollback, signals, snapshot, status, watchdog,
};
use crate::node::launcher;
use crate::run::sandbox::{JsonLines, inside};
use crate::run::watchdog::ensure_running;
use crate::ui::{Ui, say_plainly};
use std::ffi::OsString;

/// Becomes another program, if `words` ask for that. Returns an exit code only if that failed. From
/// here on this process may start itself for that purpose.
pub fn launch(words: &[OsString]) -> Option<u8> {
    launcher::offer();
    let (caller, program) = launcher::requested(words)?;
    let (code, cause) = launcher::become_program(caller, program);
    say_plainly(&cause);
    Some(code)
}

/// Runs the command line. Returns the exit code.
pub fn run(args: &Args) -> u8 {
    // The user interface is leaked on purpose, because the signal handlers print through the user
    // interface until the process ends.
    let ui: &'static Ui = Box::leak(Box::new(Ui::new(args.output, args.progress, args.no_color)));
    let command = Invocation { args, ui };
    if let Err(e) = signals::watch(&command) {
        return ui.error(&e);
    }
    warn_of_strays(&command);
    warn_of_pending(&command);
    let result = match &args.verb {
        None => wizard::run(&command),
        Some(Verb::Check(options)) => check::run(&command, options),
        Some(Verb::Snapshot(verb)) => snapshot::run(&command, verb),
        Some(Verb::Plan(options)) => plan::run(&command, options),
        Some(Verb::Rehearse(options)) => rehearse::run(&command, options),
        Some(Verb::Migrate(options)) => migrate::run(&command, options),
        Some(Verb::Cleanup(options)) => cleanup::run(&command, options),
        Some(Verb::Cluster(verb)) => cluster::run(&command, verb),
        Some(Verb::Guard(options)) => guard::run(&command, options),
        Some(Verb::Resume) => cleanup::resume(&command),
        Some(Verb::Confirm) => confirm::confirm(&command),
        Some(Verb::Extend { time }) => confirm::extend(&command, *time),
        Some(Verb::Watchdog(options)) => watchdog::run(&command, options),
        Some(Verb::Rollback(options)) => rollback::run(&command, options.to.as_deref()),
        Some(Verb::Status) => status::run(&command),
        Some(Verb::Report(options)) => report::run(&command, options),
        Some(Verb::Completions { shell }) => completions::run(&command, *shell),
        Some(Verb::Inside { job, dir, to }) => {
            return JsonLines::end(inside(*job, dir, *to));
        }
    };
    let code = result.unwrap_or_else(|error| match error.kind {
        Kind::Interrupted => signals::end(&command, error),
        _ => ui.error(&error),
    });
    output::checked(&command, code)
}

/// Names what is passed over in the store.
fn warn_of_strays(command: &Invocation<'_>) {
    let quiet = matches!(
        command.args.verb,
        Some(Verb::Inside { .. } | Verb::Watchdog(_) | Verb::Completions { .. } | Verb::Cluster(_))
    );
    if quiet || !rustix::process::geteuid().is_root() {
        return;
    }
    // A store that cannot be read is the verb's own error.
    let strays = command.store().and_then(|store| store.strays()).unwrap_or_default();
    for stray in strays {
        command.sink().warning(stray.warning());
    }
}

/// Warns of a pending run, and restarts the run's watchdog if the watchdog was killed. Does nothing
/// for a verb that resolves a run, because that verb reports the run itself.
fn warn_of_pending(command: &Invocation<'_>) {
    let resolves = matches!(
        command.args.verb,
        None | Some(
            Verb::Inside { .. }
                | Verb::Watchdog(_)
                | Verb::Report(_)
                | Verb::Completions { .. }
                | Verb::Cluster(_)
                | Verb::Resume
                | Verb::Rollback(_)
                | Verb::Confirm
                | Verb::Extend { .. }
        )
    );
    if resolves || !rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(Some(run)) = command.store().and_then(|s| s.pending()) else { return };
    match command.with_context(ensure_running) {
        Ok(None) => {}
        Ok(Some(run)) => command.sink().warning(format!(
            "the process that stood by to undo run {} was gone; another one stands by now",
            run.id
        )),
        Err(e) => command.sink().warning(format!("nobody stands by to undo run {}: {e}", run.id)),
    }
    if !matches!(command.args.verb, Some(Verb::Status)) {
        command.sink().warning(status::pending(&run));
    }
}
