//! Which program a watchdog and the boot unit run. The init system must be able to execute it, now
//! and after a reboot, so it is chosen and run once before anything is changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::error::{Error, Kind, Result};
use crate::node::command::Command;
use crate::node::systemd;
use crate::run::Context;
use crate::runtime::{self, NAME};
use crate::store::run::BINARY;

/// The name of the copy that is run once, in the folder of the runs.
const TRIAL: &str = ".trial";

/// How long the program may take to print its version.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Whether SELinux enforces its policy: the file has `1` then.
const ENFORCED: &str = "/sys/fs/selinux/enforce";

/// Where the installed program should be.
const INSTALL: &str = "/usr/local/sbin";

/// What the choice depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ProgramFacts {
    /// The folder of the runs, in which the copy would be.
    runs: PathBuf,
    /// Whether nothing may be executed there.
    runs_noexec: bool,
    /// Whether systemd, confined by SELinux, is to execute the program.
    confined: bool,
    /// The path of the program that is running; none if it has none, like a copy in memory.
    installed: Option<PathBuf>,
    /// Why the program that is running cannot be the one; none if it can be.
    unfit: Option<&'static str>,
}

/// The program for a run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    /// A copy in the run's folder.
    Copy,
    /// The installed program.
    Installed(PathBuf),
}

/// Chooses the program.
///
/// # Errors
/// [`Kind::Blocked`], with what is to be done.
fn choose(facts: &ProgramFacts) -> Result<Choice> {
    if !facts.confined && !facts.runs_noexec {
        return Ok(Choice::Copy);
    }
    let runs = facts.runs.display();
    let why_no_copy = if facts.confined {
        format!("SELinux lets systemd execute no program in {runs}")
    } else {
        format!("{runs} is mounted with the option noexec, so no copy of {NAME} can run there")
    };
    let blocked =
        |cause: String, hint: String| Err(Error::new(Kind::Blocked, NAME, cause).hint(hint));
    let install = format!("install it as {INSTALL}/{NAME} and call that");
    let elsewhere = match facts.confined {
        true => install,
        false => {
            format!("name another store with --store DIR, remount that with exec, or {install}")
        }
    };
    let Some(installed) = &facts.installed else {
        return blocked(format!("{why_no_copy}, and this program has no path"), elsewhere);
    };
    let own = installed.display();
    if let Some(unfit) = facts.unfit {
        return blocked(format!("{why_no_copy}, and {own} {unfit}"), elsewhere);
    }
    if facts.confined && !installed.starts_with("/usr") {
        let cause = format!("{why_no_copy}, and {own} is not below /usr");
        return blocked(cause, elsewhere);
    }
    Ok(Choice::Installed(installed.clone()))
}

/// Looks at the node for what [`choose`] needs.
fn facts(context: &Context<'_>) -> Result<ProgramFacts> {
    let runs = context.store.runs_dir();
    let own = runtime::program()?;
    let installed = fs::canonicalize(&own).ok().filter(|path| !path.starts_with("/proc"));
    let enforced = fs::read_to_string(ENFORCED).is_ok_and(|text| text.trim() == "1");
    Ok(ProgramFacts {
        runs_noexec: is_noexec(&runs)?,
        confined: enforced && systemd::runs_the_node(),
        unfit: installed.as_deref().and_then(unfit),
        installed,
        runs,
    })
}

/// Why the program at `path` is not one that will still be there, and the same, at the next boot.
fn unfit(path: &Path) -> Option<&'static str> {
    let anyone = |part: &Path| {
        fs::metadata(part).map_or(true, |meta| meta.uid() != 0 || meta.mode() & 0o022 != 0)
    };
    if path.ancestors().any(anyone) {
        return Some("is where others than root may write");
    }
    if is_noexec(path).unwrap_or(true) {
        return Some("is on a file system that is mounted with the option noexec");
    }
    let in_memory = runtime::is_in_memory(path).unwrap_or(true);
    in_memory.then_some("is in memory, so it would be gone after a reboot")
}

fn is_noexec(path: &Path) -> Result<bool> {
    let stat = statvfs(path).map_err(|e| Error::io(path, &e.into()))?;
    Ok(stat.f_flag.contains(StatVfsMountFlags::NOEXEC))
}

/// Fails unless a watchdog can be started for a run that begins now: there is a program for it,
/// which runs, and room for a copy of it.
///
/// # Errors
/// [`Kind::Blocked`], [`Kind::Store`] or [`Kind::Command`], with the path and what is to be done.
pub(in crate::run) fn try_out(context: &Context<'_>) -> Result<()> {
    match choose(&facts(context)?)? {
        Choice::Installed(path) => run_once(&path),
        Choice::Copy => {
            let copy = context.store.runs_dir().join(TRIAL);
            runtime::copy_program(&copy)?;
            let result = run_once(&copy);
            fs::remove_file(&copy).map_err(|e| Error::io(&copy, &e))?;
            result
        }
    }
}

fn run_once(program: &Path) -> Result<()> {
    Command::new(program).args(["--version"]).deadline(TIMEOUT).run().map(drop).map_err(|e| {
        e.hint(format!(
            "the run must be undone by this program if nobody confirms it: name another store with \
             --store DIR, or install {NAME} as {INSTALL}/{NAME} and call that"
        ))
    })
}

/// The program for the run `id`: its copy in the run's folder, which is made if it is not there, or
/// the installed one.
///
/// # Errors
/// As [`try_out`].
pub(in crate::run) fn of_run(context: &Context<'_>, id: &str) -> Result<PathBuf> {
    match choose(&facts(context)?)? {
        Choice::Installed(path) => Ok(path),
        Choice::Copy => {
            let copy = context.store.run_dir(id).join(BINARY);
            if !copy.exists() {
                runtime::copy_program(&copy)?;
            }
            Ok(copy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> ProgramFacts {
        ProgramFacts {
            runs: "/var/lib/proxyshift/runs".into(),
            runs_noexec: false,
            confined: false,
            installed: Some("/usr/local/sbin/proxyshift".into()),
            unfit: None,
        }
    }

    #[test]
    fn a_copy_if_it_may_be_executed_else_the_installed_program() {
        let installed = Choice::Installed("/usr/local/sbin/proxyshift".into());
        assert_eq!(choose(&node()).unwrap(), Choice::Copy);
        assert_eq!(choose(&ProgramFacts { runs_noexec: true, ..node() }).unwrap(), installed);
        assert_eq!(choose(&ProgramFacts { confined: true, ..node() }).unwrap(), installed);
        // A copy is as good, wherever it came from.
        assert_eq!(choose(&ProgramFacts { unfit: Some("is"), ..node() }).unwrap(), Choice::Copy);
        let elsewhere = Some(PathBuf::from("/opt/proxyshift"));
        let noexec = ProgramFacts { runs_noexec: true, installed: elsewhere.clone(), ..node() };
        assert_eq!(choose(&noexec).unwrap(), Choice::Installed("/opt/proxyshift".into()));
        // Only what is below /usr has the type bin_t.
        let confined = ProgramFacts { confined: true, installed: elsewhere, ..node() };
        assert_eq!(choose(&confined).unwrap_err().kind, Kind::Blocked);
    }

    #[test]
    fn without_a_program_the_error_says_what_to_do() {
        let noexec = ProgramFacts { runs_noexec: true, ..node() };
        for facts in [
            ProgramFacts { unfit: Some("is in memory"), ..noexec.clone() },
            ProgramFacts { installed: None, ..noexec.clone() },
        ] {
            let error = choose(&facts).unwrap_err();
            assert_eq!((error.kind, error.kind.exit_code()), (Kind::Blocked, 3));
            assert!(error.cause.contains("/var/lib/proxyshift/runs is mounted with"), "{error}");
            assert!(error.cause.contains("noexec"), "{error}");
            let hint = error.hint.unwrap();
            for way in ["--store DIR", "remount", "/usr/local/sbin/proxyshift"] {
                assert!(hint.contains(way), "{hint}");
            }
        }
        let confined = ProgramFacts { confined: true, unfit: Some("is in memory"), ..node() };
        let error = choose(&confined).unwrap_err();
        assert!(error.cause.contains("SELinux"), "{error}");
        assert!(!error.hint.unwrap().contains("--store"), "another store has the same type");
    }
}
