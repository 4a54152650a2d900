//! The second witness. Where systemd does not look after the watchdog, two processes look after each
//! other: the first is the parent of the second. Each starts the other anew when it is dead, and
//! kills it when it is stopped. Where systemd does, it is told regularly that the process is alive.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid, kill_process};

use crate::run::watchdog::backoff::Backoff;
use crate::run::watchdog::independence::own_program;
use crate::run::watchdog::{Role, words};
use crate::runtime::is_stopped;

/// How long a partner must have lived so that the next one is started at once.
const LONG: Duration = Duration::from_secs(60);

/// Who looks after this process.
#[derive(Debug)]
pub(super) enum Partner {
    /// This process is the first of two.
    Second {
        /// The second process, once it is started.
        child: Option<Child>,
        /// When it was started, or the attempt to start it failed.
        since: Instant,
        /// The pause before it is started anew.
        backoff: Backoff,
    },
    /// This process is the second of two; its parent is the first.
    First(Pid),
    /// systemd.
    Systemd(Option<UnixDatagram>),
}

impl Partner {
    /// The partner of this process, which has the role `role` and was started by the process
    /// `first` if it is the second of two.
    pub(super) fn of(role: Role, first: Option<u32>) -> Partner {
        let first = first.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        match (role, first) {
            (Role::Second, Some(first)) => Partner::First(first),
            (Role::Unit | Role::SecondUnit, _) => Partner::Systemd(systemd()),
            _ => Partner::second(),
        }
    }

    fn second() -> Partner {
        Partner::Second { child: None, since: Instant::now(), backoff: Backoff::new() }
    }

    /// Whether the other process is to act first.
    pub(super) fn acts_first(&self) -> bool {
        matches!(self, Partner::First(_))
    }

    /// Reports to systemd that this process is ready.
    pub(super) fn ready(&self) {
        self.notify("READY=1\nWATCHDOG=1");
    }

    /// Reports to systemd that this process is alive.
    pub(super) fn notify_alive(&self) {
        self.notify("WATCHDOG=1");
    }

    /// Looks after the other process, which is to watch the run `id` of `store`.
    pub(super) fn look_after(&mut self, store: &Path, id: &str) {
        self.notify_alive();
        match self {
            Partner::Systemd(_) => {}
            Partner::First(first) => {
                let first = *first;
                if getppid() != Some(first) {
                    *self = Partner::second();
                } else if is_stopped(first.as_raw_nonzero().get().unsigned_abs()) {
                    // Its attempt to undo the run dies with it. This process becomes the first
                    // then.
                    let _ = kill_process(first, Signal::KILL);
                }
            }
            Partner::Second { child, since, backoff } => {
                if let Some(second) = child {
                    if matches!(second.try_wait(), Ok(None)) {
                        if is_stopped(second.id()) {
                            let _ = second.kill();
                        }
                        return;
                    }
                    *child = None;
                    if since.elapsed() > LONG {
                        *backoff = Backoff::new();
                    }
                    *since = Instant::now();
                }
                if since.elapsed() >= backoff.pause() || backoff.is_new() {
                    backoff.next();
                    *since = Instant::now();
                    *child = start(store, id).ok();
                }
            }
        }
    }

    fn notify(&self, state: &str) {
        if let Partner::Systemd(Some(socket)) = self {
            // systemd ends who does not report, and starts another.
            let _ = socket.send(state.as_bytes());
        }
    }
}

fn start(store: &Path, id: &str) -> std::io::Result<Child> {
    Command::new(own_program())
        .args(words(store, id, Role::Second))
        .args(["--first", &std::process::id().to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
}

/// The socket at which systemd waits for reports: sd_notify(3).
fn systemd() -> Option<UnixDatagram> {
    let name = std::env::var_os("NOTIFY_SOCKET")?;
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&name),
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect_addr(&address.ok()?).ok()?;
    Some(socket)
}
