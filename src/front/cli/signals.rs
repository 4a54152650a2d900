//! What happens when the program is ended early by Ctrl-C, SIGTERM or a closed terminal: the
//! terminal is restored, and one line says in which state the node is.

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
use crate::front::cli::args::Args;
use crate::front::cli::args::Verb;
use crate::front::cli::command::Invocation;
use crate::front::cli::status;
use crate::interrupt;
use crate::runtime::process_start;
use crate::store::run::{Run, RunState};
use crate::store::{DEFAULT_DIR, Store};

/// Handles the signals, if the verb changes the node or asks questions.
pub(in crate::front) fn watch(command: &Invocation<'_>) -> Result<()> {
    if !changes(command.args) {
        return Ok(());
    }
    let (ui, store) = (command.ui, store_dir(command.args));
    interrupt::watch(
        move || {
            let note = "a signal came: no further step is begun, and what is under way is finished \
                        or undone first";
            crate::event::Sink::emit(ui, crate::event::Event::Warning { text: note.into() });
        },
        move || {
            ui.close();
            ui.error(&state(&store, None))
        },
    )
}

fn changes(args: &Args) -> bool {
    match &args.verb {
        // These verbs handle signals themselves.
        Some(Verb::Guard(_) | Verb::Watchdog(_) | Verb::Inside { .. }) => false,
        Some(Verb::Check(options)) => options.fix,
        Some(Verb::Plan(_) | Verb::Snapshot(_) | Verb::Rehearse(_) | Verb::Status) => false,
        _ => true,
    }
}

/// Ends the program after an interrupt or a signal.
pub(in crate::front) fn end(command: &Invocation<'_>, error: Error) -> ! {
    let store = store_dir(command.args);
    interrupt::end(|| {
        command.ui.close();
        command.ui.error(&state(&store, Some(error)))
    })
}

fn store_dir(args: &Args) -> PathBuf {
    args.store.as_deref().unwrap_or(Path::new(DEFAULT_DIR)).to_owned()
}

/// The content of the last line: the pending run; without one, the run that this process finished;
/// without either, `error`.
fn state(store: &Path, error: Option<Error>) -> Error {
    let nothing =
        || Error::new(Kind::Interrupted, "proxyshift", "interrupted; nothing was changed");
    let runs = match runs(store) {
        Ok(runs) => runs,
        Err(e) => return Error { kind: Kind::Interrupted, ..e },
    };
    if let Some(run) = runs.pending {
        return Error::new(Kind::Pending, "interrupted", status::pending(&run));
    }
    match runs.own {
        Some(run) => {
            let cause = "is done and stays; nothing else was changed";
            Error::new(Kind::Interrupted, format!("run {}", run.id), cause)
                .hint("`proxyshift rollback` undoes it")
        }
        None => error.unwrap_or_else(nothing),
    }
}

#[derive(Default)]
struct Runs {
    pending: Option<Run>,
    /// The last run that this process finished, if any.
    own: Option<Run>,
}

fn runs(dir: &Path) -> Result<Runs> {
    // Reading must not create a store, so a store that does not exist is not opened.
    if !dir.join("runs").is_dir() || !rustix::process::geteuid().is_root() {
        return Ok(Runs::default());
    }
    let store = Store::read_only(Some(dir))?;
    let (me, start) = (std::process::id(), process_start(std::process::id()));
    let own =
        |run: &Run| run.state == RunState::Done && run.pid == me && Some(run.pid_start) == start;
    Ok(Runs { pending: store.pending()?, own: store.runs()?.into_iter().rfind(own) })
}
