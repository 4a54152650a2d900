//! Stops, starts and configures kube-proxy. Each kind of controller has one file in this module.

mod commands;
mod static_pod;
mod systemd;

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use super::files::swap;
use crate::error::{Error, Kind, Result};
use crate::node::processes;
use crate::runtime::process_start;
use crate::state::kube_proxy::controller::{PROGRAM, for_kind};
use crate::state::kube_proxy::{ConfigSource, Controller};

/// The pause between two scans of /proc for kube-proxy's processes.
const PAUSE: Duration = Duration::from_millis(100);

/// What identifies a process: its PID, and when it started.
type Running = (u32, Option<u64>);

/// The operations that stop, start and configure kube-proxy under `controller`.
pub fn operate(controller: &Controller) -> &dyn Operate {
    for_kind!(controller, kind => kind)
}

/// Stops, starts and configures kube-proxy under one kind of controller.
pub trait Operate: fmt::Display {
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

    /// The process name of the kube-proxy to wait for.
    fn program(&self) -> &str {
        PROGRAM
    }

    /// The last lines of a log, and a hint where to look for the cause. Both go into the error that
    /// reports a process that did not start or exit.
    fn log_and_hint(&self) -> (String, String);

    /// Stops kube-proxy and waits until none of its processes is left in this network namespace.
    /// Does nothing if kube-proxy is stopped already.
    ///
    /// # Errors
    /// [`Kind::Command`], with the last lines of the output or log, when the stop fails or takes
    /// longer than `within`.
    fn stop(&self, within: Duration) -> Result<()> {
        let until = Until::new(within);
        match self.request_stop(until.left()) {
            // A controller may report an error when kube-proxy is stopped already.
            Err(_) if running(self.program())?.is_empty() => Ok(()),
            Err(error) => Err(error),
            Ok(()) => wait_for_none(self, &until),
        }
    }

    /// Starts kube-proxy, waits for its process, and returns its PID. Keeps a kube-proxy that runs
    /// already.
    ///
    /// A process that runs may not serve yet.
    ///
    /// # Errors
    /// As [`Operate::stop`].
    fn start(&self, within: Duration) -> Result<u32> {
        let until = Until::new(within);
        self.request_start(until.left())?;
        wait_for_one(self, &[], &until)
    }

    /// Restarts kube-proxy, or starts it if it is stopped. Waits until the old processes are gone
    /// and a new one runs, and returns the PID of the new one.
    ///
    /// # Errors
    /// As [`Operate::stop`].
    fn restart(&self, within: Duration) -> Result<u32> {
        let until = Until::new(within);
        let before = running(self.program())?;
        if self.request_restart(until.left())? {
            return wait_for_one(self, &before, &until);
        }
        self.stop(until.left())?;
        self.start(until.left())
    }

    /// Replaces the text of kube-proxy's configuration as [`swap`] does, restarts kube-proxy with
    /// the new text, and returns its PID.
    ///
    /// Replacing and restarting are one operation, because up to 1.30 kube-proxy exits when its
    /// configuration file is written.
    ///
    /// # Errors
    /// The errors of [`swap`], after which kube-proxy runs as before, and the errors of
    /// [`Operate::stop`].
    fn configure(
        &self,
        source: &ConfigSource,
        from: Option<&str>,
        to: Option<&str>,
        within: Duration,
    ) -> Result<u32> {
        swap(source.path(), from, to)?;
        self.restart(within)
    }

    /// As [`Operate::configure`], for a kube-proxy that is stopped and will be started later.
    ///
    /// # Errors
    /// As [`swap`].
    fn configure_stopped(
        &self,
        source: &ConfigSource,
        from: Option<&str>,
        to: Option<&str>,
    ) -> Result<()> {
        swap(source.path(), from, to)
    }
}

/// A deadline, and the length of time that was allowed, which errors report.
struct Until {
    end: Instant,
    within: Duration,
}

impl Until {
    fn new(within: Duration) -> Until {
        Until { end: Instant::now() + within, within }
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

/// The processes in this network namespace that run `program`.
fn running(program: &str) -> Result<Vec<Running>> {
    let pids = processes::pids(program)?;
    Ok(pids.into_iter().map(|pid| (pid, process_start(pid))).collect())
}

fn wait_for_none(controller: &(impl Operate + ?Sized), until: &Until) -> Result<()> {
    loop {
        let running = running(controller.program())?;
        let Some((pid, _)) = running.first() else { return Ok(()) };
        if until.left().is_zero() {
            let cause = format!("kube-proxy (pid {pid}) still runs {:?} later", until.within);
            return Err(timeout_error(controller, cause));
        }
        thread::sleep(PAUSE);
    }
}

/// Waits until the processes in `before` are gone and another one runs; returns its PID.
fn wait_for_one(
    controller: &(impl Operate + ?Sized),
    before: &[Running],
    until: &Until,
) -> Result<u32> {
    loop {
        let running = running(controller.program())?;
        let (old, new): (Vec<_>, Vec<_>) = running.into_iter().partition(|r| before.contains(r));
        let cause = match (old.first(), new.first()) {
            (None, Some((pid, _))) => return Ok(*pid),
            (Some((pid, _)), _) => {
                format!("kube-proxy (pid {pid}) still runs {:?} later", until.within)
            }
            (None, None) => format!("no kube-proxy runs {:?} later", until.within),
        };
        if until.left().is_zero() {
            return Err(timeout_error(controller, cause));
        }
        thread::sleep(PAUSE);
    }
}

fn timeout_error(controller: &(impl Operate + ?Sized), cause: String) -> Error {
    let (log, hint) = controller.log_and_hint();
    Error::new(Kind::Command, controller.to_string(), format!("{cause}{log}")).hint(hint)
}
