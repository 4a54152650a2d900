//! Stops, starts and configures kube-proxy. Each kind of controller has one file in this module.
//!
//! Only the controller's own processes are waited for, and only a new one of its own counts as
//! started ([`ReadController::owns`]). Other processes of that name are left out: they may run for
//! ever. A stop that fails never prevents the start.

mod awaited_pod;
mod commands;
mod daemonset;
mod pod_update;
mod static_pod;
mod systemd;

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use super::files::{exchange, forget, try_exchange};
use crate::error::{Error, Kind, Result};
use crate::node::kube_proxy_controller::ReadController;
use crate::node::processes;
use crate::runtime::ProcessId;
use crate::state::kube_proxy::controller::for_kind;
use crate::state::kube_proxy::{ConfigSource, Controller};
use crate::state::kubernetes::RunNote;

pub use self::pod_update::{let_in, undo_update};

/// The pause between two looks at kube-proxy's processes.
const PAUSE: Duration = Duration::from_millis(100);

/// The operations that stop, start and configure kube-proxy under `controller`.
pub fn operate(controller: &Controller) -> &dyn Operate {
    for_kind!(controller, kind => kind)
}

/// Stops, starts and configures kube-proxy under one kind of controller.
pub trait Operate: ReadController + fmt::Display {
    /// Requests that kube-proxy stops; does not wait for its process to exit.
    ///
    /// # Errors
    /// [`Kind::Command`], with the last lines of the command's output or of kube-proxy's log.
    fn request_stop(&self, within: Duration) -> Result<()>;

    /// Requests that kube-proxy starts; does not wait for its process.
    ///
    /// # Errors
    /// As [`Operate::request_stop`].
    fn request_start(&self, within: Duration) -> Result<()>;

    /// Requests that kube-proxy restarts, in one step. Returns false if this kind of controller has
    /// no such step; the caller then stops and starts kube-proxy.
    ///
    /// # Errors
    /// As [`Operate::request_stop`].
    fn request_restart(&self, _within: Duration) -> Result<bool> {
        Ok(false)
    }

    /// Whether a request to stop must succeed even when kube-proxy is stopped already. If not, an
    /// error then means nothing.
    fn stop_must_succeed(&self) -> bool {
        false
    }

    /// The last lines of a log, and a hint where to look for the cause. Both go into the error that
    /// reports a process that did not start or exit.
    fn log_and_hint(&self) -> (String, String);

    /// Stops kube-proxy and waits until the controller's own processes have ended. Does nothing if
    /// kube-proxy is stopped already.
    ///
    /// # Errors
    /// [`Kind::Command`], with the last lines of the output or log, when the stop fails or takes
    /// longer than `within`.
    fn stop(&self, within: Duration) -> Result<()> {
        let time = Time::new(within);
        stop(self, &self.processes()?, &time)
    }

    /// Starts kube-proxy, waits for its process, and returns its PID. Keeps a kube-proxy that runs
    /// already.
    ///
    /// A process that runs may not serve yet.
    ///
    /// # Errors
    /// As [`Operate::stop`].
    fn start(&self, within: Duration) -> Result<u32> {
        let time = Time::new(within);
        // An operator's start command would run a second kube-proxy.
        let is_started = self.owns_by_name() && !self.processes()?.is_empty();
        if !is_started {
            self.request_start(time.left())?;
        }
        wait_for_new(self, &[], &[], &time)
    }

    /// Restarts kube-proxy, or starts it if it is stopped. Waits until the controller's old
    /// processes have ended and a new one runs, and returns the PID of the new one. Stop and start
    /// may take `within` each. If the stop fails or takes too long, kube-proxy is started all the
    /// same.
    ///
    /// # Errors
    /// As [`Operate::stop`]. The error of a failed stop says whether kube-proxy runs.
    fn restart(&self, within: Duration) -> Result<u32> {
        let time = Time::new(within);
        let before = self.processes()?;
        let stopped = match self.request_restart(time.left()) {
            Ok(true) => match wait_for_new(self, &before, &before, &time) {
                Ok(pid) => return Ok(pid),
                Err(e) => Err(e),
            },
            Ok(false) => stop(self, &before, &time),
            Err(e) => Err(e),
        };
        start_after(self, stopped, &before, within)
    }

    /// Replaces the text of kube-proxy's configuration as [`exchange`] does, restarts kube-proxy with
    /// the new text, and returns its PID.
    ///
    /// Replacing and restarting are one operation, because up to 1.30 kube-proxy exits when its
    /// configuration file is written.
    ///
    /// # Errors
    /// The errors of [`exchange`], after which kube-proxy runs as before, and the errors of
    /// [`Operate::stop`].
    fn configure(
        &self,
        source: &ConfigSource,
        from: &str,
        to: &str,
        within: Duration,
    ) -> Result<u32> {
        exchange(source.path()?, source.path()?, from, to)?;
        self.restart(within)
    }

    /// As [`Operate::configure`], for a kube-proxy that is stopped and will be started later.
    ///
    /// # Errors
    /// As [`exchange`].
    fn configure_stopped(&self, source: &ConfigSource, from: &str, to: &str) -> Result<()> {
        exchange(source.path()?, source.path()?, from, to)
    }

    /// Verifies that [`Operate::configure`] can replace the text `from` by `to`, without doing it.
    ///
    /// # Errors
    /// As [`try_exchange`].
    fn can_configure(&self, source: &ConfigSource, _from: &str, _to: &str) -> Result<()> {
        try_exchange(source.path()?)
    }

    /// Whether nothing of what starts kube-proxy is put aside, as it is while kube-proxy is
    /// stopped.
    fn is_in_place(&self) -> bool {
        true
    }

    /// Announces a pending run to the administrators of the cluster, or that none is pending any more.
    ///
    /// # Errors
    /// When it cannot be announced, after which everything else is as if it had been.
    fn announce(&self, _note: Option<&RunNote>) -> Result<()> {
        Ok(())
    }

    /// Reports what happened to the administrators of the cluster, in a sentence.
    ///
    /// # Errors
    /// As [`Operate::announce`].
    fn report_event(&self, _sentence: &str) -> Result<()> {
        Ok(())
    }

    /// Removes the old configuration that [`Operate::configure`] keeps for the way back.
    ///
    /// # Errors
    /// As [`forget`].
    fn forget(&self, source: &ConfigSource) -> Result<()> {
        forget(source.path()?)
    }
}

/// A deadline, and the length of time that was allowed, which errors report.
struct Time {
    end: Instant,
    within: Duration,
}

impl Time {
    fn new(within: Duration) -> Time {
        Time { end: Instant::now() + within, within }
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

/// Stops kube-proxy, and waits until the processes `before` have ended: those that the controller
/// had. Processes that appear later are not waited for.
fn stop(controller: &(impl Operate + ?Sized), before: &[ProcessId], time: &Time) -> Result<()> {
    match controller.request_stop(time.left()) {
        Err(error) if controller.stop_must_succeed() || alive(before).is_some() => Err(error),
        // A controller may report an error when kube-proxy is stopped already.
        Ok(()) | Err(_) => wait_for_end(controller, before, time),
    }
}

/// Starts kube-proxy after a stop that succeeded or failed. `before` are the processes that the
/// controller had. The start has time of its own, because a stop may use up all of its time.
///
/// # Errors
/// The error of the stop if that failed, with whether kube-proxy runs; otherwise that of the start.
fn start_after(
    controller: &(impl Operate + ?Sized),
    stopped: Result<()>,
    before: &[ProcessId],
    within: Duration,
) -> Result<u32> {
    let started = start_new(controller, before, &Time::new(within));
    let Err(mut error) = stopped else { return started };
    let outcome = match started {
        Ok(pid) => format!("it was started all the same, and runs (pid {pid})"),
        Err(e) => match controller.processes().as_deref() {
            Ok([first, ..]) => format!("it runs (pid {})", first.pid),
            _ => format!("it does not run: {}", e.cause),
        },
    };
    error.cause.push_str(&format!("; {outcome}"));
    Err(error)
}

/// Starts kube-proxy and waits until the processes `before` have ended and a new one runs.
fn start_new(
    controller: &(impl Operate + ?Sized),
    before: &[ProcessId],
    time: &Time,
) -> Result<u32> {
    let mut others = before.to_vec();
    if controller.owns_by_name() {
        // An operator's start command would run a second kube-proxy beside an old one. And whatever
        // has that name before the command runs is not what the command starts.
        wait_for_end(controller, before, time)?;
        others = controller.processes().unwrap_or_default();
    }
    controller.request_start(time.left())?;
    wait_for_new(controller, before, &others, time)
}

/// The first of the processes that still runs.
fn alive(processes: &[ProcessId]) -> Option<&ProcessId> {
    processes.iter().find(|process| process.is_alive())
}

/// Waits until the processes `before` have ended.
fn wait_for_end(
    controller: &(impl Operate + ?Sized),
    before: &[ProcessId],
    time: &Time,
) -> Result<()> {
    while let Some(ProcessId { pid, .. }) = alive(before) {
        if time.left().is_zero() {
            let cause = format!("kube-proxy (pid {pid}) still runs {:?} later", time.within);
            return Err(timeout_error(controller, cause));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Waits until the processes `before` have ended and the controller has one that is none of
/// `others`; returns its PID. A scan of /proc that fails is repeated.
fn wait_for_new(
    controller: &(impl Operate + ?Sized),
    before: &[ProcessId],
    others: &[ProcessId],
    time: &Time,
) -> Result<u32> {
    wait_for_end(controller, before, time)?;
    loop {
        let found = controller.processes().map(|mut processes| {
            processes.retain(|process| !others.contains(process));
            processes.first().map(|process| process.pid)
        });
        match found {
            Ok(Some(pid)) => return Ok(pid),
            Err(e) if time.left().is_zero() => return Err(e),
            Ok(None) if time.left().is_zero() => {
                let others = others_run(controller);
                let cause = format!("no kube-proxy runs {:?} later{others}", time.within);
                return Err(timeout_error(controller, cause));
            }
            _ => thread::sleep(PAUSE),
        }
    }
}

/// A clause that names the processes that have kube-proxy's name and are none of the controller's
/// new ones; empty if there are none.
fn others_run(controller: &(impl Operate + ?Sized)) -> String {
    let pids = processes::pids(controller.program()).unwrap_or_default();
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    match pids.is_empty() {
        true => String::new(),
        false => format!("; not started by {controller}: pid {}", pids.join(", ")),
    }
}

fn timeout_error(controller: &(impl Operate + ?Sized), cause: String) -> Error {
    let (log, hint) = controller.log_and_hint();
    Error::new(Kind::Command, controller.to_string(), format!("{cause}{log}")).hint(hint)
}
