//! Reads systemd's units and their logs, if systemd runs the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::{Command, TRUSTED_PATH};
use crate::error::{Error, Kind, Result};
use crate::runtime::Netns;

/// The folder of the units that an administrator installs on this node.
pub const UNITS: &str = "/etc/systemd/system";

/// The folder in [`UNITS`] with the links to the units that each boot starts.
pub const WANTS: &str = "multi-user.target.wants";

/// The deadline for systemctl to report the state of a unit.
const STATE: Duration = Duration::from_secs(10);

/// Whether systemd runs this node: it is the running init system, and this is the network namespace
/// of process 1.
pub fn runs_the_node() -> bool {
    Path::new("/run/systemd/system").is_dir() && Netns::current().is_ok_and(|n| n.of_init)
}

/// The last lines of a unit's log, as `; its log: one; two`; empty if the log has none.
pub fn log(unit: &str) -> String {
    let args = ["--unit", unit, "--lines", "3", "--output", "cat", "--no-pager", "--quiet"];
    let output = program("journalctl").and_then(|program| Command::new(program).args(args).run());
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    if lines.is_empty() { String::new() } else { format!("; its log: {}", lines.join("; ")) }
}

/// Finds one of systemd's programs, such as `systemctl`.
///
/// # Errors
/// [`Kind::MissingTool`] if it is not installed.
pub fn program(name: &str) -> Result<PathBuf> {
    which::which_in(name, Some(TRUSTED_PATH), "/").map_err(|_| {
        Error::new(Kind::MissingTool, name, format!("not found in {TRUSTED_PATH}"))
            .hint("it comes with systemd; for kube-proxy, the playbook may name another controller")
    })
}

/// Whether a unit is active.
pub fn is_active(unit: &str) -> bool {
    let state = program("systemctl").and_then(|systemctl| {
        Command::new(systemctl).args(["is-active", "--quiet", unit]).deadline(STATE).run()
    });
    state.is_ok()
}

/// A unit that is installed in [`UNITS`].
pub struct Installed {
    /// The text of the unit's file.
    pub text: String,
    /// Whether each boot starts the unit.
    pub at_boot: bool,
}

/// The unit `unit`; none if it is not installed in [`UNITS`].
pub fn installed(unit: &str) -> Option<Installed> {
    let units = Path::new(UNITS);
    let text = fs::read_to_string(units.join(unit)).ok()?;
    Some(Installed { text, at_boot: units.join(WANTS).join(unit).is_symlink() })
}
