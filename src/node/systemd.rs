//! systemd, where it runs the node: its units, and what its programs say.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::{Command, TRUSTED_PATH};
use crate::error::{Error, Kind, Result};
use crate::runtime::Netns;

const UNITS: &str = "/etc/systemd/system";
const WANTS: &str = "multi-user.target.wants";

/// How long systemd may take to say how a unit is.
const STATE: Duration = Duration::from_secs(10);

/// Whether systemd runs this node, so that a unit is of use.
pub fn runs_the_node() -> bool {
    Path::new("/run/systemd/system").is_dir() && Netns::current().is_ok_and(|n| n.of_init)
}

/// Runs `systemctl` with these words, the last of which may name a unit.
///
/// # Errors
/// [`Kind::Command`], with the last lines of the unit's log; [`Kind::MissingTool`].
pub fn systemctl(words: &[&str], within: Duration) -> Result<()> {
    let run = Command::new(program("systemctl")?).args(words).deadline(within).run();
    run.map(drop).map_err(|mut error| match words {
        [_, .., unit] => {
            error.cause.push_str(&log(unit));
            error.hint(format!("see `systemctl status {unit}` and `journalctl -u {unit}`"))
        }
        _ => error,
    })
}

/// The last lines of a unit's log, as `; its log: one; two`; nothing if there is none.
pub fn log(unit: &str) -> String {
    let args = ["--unit", unit, "--lines", "3", "--output", "cat", "--no-pager", "--quiet"];
    let output = program("journalctl").and_then(|program| Command::new(program).args(args).run());
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    if lines.is_empty() { String::new() } else { format!("; its log: {}", lines.join("; ")) }
}

fn program(name: &str) -> Result<PathBuf> {
    which::which_in(name, Some(TRUSTED_PATH), "/").map_err(|_| {
        Error::new(Kind::MissingTool, name, format!("not found in {TRUSTED_PATH}"))
            .hint("it comes with systemd; for kube-proxy, the playbook may name another controller")
    })
}

/// Whether a unit runs.
pub fn is_active(unit: &str) -> bool {
    systemctl(&["is-active", "--quiet", unit], STATE).is_ok()
}

/// Writes a unit, which nothing starts yet. It is on the disk, whole, when this returns.
///
/// # Errors
/// When the file cannot be written.
pub fn write(unit: &str, text: &str) -> Result<()> {
    write_in(Path::new(UNITS), unit, text)
}

/// Has each boot start a unit.
///
/// # Errors
/// When the link cannot be made.
pub fn enable(unit: &str) -> Result<()> {
    enable_in(Path::new(UNITS), unit)
}

/// A unit that is there.
pub struct Installed {
    /// What its file says.
    pub text: String,
    /// Whether each boot starts it.
    pub at_boot: bool,
}

/// The unit of that name, if there is one.
pub fn installed(unit: &str) -> Option<Installed> {
    let [wanted, file] = paths(Path::new(UNITS), unit);
    let text = fs::read_to_string(file).ok()?;
    Some(Installed { text, at_boot: wanted.is_symlink() })
}

/// Takes a unit away again, if it is there.
///
/// # Errors
/// When a file cannot be removed.
pub fn remove(unit: &str) -> Result<()> {
    remove_in(Path::new(UNITS), unit)
}

fn paths(units: &Path, unit: &str) -> [PathBuf; 2] {
    [units.join(WANTS).join(unit), units.join(unit)]
}

fn write_in(units: &Path, unit: &str, text: &str) -> Result<()> {
    let [_, path] = paths(units, unit);
    let write = || {
        fs::create_dir_all(units)?;
        let mut file = tempfile::Builder::new().prefix(".proxyshift").tempfile_in(units)?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        fs::File::open(units)?.sync_all()
    };
    write().map_err(|e: io::Error| Error::io(&path, &e))
}

fn enable_in(units: &Path, unit: &str) -> Result<()> {
    let [wanted, path] = paths(units, unit);
    let folder = units.join(WANTS);
    let link = || {
        fs::create_dir_all(&folder)?;
        match symlink(&path, &wanted) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        fs::File::open(&folder)?.sync_all()?;
        fs::File::open(units)?.sync_all()
    };
    link().map_err(|e| Error::io(&wanted, &e))
}

fn remove_in(units: &Path, unit: &str) -> Result<()> {
    for path in paths(units, unit) {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(&path, &e)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_wanted_at_boot_until_it_is_removed() {
        let tmp = tempfile::tempdir().unwrap();
        for text in ["[Unit]\n", "[Unit]\nAfter=x\n"] {
            write_in(tmp.path(), "a.service", text).unwrap();
            enable_in(tmp.path(), "a.service").unwrap();
        }
        let [wanted, file] = paths(tmp.path(), "a.service");
        assert_eq!(fs::canonicalize(wanted).unwrap(), file.canonicalize().unwrap());
        assert_eq!(fs::read_to_string(&file).unwrap(), "[Unit]\nAfter=x\n");
        for _ in 0..2 {
            remove_in(tmp.path(), "a.service").unwrap();
        }
        assert!(!file.exists() && !tmp.path().join(WANTS).join("a.service").is_symlink());
    }
}
