//! Writes, enables, starts, stops and removes systemd units.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::node::command::Command;
use crate::node::systemd::{self, UNITS, WANTS};

/// How long systemd may take to start a transient unit.
const START: Duration = Duration::from_secs(30);

/// Runs `systemctl` with the arguments `words`: an action and, last, a unit.
///
/// # Errors
/// [`crate::error::Kind::Command`], with the last lines of the unit's log;
/// [`crate::error::Kind::MissingTool`] if systemctl is not installed.
pub fn systemctl(words: &[&str], within: Duration) -> Result<()> {
    let run =
        Command::new(systemd::program("systemctl")?).args(words).deadline(within).bound().run();
    run.map(drop).map_err(|mut error| match words {
        [_, .., unit] => {
            error.cause.push_str(&systemd::log(unit));
            error.hint(format!("see `systemctl status {unit}` and `journalctl -u {unit}`"))
        }
        _ => error,
    })
}

/// Starts `argv` as the transient service `name`, with the properties `properties`. With `delay`,
/// a timer starts the service after that time.
///
/// # Errors
/// As [`systemctl`]; [`crate::error::Kind::MissingTool`] if systemd-run is not installed.
pub fn start_transient(
    name: &str,
    properties: &[&str],
    delay: Option<Duration>,
    argv: &[OsString],
) -> Result<()> {
    let mut words: Vec<OsString> =
        vec![format!("--unit={name}").into(), "--quiet".into(), "--slice=system.slice".into()];
    if let Some(delay) = delay {
        words.push(format!("--on-active={}s", delay.as_secs()).into());
        let timer = ["AccuracySec=1s", "DefaultDependencies=no"];
        words.extend(timer.map(|property| format!("--timer-property={property}").into()));
    }
    words.extend(properties.iter().map(|property| format!("--property={property}").into()));
    words.push("--".into());
    let [program, args @ ..] = argv else { return Ok(()) };
    words.push(program.clone());
    // systemd expands variables in the arguments, but not in the program's path.
    words.extend(args.iter().map(|arg| doubled(arg, b'$')));
    let run = systemd::program("systemd-run")?;
    Command::new(run).args(words).deadline(START).run().map(drop)
}

/// `text` with each byte `byte` twice.
fn doubled(text: &OsStr, byte: u8) -> OsString {
    let twice = |b: &u8| std::iter::repeat_n(*b, if *b == byte { 2 } else { 1 });
    OsString::from_vec(text.as_bytes().iter().flat_map(twice).collect())
}

/// The path of a program, as `ExecStart=` of a unit's file takes it.
pub fn exec_path(path: &Path) -> String {
    quoted(path.as_os_str())
}

/// An argument of a program, as `ExecStart=` of a unit's file takes it: systemd.syntax(7),
/// systemd.unit(5), systemd.service(5).
pub fn exec_argument(argument: impl AsRef<OsStr>) -> String {
    quoted(&doubled(argument.as_ref(), b'$'))
}

fn quoted(text: &OsStr) -> String {
    let mut quoted = String::from("\"");
    for chunk in text.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                // The first character of a specifier.
                '%' => quoted.push_str("%%"),
                c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
                c => quoted.push(c),
            }
        }
        quoted.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    quoted.push('"');
    quoted
}

/// Writes the file of a unit, but does not start or enable the unit. The write is atomic, and
/// synced when this returns.
///
/// # Errors
/// When the unit's file cannot be written.
pub fn write(unit: &str, text: &str) -> Result<()> {
    write_in(Path::new(UNITS), unit, text)
}

/// Enables a unit, so that each boot starts it.
///
/// # Errors
/// When the symbolic link that enables the unit cannot be made.
pub fn enable(unit: &str) -> Result<()> {
    enable_in(Path::new(UNITS), unit)
}

/// Removes the file of a unit and the link that enables it, if they exist.
///
/// # Errors
/// When one of these two cannot be removed.
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
    fn what_systemd_would_expand_is_escaped() {
        let odd = r#"/a b/%h"\$HOME"#;
        assert_eq!(exec_path(Path::new(odd)), r#""/a b/%%h\"\\$HOME""#);
        assert_eq!(exec_argument(odd), r#""/a b/%%h\"\\$$HOME""#);
        assert_eq!(exec_argument("a\nb\t;"), r#""a\x0ab\x09;""#);
        assert_eq!(exec_argument(OsStr::from_bytes(b"s\xfc\xc3\xbc")), "\"s\\xfc\u{fc}\"");
    }

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
