//! The watchdog, or dead man's switch: a process of its own that undoes a run. It acts when the
//! deadline passes and nobody has confirmed the run, or when the runner (the process that executes
//! the run) died and nobody has resumed the run.
//!
//! The watchdog runs the copy of proxyshift that is in the run's folder, in a session of its own.
//! SIGHUP and SIGTERM do not end it. It undoes the run only while it holds the node's lock.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::node::command;
use crate::node::environment;
use crate::node::locks::LOCK_DIR;
use crate::node::locks::NodeLock;
use crate::run::caller::begun_by;
use crate::run::{Context, late_runner};
use crate::runtime;
use crate::runtime::{ProcessId, process_start};
use crate::store::run::{BINARY, Run, RunState, WatchdogProcess};
use crate::visible::visible;

/// The line that the watchdog prints on standard output once it is armed.
const ARMED: &str = "armed";

/// For how long after the death of its runner a run may still be resumed before it is undone.
const GRACE: Duration = Duration::from_secs(30);

/// The pause between two times that the watchdog reads the run's state.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long a runner that is past its deadline may take to end after a signal.
const LAST_CHANCE: Duration = Duration::from_secs(20);

/// Starts the watchdog of `run`, unless one is alive, and writes its PID into `run.json`.
///
/// # Errors
/// [`Kind::Store`] when the program cannot be copied; [`Kind::Command`] when the watchdog does not
/// start.
pub fn arm(context: &Context<'_>, run: &mut Run) -> Result<()> {
    let Some(pending) = &run.pending else { return Ok(()) };
    if pending.watchdog.is_some_and(WatchdogProcess::is_alive) {
        return Ok(());
    }
    // The run is written first, because the watchdog reads the run from the store.
    context.store.update(run)?;
    let dir = context.store.run_dir(&run.id);
    let copy = dir.join(BINARY);
    if !copy.exists() {
        runtime::copy_program(&copy)?;
    }
    let log = dir.join("watchdog.log");
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(|e| Error::io(&log, &e))?;
    let failed = |e: &dyn std::fmt::Display| {
        Error::new(
            Kind::Command,
            copy.display().to_string(),
            format!("cannot start the watchdog: {e}"),
        )
    };
    let mut child = Command::new(&copy)
        .args(["--progress", "plain", "--no-color", "--store"])
        .arg(context.store.dir())
        .args(["watchdog", &run.id])
        .current_dir("/")
        // It may have to run the operator's commands.
        .env_clear()
        .envs(environment::of_operator())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| failed(&e))?;
    let mut output = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut output).map_err(|e| failed(&e))?;
    }
    let start = process_start(child.id()).filter(|_| output.trim() == ARMED);
    let Some(start) = start else {
        return Err(failed(&format!("it ended at once; {} says why", dir.display())));
    };
    if let Some(pending) = &mut run.pending {
        pending.watchdog = Some(WatchdogProcess { pid: child.id(), start });
    }
    // Reaps the watchdog if it ends while this process still lives.
    std::thread::spawn(move || child.wait());
    context.store.update(run)
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
            let pending = run.pending.as_ref();
            run.boot_id == clock::boot_id()
                && pending.is_some_and(|s| !s.watchdog.is_some_and(WatchdogProcess::is_alive))
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

/// Watches the run `id` until it is resolved, and calls `rollback` to undo it when that is
/// necessary.
///
/// # Errors
/// The error with which the undo failed.
pub fn watch(context: &Context<'_>, id: &str, rollback: &dyn Fn() -> Result<bool>) -> Result<()> {
    // `setsid` succeeds, because this process leads no process group.
    let _ = rustix::process::setsid();
    let deaf = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, deaf.clone())
            .map_err(|e| Error::new(Kind::Unexpected, "signal handler", e))?;
    }
    {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{ARMED}").and_then(|()| out.flush());
    }
    while let Some(why) = wait(context, id)? {
        context.sink.warning(format!("run {id}: {why}; rolling back"));
        log(&format!("run {id}: {why}; rolling back"));
        match roll_back(context, id, rollback) {
            // Resolved by somebody else, or no longer due.
            Ok(None) => {}
            Ok(Some(result)) => log(&format!("run {id}: {result}")),
            Err(e) => {
                let text =
                    format!("run {id} could NOT be rolled back: {e}. See `proxyshift status`");
                log(&text);
                broadcast(&text);
                return Err(e);
            }
        }
    }
    Ok(())
}

/// Waits until the run is resolved, or must be undone. Returns none, or the reason to undo it.
fn wait(context: &Context<'_>, id: &str) -> Result<Option<String>> {
    let mut gone: Option<Instant> = None;
    loop {
        let run = context.store.run(id)?.filter(|run| run.state.is_pending());
        let Some((run, pending)) = run.and_then(|r| r.pending.clone().map(|s| (r, s))) else {
            return Ok(None);
        };
        if pending.left().is_zero() {
            return Ok(Some(match run.state {
                RunState::Unconfirmed => "nobody confirmed it in time".into(),
                _ => format!("its stage {} did not end in time", pending.stage),
            }));
        }
        let died = run.state == RunState::Running && !run.runner_is_alive();
        gone = died.then(|| gone.unwrap_or_else(Instant::now));
        if gone.is_some_and(|since| since.elapsed() >= GRACE) {
            return Ok(Some(format!("its process {} died and nobody resumed it", run.pid)));
        }
        sleep(INTERVAL.min(pending.left()));
    }
}

/// Undoes the run. Returns the result, for the log; none if somebody else has resolved the run.
fn roll_back(
    context: &Context<'_>,
    id: &str,
    rollback: &dyn Fn() -> Result<bool>,
) -> Result<Option<String>> {
    if let Some(run) = context.store.run(id)?.filter(|r| r.state == RunState::Running) {
        let runner = ProcessId::of(run.pid).filter(|_| run.runner_is_alive());
        if let Some(runner) = runner {
            late_runner::end(runner, LAST_CHANCE);
        }
    }
    loop {
        match rollback() {
            Ok(false) => return Ok(None),
            Ok(true) => return Ok(Some("rolled back; the node is as before".into())),
            // Another process holds the node's lock. That process may resolve the run, so
            // `rollback` is called again, and reads the run anew.
            Err(e) if e.kind == Kind::Lock => sleep(INTERVAL),
            Err(e) => return Err(e),
        }
    }
}

/// Writes to the system log that `run` begins, by whom, and between which modes.
pub(super) fn log_begin(run: &Run) {
    let modes = run.modes().map(|modes| format!(" from {} to {}", modes.from, modes.to));
    let by = begun_by(run).map(|by| format!(", by {by}")).unwrap_or_default();
    log(&format!("run {} ({}{}) begins{by}", run.id, run.verb(), modes.unwrap_or_default()));
}

/// Writes to the system log, if `logger` is installed.
fn log(text: &str) {
    best_effort("logger", &["-t", "proxyshift", "-p", "daemon.warning", &visible(text)]);
}

/// Writes to the terminals of all users, if `wall` is installed.
fn broadcast(text: &str) {
    best_effort("wall", &[&format!("proxyshift: {}", visible(text))]);
}

/// Runs a program if it is installed, and ignores its failure.
fn best_effort(program: &str, args: &[&str]) {
    if let Ok(path) = which::which_in(program, Some(command::TRUSTED_PATH), "/") {
        let _ = command::Command::new(path).args(args.iter().copied()).run();
    }
}
