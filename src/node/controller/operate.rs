//! Stopping and starting kube-proxy, and waiting until it is so.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{Controller, swap};
use crate::error::{Error, Kind, Result};
use crate::node::processes;
use crate::node::systemd::{log, systemctl};
use crate::runtime::process_start;

/// How often processes are looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// A process, for good: its number, and when it started.
type Running = (u32, Option<u64>);

/// A point in time up to which something is waited for.
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

impl Controller {
    /// Stops kube-proxy and waits until no process of it is left in this network namespace. Done
    /// without a word if it is stopped already.
    ///
    /// A static pod is stopped by renaming its manifest to `.NAME.stopped`, in the same folder;
    /// [`Controller::start`] names it back.
    ///
    /// # Errors
    /// [`Kind::Command`], with the last lines of what the command or unit wrote, if it fails or
    /// `within` passes.
    pub fn stop(&self, within: Duration) -> Result<()> {
        let until = Until::new(within);
        let asked = match self {
            Controller::Systemd { unit } => systemctl(&["stop", "--", unit], until.left()),
            Controller::StaticPod { manifest } => rename(manifest, &aside(manifest)),
            Controller::Commands { stop, .. } => stop.run(until.left()),
        };
        match asked {
            // A stopped one may be no news to us, but to whoever stops it.
            Err(_) if self.running()?.is_empty() && !self.is_static_pod() => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.wait_for_none(&until),
        }
    }

    /// Starts kube-proxy, waits until its process is there, and gives its number. One that runs
    /// already is left alone.
    ///
    /// That it runs does not mean that it works.
    ///
    /// # Errors
    /// As [`Controller::stop`].
    pub fn start(&self, within: Duration) -> Result<u32> {
        let until = Until::new(within);
        match self {
            Controller::Systemd { unit } => systemctl(&["start", "--", unit], until.left())?,
            Controller::StaticPod { manifest } => rename(&aside(manifest), manifest)?,
            Controller::Commands { start, .. } => {
                if let Some((pid, _)) = self.running()?.first() {
                    return Ok(*pid);
                }
                start.run(until.left())?;
            }
        }
        self.wait_for_one(&[], &until)
    }

    /// Restarts kube-proxy, or starts one that does not run; waits until the processes of before
    /// are gone and another is there, and gives its number.
    ///
    /// # Errors
    /// As [`Controller::stop`].
    pub fn restart(&self, within: Duration) -> Result<u32> {
        let until = Until::new(within);
        let before = self.running()?;
        match self {
            Controller::Systemd { unit } => systemctl(&["restart", "--", unit], until.left())?,
            Controller::Commands { restart: Some(restart), .. } => restart.run(until.left())?,
            _ => {
                self.stop(until.left())?;
                return self.start(until.left());
            }
        }
        self.wait_for_one(&before, &until)
    }

    /// Exchanges kube-proxy's settings in the file `path`, as [`swap`] does, and has it run with them;
    /// gives its number.
    ///
    /// A static pod is stopped first: a kubelet that sees the manifest change again while it is still
    /// ending the old pod may start the new one twice (seen with 1.20.2).
    ///
    /// # Errors
    /// As [`swap`], with kube-proxy running as before, and as [`Controller::stop`].
    pub fn tell(
        &self,
        path: &Path,
        from: Option<&str>,
        to: Option<&str>,
        within: Duration,
    ) -> Result<u32> {
        if !self.is_static_pod() {
            swap(path, from, to)?;
            return self.restart(within);
        }
        let until = Until::new(within);
        self.stop(until.left())?;
        let told = swap(&self.place_of(path), from, to);
        let started = self.start(until.left());
        told.and(started)
    }

    /// As [`Controller::tell`], for a kube-proxy that does not run, and that somebody else will start.
    ///
    /// # Errors
    /// As [`swap`].
    pub fn tell_stopped(&self, path: &Path, from: Option<&str>, to: Option<&str>) -> Result<()> {
        let told = swap(&self.place_of(path), from, to);
        match self {
            Controller::StaticPod { manifest } if aside(manifest).exists() => {
                rename(&aside(manifest), manifest)?;
            }
            _ => {}
        }
        told
    }

    /// Where the file `path` is now: the manifest of a pod that is stopped has another name.
    fn place_of(&self, path: &Path) -> PathBuf {
        match self {
            Controller::StaticPod { manifest } if manifest == path && !path.exists() => {
                aside(manifest)
            }
            _ => path.to_owned(),
        }
    }

    fn is_static_pod(&self) -> bool {
        matches!(self, Controller::StaticPod { .. })
    }

    /// The processes of kube-proxy in this network namespace.
    fn running(&self) -> Result<Vec<Running>> {
        let program = match self {
            Controller::Commands { program, .. } => program,
            _ => "kube-proxy",
        };
        let pids = processes::pids(program)?;
        Ok(pids.into_iter().map(|pid| (pid, process_start(pid))).collect())
    }

    fn wait_for_none(&self, until: &Until) -> Result<()> {
        loop {
            let running = self.running()?;
            let Some((pid, _)) = running.first() else { return Ok(()) };
            if until.left().is_zero() {
                let cause = format!("kube-proxy (pid {pid}) still runs {:?} later", until.within);
                return Err(self.late(cause));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Waits for a process that is not one of `before`, and until these are gone.
    fn wait_for_one(&self, before: &[Running], until: &Until) -> Result<u32> {
        loop {
            let running = self.running()?;
            let (old, new): (Vec<_>, Vec<_>) =
                running.into_iter().partition(|r| before.contains(r));
            match (old.first(), new.first()) {
                (None, Some((pid, _))) => return Ok(*pid),
                _ if !until.left().is_zero() => thread::sleep(PAUSE),
                (Some((pid, _)), _) => {
                    let cause =
                        format!("kube-proxy (pid {pid}) still runs {:?} later", until.within);
                    return Err(self.late(cause));
                }
                (None, None) => {
                    let cause = format!("no kube-proxy runs {:?} later", until.within);
                    return Err(self.late(cause));
                }
            }
        }
    }

    /// An error about what did not come in time, with the unit's log.
    fn late(&self, cause: String) -> Error {
        let (log, hint) = match self {
            Controller::Systemd { unit } => (log(unit), format!("see `journalctl -u {unit}`")),
            Controller::StaticPod { .. } => (
                String::new(),
                "see kubelet's log, and /var/log/pods/kube-system_kube-proxy-*".to_owned(),
            ),
            Controller::Commands { .. } => (String::new(), "run it by hand to see more".to_owned()),
        };
        Error::new(Kind::Command, self.to_string(), format!("{cause}{log}")).hint(hint)
    }
}

/// Where a manifest is while its pod is stopped: kubelet passes over names with a dot in front.
fn aside(manifest: &Path) -> PathBuf {
    let name = manifest.file_name().unwrap_or_default().to_string_lossy();
    manifest.with_file_name(format!(".{name}.stopped"))
}

/// Renames a manifest, and puts that on the disk; done already if only the other is there.
fn rename(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == ErrorKind::NotFound && to.exists() => return Ok(()),
        renamed => renamed.map_err(|e| Error::io(from, &e))?,
    }
    let folder = from.parent().unwrap_or(Path::new("/"));
    fs::File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, &e))
}
