//! systemd, where it runs the node: its units, and what its programs say.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::commands::{Command, TRUSTED_PATH};
use crate::error::{Error, Kind, Result};
use crate::here::Netns;

const UNITS: &str = "/etc/systemd/system";
const WANTS: &str = "multi-user.target.wants";

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
            .hint("it comes with systemd; name another controller of kube-proxy in the playbook")
    })
}

/// Writes a unit that each boot starts. It is on the disk when this returns.
///
/// # Errors
/// When a file cannot be written.
pub fn install(unit: &str, text: &str) -> Result<()> {
    install_in(Path::new(UNITS), unit, text)
}

/// Whether the unit is there with just this text, and each boot starts it.
pub fn is_installed(unit: &str, text: &str) -> bool {
    let [wanted, file] = paths(Path::new(UNITS), unit);
    wanted.is_symlink() && fs::read_to_string(file).is_ok_and(|now| now == text)
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

fn install_in(units: &Path, unit: &str, text: &str) -> Result<()> {
    let [wanted, file] = paths(units, unit);
    let folder = units.join(WANTS);
    fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, &e))?;
    fs::write(&file, text).map_err(|e| Error::io(&file, &e))?;
    match std::os::unix::fs::symlink(&file, &wanted) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io(&wanted, &e)),
        _ => {}
    }
    for path in [&file, &folder, units] {
        fs::File::open(path).and_then(|f| f.sync_all()).map_err(|e| Error::io(path, &e))?;
    }
    Ok(())
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
            install_in(tmp.path(), "a.service", text).unwrap();
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
