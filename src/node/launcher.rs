//! Starts a program so that it ends when this process ends, however that ends.
//!
//! A program that outlives its caller changes the node after everybody believes that nothing does.
//! The kernel kills a process when its parent dies, if the process itself has asked for that. So
//! this program starts itself, asks, and becomes the other program. The kernel's parent is the
//! thread that started the process: callers wait for the program in that thread.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// The first argument of this program when it is to become another.
const WORD: &str = "become";

/// This program's file, for a process that is started by it.
const OWN: &str = "/proc/self/exe";

/// The exit code of a program that could not be started, as shells have it.
const NOT_STARTED: u8 = 127;

/// Whether this process is the program that understands [`WORD`]. The tests of the library are
/// others.
static OFFERED: AtomicBool = AtomicBool::new(false);

/// Notes that this process is a program whose `main` calls [`requested`].
pub fn offer() {
    OFFERED.store(true, Ordering::Relaxed);
}

/// A program and its arguments, which start `program` with `args` so that it is killed when the
/// calling thread ends. Where that cannot be had, these are `program` and `args` themselves.
pub fn bound(program: &Path, args: &[OsString]) -> (PathBuf, Vec<OsString>) {
    if !OFFERED.load(Ordering::Relaxed) || !Path::new(OWN).exists() {
        return (program.to_owned(), args.to_vec());
    }
    let caller = std::process::id().to_string();
    let first = [WORD.into(), caller.into(), program.as_os_str().to_owned()];
    (OWN.into(), first.into_iter().chain(args.iter().cloned()).collect())
}

/// The PID of the caller, the program and its arguments, if `words` ask this process to become
/// another.
pub fn requested(words: &[OsString]) -> Option<(u32, &[OsString])> {
    let [_, word, caller, program @ ..] = words else { return None };
    let caller = caller.to_str()?.parse().ok()?;
    (word == WORD && !program.is_empty()).then_some((caller, program))
}

/// Becomes `program`, and dies with the caller. Returns an exit code, and what to report, if that
/// fails.
pub fn become_program(caller: u32, program: &[OsString]) -> (u8, String) {
    if let Err(e) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return (NOT_STARTED, format!("cannot be bound to its caller: {e}"));
    }
    // The caller may have died before the kernel was asked.
    if u32::try_from(Pid::as_raw(getppid())) != Ok(caller) {
        return (NOT_STARTED, format!("its caller, process {caller}, has ended"));
    }
    let error = Command::new(&program[0]).args(&program[1..]).exec();
    (NOT_STARTED, format!("{}: {error}", program[0].display()))
}
