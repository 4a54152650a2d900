//! Which watchdogs of a run there are: a file for each of them, on a file system in memory. The
//! process that was started last is not the one that `run.json` names, when another has started it
//! anew. None of these files is needed to undo a run.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::node::environment::{self, Variable};
use crate::node::locks::LOCK_DIR;
use crate::runtime::{is_stopped, process_start};
use crate::store::run::{Run, WatchdogProcess};

/// How a watchdog is kept from ending with the session in which the run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogForm {
    /// A systemd unit of its own, and a timer that starts another one.
    Unit,
    /// Two processes that start each other anew, outside of every control group.
    Outside,
    /// Two processes that start each other anew, in the session's control group.
    Inside,
}

impl WatchdogForm {
    const ALL: [WatchdogForm; 3] =
        [WatchdogForm::Unit, WatchdogForm::Outside, WatchdogForm::Inside];

    /// The form as a word, for this program alone.
    pub(super) fn word(self) -> &'static str {
        match self {
            WatchdogForm::Unit => "unit",
            WatchdogForm::Outside => "outside",
            WatchdogForm::Inside => "inside",
        }
    }

    /// The form with this [`word`](Self::word).
    pub(super) fn of(word: &str) -> Option<WatchdogForm> {
        WatchdogForm::ALL.into_iter().find(|form| form.word() == word)
    }
}

impl std::fmt::Display for WatchdogForm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WatchdogForm::Unit => {
                "a systemd unit of its own, which is started anew when it ends, \
                 and another one that a timer starts"
            }
            WatchdogForm::Outside => {
                "two processes that start each other anew, out of the session's control group"
            }
            WatchdogForm::Inside => {
                "two processes that start each other anew, still inside the session's control \
                 group: they end with the session if that group is killed"
            }
        })
    }
}

/// The name of the file with the variables of the operator's environment.
const ENVIRONMENT: &str = "environment";

fn folder(id: &str) -> PathBuf {
    Path::new(LOCK_DIR).join("watchdogs").join(id)
}

/// Keeps this process's environment for the watchdogs of the run `id`, which may have to run the
/// operator's commands. systemd would show it to every user.
pub(super) fn keep_environment(id: &str) -> io::Result<()> {
    let mut text = Vec::new();
    for (name, value) in environment::of_operator() {
        for part in [name.as_bytes(), b"=", value.as_bytes(), b"\0"] {
            text.extend_from_slice(part);
        }
    }
    write(&make(id)?.join(ENVIRONMENT), &text)
}

/// Writes a file that only root may read.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = fs::File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

/// The environment that [`keep_environment`] kept.
pub(super) fn kept_environment(id: &str) -> Vec<Variable> {
    let text = fs::read(folder(id).join(ENVIRONMENT)).unwrap_or_default();
    let variable = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b'=')?;
        let part = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        Some((part(&line[..at]), part(&line[at + 1..])))
    };
    text.split(|byte| *byte == 0).filter_map(variable).collect()
}

/// Notes that this process is a watchdog of the run `id`.
pub(super) fn add_own(id: &str, form: WatchdogForm) {
    let pid = std::process::id();
    let Some(start) = process_start(pid) else { return };
    if let Ok(folder) = make(id) {
        // A full /run is no reason to end.
        let _ = write(&folder.join(format!("{pid}-{start}")), form.word().as_bytes());
    }
}

/// Removes what is noted of this process and, if it is the last watchdog of the run `id`, of the
/// run.
pub(super) fn remove_own(id: &str) {
    let own = std::process::id();
    let folder = folder(id);
    if let Some(start) = process_start(own) {
        let _ = fs::remove_file(folder.join(format!("{own}-{start}")));
    }
    if noted(id).is_empty() {
        let _ = fs::remove_dir_all(&folder);
        // It goes with the last run.
        let _ = folder.parent().map(fs::remove_dir);
    }
}

fn make(id: &str) -> io::Result<PathBuf> {
    let folder = folder(id);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    Ok(folder)
}

/// The processes that are noted as watchdogs of the run `id`, alive or not.
fn recorded(id: &str) -> impl Iterator<Item = WatchdogProcess> {
    let entries = fs::read_dir(folder(id)).into_iter().flatten().flatten();
    entries.filter_map(|entry| process_of(&entry.file_name()))
}

fn process_of(name: &OsStr) -> Option<WatchdogProcess> {
    let (pid, start) = name.to_str()?.split_once('-')?;
    Some(WatchdogProcess { pid: pid.parse().ok()?, start: start.parse().ok()? })
}

/// The watchdogs of the run `id` that are noted and able to act, each with its form.
fn noted(id: &str) -> Vec<(WatchdogProcess, WatchdogForm)> {
    let entries = fs::read_dir(folder(id)).into_iter().flatten().flatten();
    let process = |entry: fs::DirEntry| {
        let process = process_of(&entry.file_name())?;
        let form = WatchdogForm::of(&fs::read_to_string(entry.path()).ok()?)?;
        acts(process).then_some((process, form))
    };
    let mut found: Vec<_> = entries.filter_map(process).collect();
    found.sort_by_key(|(process, _)| (process.start, process.pid));
    found
}

fn acts(process: WatchdogProcess) -> bool {
    process.is_alive() && !is_stopped(process.pid)
}

/// A watchdog of `run` that is able to act; none if there is none.
pub fn watchdog_of(run: &Run) -> Option<WatchdogProcess> {
    let recorded = run.pending.as_ref().and_then(|pending| pending.watchdog);
    recorded.filter(|process| acts(*process)).or_else(|| first(&run.id))
}

/// Kills the watchdogs of the run `id` that are stopped. Others take their place.
pub(super) fn kill_stopped(id: &str) {
    for process in recorded(id).filter(|process| process.is_alive() && is_stopped(process.pid)) {
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
    }
}

/// The first watchdog of the run `id` that is noted and able to act.
pub(super) fn first(id: &str) -> Option<WatchdogProcess> {
    Some(noted(id).first()?.0)
}

/// The PIDs of the watchdogs of the run `id`, as far as they are noted.
pub(super) fn pids(id: &str) -> Vec<u32> {
    noted(id).into_iter().map(|(process, _)| process.pid).collect()
}

/// The form of the watchdogs of `run`; none if it is not known.
pub fn form_of(run: &Run) -> Option<WatchdogForm> {
    Some(noted(&run.id).first()?.1)
}
