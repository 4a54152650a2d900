//! The watchdog as a transient systemd unit of its own, which is outside of the session's control
//! group, and a timer that soon starts another one. Both go away with the run.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use crate::apply::systemd::{start_transient, systemctl};
use crate::error::Result;
use crate::node::systemd::is_active;
use crate::run::watchdog::{Role, words};

/// What systemd is to do for the watchdog, beginning with what the oldest versions know. A watchdog
/// that ends with status 0 has seen its run resolved. It waits for nothing that a boot starts, and
/// makes nothing of that start; but it ends before the machine does. KillMode leaves alone what the
/// operator's commands started, such as kube-proxy; an attempt to undo the run dies with the watchdog
/// anyway.
const PROPERTIES: [&str; 16] = [
    "Restart=on-failure",
    "Type=notify",
    "NotifyAccess=main",
    "KillMode=process",
    "OOMScoreAdjust=-900",
    "SendSIGHUP=no",
    "TimeoutStopSec=10",
    "RestartSec=1",
    "StartLimitIntervalSec=0",
    "WatchdogSec=30",
    "RestartPreventExitStatus=0",
    "WatchdogSignal=SIGKILL",
    "CollectMode=inactive-or-failed",
    "DefaultDependencies=no",
    "Conflicts=shutdown.target",
    "Before=shutdown.target",
];

/// How many of [`PROPERTIES`] to ask for, if systemd does not know all of them.
const KNOWN: [usize; 3] = [PROPERTIES.len(), 6, 3];

/// How long systemd may take to stop a timer.
const STOP: Duration = Duration::from_secs(10);

/// When the timer starts another watchdog.
const LATER: Duration = Duration::from_secs(60);

fn name(id: &str) -> String {
    format!("proxyshift-watchdog-{id}")
}

fn timer(id: &str) -> String {
    format!("{}-second", name(id))
}

/// Whether the unit of the run `id` runs.
pub(super) fn runs(id: &str) -> bool {
    is_active(&format!("{}.service", name(id)))
}

/// Starts `program` as the watchdog of the run `id`, and the timer. Returns when the watchdog is
/// ready.
///
/// # Errors
/// When systemd does not start it.
pub(super) fn start(program: &Path, store: &Path, id: &str) -> Result<()> {
    let start = |name: &str, role, delay| {
        let words = words(store, id, role);
        let argv: Vec<OsString> = std::iter::once(program.into()).chain(words).collect();
        let mut result = Ok(());
        for known in KNOWN {
            result = start_transient(name, &properties(known), delay, &argv);
            if result.is_ok() {
                break;
            }
        }
        result
    };
    start(&name(id), Role::Unit, None)?;
    if is_active(&format!("{}.timer", timer(id))) {
        return Ok(());
    }
    start(&timer(id), Role::SecondUnit, Some(LATER))
}

/// The first `known` properties. `Restart=always` needs the one that makes an exception from it.
fn properties(known: usize) -> Vec<&'static str> {
    let mut properties = PROPERTIES[..known].to_vec();
    if known == PROPERTIES.len() {
        properties[0] = "Restart=always";
    }
    properties
}

/// Removes the timer of the run `id`, if it is still there.
pub(super) fn stop_timer(id: &str) {
    let timer = format!("{}.timer", timer(id));
    if is_active(&timer) {
        // It ends by itself, with the next watchdog, which finds the run resolved.
        let _ = systemctl(&["stop", &timer], STOP);
    }
}
