//! systemd, if it runs the node: its units and their logs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::{Command, TRUSTED_PATH};
use crate::error::{Error, Kind, Result};
use crate::runtime::Netns;

/// The folder of this node's own units.
pub const UNITS: &str = "/etc/systemd/system";

/// The folder in it with the links to the units that each boot starts.
pub const WANTS: &str = "multi-user.target.wants";

/// The deadline for systemd to report the state of a unit.
const STATE: Duration = Duration::from_secs(10);

/// Whether systemd runs this node.
pub fn runs_the_node() -> bool {
    Path::new("/run/systemd/system").is_dir() && Netns::current().is_ok_and(|n| n.of_init)
}

/// The last lines of a unit's log, as `; its log: one; two`; empty without any.
pub fn log(unit: &str) -> String {
    let args = ["--unit", unit, "--lines", "3", "--output", "cat", "--no-pager", "--quiet"];
    let output = program("journalctl").and_then(|program| Command::new(program).args(args).run());
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    if lines.is_empty() { String::new() } else { format!("; its log: {}", lines.join("; ")) }
}

/// Finds a program of systemd.
///
/// # Errors
/// [`Kind::MissingTool`].
pub fn program(name: &str) -> Result<PathBuf> {
    which::which_in(name, Some(TRUSTED_PATH), "/").map_err(|_| {
        Error::new(Kind::MissingTool, name, format!("not found in {TRUSTED_PATH}"))
            .hint("it comes with systemd; for kube-proxy, the playbook may name another controller")
    })
}

/// Whether a unit runs.
pub fn is_active(unit: &str) -> bool {
    let state = program("systemctl").and_then(|systemctl| {
        Command::new(systemctl).args(["is-active", "--quiet", unit]).deadline(STATE).run()
    });
    state.is_ok()
}

/// An installed unit.
pub struct Installed {
    /// The text of its file.
    pub text: String,
    /// Whether each boot starts it.
    pub at_boot: bool,
}

/// The installed unit of that name.
pub fn installed(unit: &str) -> Option<Installed> {
    let units = Path::new(UNITS);
    let text = fs::read_to_string(units.join(unit)).ok()?;
    Some(Installed { text, at_boot: units.join(WANTS).join(unit).is_symlink() })
}
