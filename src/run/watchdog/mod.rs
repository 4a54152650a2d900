//! The watchdog, or dead man's switch: processes of their own that undo a run. A watchdog acts when
//! the deadline passes and nobody has confirmed the run, or when the runner (the process that
//! executes the run) died and nobody has resumed the run.
//!
//! Where systemd runs the node, the watchdog is a unit of its own. Elsewhere it is two processes in
//! sessions of their own, which look after each other. No signal ends it but SIGKILL, which is
//! noticed. It runs from memory, and undoes the run in another process, only while that holds the
//! node's lock.

mod attempt;
mod backoff;
mod independence;
mod partner;
mod process;
pub(super) mod program;
mod reading;
mod registry;
mod report;
mod system_log;
mod unit;

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::node::environment;
use crate::node::locks::LOCK_DIR;
use crate::node::locks::NodeLock;
use crate::node::systemd;
use crate::run::Context;
use crate::run::caller::begun_by;
use crate::runtime::process_start;
use crate::store::run::{Run, WatchdogProcess};

pub use attempt::AttemptResult;
pub use independence::ignore_signals;
pub use process::{Watched, watch};
pub use registry::{WatchdogForm, form_of, watchdog_of};

/// The first word of the line that a watchdog prints on standard output once it is armed. Its form
/// follows.
const ARMED: &str = "armed";

/// What a process is among the watchdogs of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// The first of two processes.
    First,
    /// The second of two processes, which the first one started.
    Second,
    /// A systemd unit.
    Unit,
    /// The systemd unit that a timer starts.
    SecondUnit,
    /// An attempt to undo the run, which a watchdog started.
    Undo,
    /// An attempt to undo a run that was undone in part.
    UndoAgain,
}

impl Role {
    fn of_attempt(again: bool) -> Role {
        if again { Role::UndoAgain } else { Role::Undo }
    }

    /// Whether systemd looks after the process.
    fn is_unit(self) -> bool {
        matches!(self, Role::Unit | Role::SecondUnit)
    }

    /// The word for the role on the command line.
    fn word(self) -> &'static str {
        match self {
            Role::First => "first",
            Role::Second => "second",
            Role::Unit => "unit",
            Role::SecondUnit => "second-unit",
            Role::Undo => "undo",
            Role::UndoAgain => "undo-again",
        }
    }
}

/// The arguments with which this program is a watchdog of the run `id`.
fn words(store: &Path, id: &str, role: Role) -> Vec<OsString> {
    let mut words: Vec<OsString> =
        ["--progress", "plain", "--no-color", "--store"].map(OsString::from).into();
    words.push(store.into());
    words.extend(["watchdog", id, role.word()].map(OsString::from));
    words
}

/// The line with which a watchdog of the form `form` reports that it is armed.
pub fn armed_line(form: WatchdogForm) -> String {
    format!("{ARMED} {}", form.word())
}

/// Starts the watchdog of `run`, unless one is able to act, and writes its PID into `run.json`.
///
/// # Errors
/// When no program can be started as a watchdog; [`Kind::Command`] when the watchdog does not start.
pub fn arm(context: &Context<'_>, run: &mut Run) -> Result<()> {
    if run.pending.is_none() {
        return Ok(());
    }
    if let Some(process) = watchdog_of(run) {
        return record(context, run, Some(process));
    }
    registry::kill_stopped(&run.id);
    // The run is written first, because the watchdog reads the run from the store.
    context.store.update(run)?;
    let program = program::of_run(context, &run.id)?;
    let (form, process) = if systemd::runs_the_node() {
        start_unit(context, &program, &run.id).or_else(|e| {
            let text = format!("no systemd unit can watch the run, so processes do: {e}");
            context.sink.warning(text);
            start_processes(context, &program, &run.id)
        })?
    } else {
        start_processes(context, &program, &run.id)?
    };
    context.sink.note(format!("the run is undone unless it is confirmed, by {form}"));
    record(context, run, process)
}

/// Records that `process` is the watchdog of `run`.
fn record(context: &Context<'_>, run: &mut Run, process: Option<WatchdogProcess>) -> Result<()> {
    match &mut run.pending {
        Some(pending) if pending.watchdog != process => pending.watchdog = process,
        _ => return Ok(()),
    }
    context.store.update(run)
}

/// Starts the watchdog as a systemd unit. Returns its process, if it is known.
fn start_unit(
    context: &Context<'_>,
    program: &Path,
    id: &str,
) -> Result<(WatchdogForm, Option<WatchdogProcess>)> {
    registry::keep_environment(id).map_err(|e| Error::io(LOCK_DIR, &e))?;
    // A unit whose process is stopped is started anew by systemd.
    if !unit::runs(id) {
        unit::start(program, context.store.dir(), id)?;
    }
    Ok((WatchdogForm::Unit, registry::first(id)))
}

/// Starts the first of two processes, which starts the second.
fn start_processes(
    context: &Context<'_>,
    program: &Path,
    id: &str,
) -> Result<(WatchdogForm, Option<WatchdogProcess>)> {
    let failed = |e: &dyn std::fmt::Display| {
        let cause = format!("cannot start the watchdog: {e}");
        Error::new(Kind::Command, program.display().to_string(), cause)
    };
    let store = context.store.dir();
    // It watches all the same if it cannot write its log.
    let log = fs::File::options().create(true).append(true).open(process::log_path(store, id));
    let mut child = Command::new(program)
        .args(words(store, id, Role::First))
        .current_dir("/")
        // It may have to run the operator's commands.
        .env_clear()
        .envs(environment::of_operator())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.map_or_else(|_| Stdio::null(), Stdio::from))
        .spawn()
        .map_err(|e| failed(&e))?;
    let mut output = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut output).map_err(|e| failed(&e))?;
    }
    let form = output.trim().strip_prefix(ARMED).and_then(|word| WatchdogForm::of(word.trim()));
    let process = process_start(child.id()).map(|start| WatchdogProcess { pid: child.id(), start });
    let (Some(form), Some(process)) = (form, process) else {
        let dir = context.store.run_dir(id);
        return Err(failed(&format!("it ended at once; {} says why", dir.display())));
    };
    // Reaps the watchdog if it ends while this process still lives.
    std::thread::spawn(move || child.wait());
    Ok((form, Some(process)))
}

/// Starts the watchdog of the pending run again, if the watchdog was killed. Returns the run in
/// that case. Does nothing while another process holds the node's lock, because that process starts
/// the watchdog itself.
///
/// # Errors
/// As [`arm`].
pub fn ensure_running(context: &Context<'_>) -> Result<Option<Run>> {
    let abandoned = || -> Result<Option<Run>> {
        let gone = |run: &Run| {
            run.boot_id == clock::boot_id() && run.pending.is_some() && watchdog_of(run).is_none()
        };
        Ok(context.store.pending()?.filter(gone))
    };
    if abandoned()?.is_none() {
        return Ok(None);
    }
    let _lock = match NodeLock::acquire(Path::new(LOCK_DIR), "watchdog", Duration::ZERO) {
        Ok(lock) => lock,
        Err(e) if e.kind == Kind::Lock => return Ok(None),
        Err(e) => return Err(e),
    };
    let Some(mut run) = abandoned()? else { return Ok(None) };
    arm(context, &mut run)?;
    Ok(Some(run))
}

/// Writes to the system log that `run` begins, by whom, and between which modes.
pub(super) fn log_begin(run: &Run) {
    let modes = run.modes().map(|modes| format!(" from {} to {}", modes.from, modes.to));
    let by = begun_by(run).map(|by| format!(", by {by}")).unwrap_or_default();
    system_log::log(&format!(
        "run {} ({}{}) begins{by}",
        run.id,
        run.verb(),
        modes.unwrap_or_default()
    ));
}
