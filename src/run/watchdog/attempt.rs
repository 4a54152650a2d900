//! One attempt to undo a run, in a process of its own. An attempt that hangs is killed with all
//! programs that it runs, so that another one can begin.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};
use crate::node::environment::Variable;
use crate::node::launcher;
use crate::node::locks::LOCK_DIR;
use crate::run::late_runner;
use crate::run::watchdog::independence::own_program;
use crate::run::watchdog::{Role, words};
use crate::runtime::ProcessId;
use crate::store::journal::JOURNAL;

/// How long an attempt may neither write a line of the run's journal nor report anything. The
/// longest step of an undo waits for kube-proxy for 2 minutes; to load the rules of a node of
/// 20,000 services takes one.
const STALLED: Duration = Duration::from_secs(300);

/// How long the programs of an attempt that was killed may take to end.
const KILLED: Duration = Duration::from_secs(20);

/// The log of this process, which is its standard error.
const LOG: &str = "/proc/self/fd/2";

/// How long the output of an attempt that has ended is waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The pause between two looks at the attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// What an attempt is to do.
pub(super) struct Attempt<'a> {
    /// The store's directory.
    pub(super) store: &'a Path,
    /// The run's id.
    pub(super) id: &'a str,
    /// Why the run is undone, for its log.
    pub(super) why: &'a str,
    /// Whether the run is closed, because an earlier attempt undid it only in part.
    pub(super) again: bool,
    /// The operator's environment, unless this process has it.
    pub(super) environment: &'a [Variable],
}

/// What the process of an attempt prints when it has succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptResult {
    /// Whether it undid the run; false if there was nothing to undo.
    pub undone: bool,
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The run was undone, and the node is verified to be as before.
    Undone,
    /// The run was not there to be undone.
    NothingToDo,
    /// It failed.
    Failed(Error),
}

/// Undoes the run, in another process. `meanwhile` is called again and again until that has ended.
pub(super) fn run(attempt: &Attempt<'_>, meanwhile: &mut dyn FnMut()) -> Ended {
    match start(attempt) {
        Ok(child) => supervise(attempt, child, meanwhile),
        Err(e) => Ended::Failed(failure(format!("cannot be started: {e}"))),
    }
}

fn failure(cause: String) -> Error {
    Error::new(Kind::Command, "the process that undoes the run", cause)
}

fn start(attempt: &Attempt<'_>) -> io::Result<Child> {
    let mut args = words(attempt.store, attempt.id, Role::of_attempt(attempt.again));
    args.splice(0..0, ["--output", "json"].map(OsString::from));
    args.extend(["--why", attempt.why].map(OsString::from));
    // It dies with this process, so that another watchdog does not meet it.
    let (program, args) = launcher::bound(own_program(), &args);
    Command::new(program)
        .args(args)
        .current_dir("/")
        .envs(attempt.environment.iter().map(|(name, value)| (name, value)))
        .env_remove("NOTIFY_SOCKET")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
}

fn supervise(attempt: &Attempt<'_>, mut child: Child, meanwhile: &mut dyn FnMut()) -> Ended {
    let id = ProcessId::of(child.id());
    let output = child.stdout.take().map(read_output);
    let mut progress = 0;
    let mut since = Instant::now();
    loop {
        meanwhile();
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                // A program that it started may still hold the pipe open.
                let output = output.and_then(|text| text.recv_timeout(LAST_WORDS).ok());
                return answered(&output.unwrap_or_default(), &status.to_string());
            }
            Err(e) => return Ended::Failed(failure(e.to_string())),
        }
        let now = written(attempt);
        if now != progress {
            (progress, since) = (now, Instant::now());
        }
        let limit = stalled();
        if since.elapsed() >= limit {
            if let Some(id) = id {
                late_runner::kill(id, KILLED);
            }
            let _ = child.try_wait();
            let cause = format!("it hung: nothing went on for {limit:?}, so it was killed");
            return Ended::Failed(failure(cause));
        }
        sleep(PAUSE);
    }
}

/// How many bytes the journal of the run and the log of this process have. The attempt writes to
/// both, and its standard error is the log.
fn written(attempt: &Attempt<'_>) -> u64 {
    let memory = Path::new(LOCK_DIR);
    let journals =
        [memory, attempt.store].map(|dir| dir.join("runs").join(attempt.id).join(JOURNAL));
    let length = journals.iter().filter_map(|path| path.metadata().ok()).map(|meta| meta.len());
    let log = Path::new(LOG).metadata().map_or(0, |meta| meta.len());
    length.sum::<u64>().wrapping_add(log)
}

/// [`STALLED`]; in a debug build, the number of seconds that PROXYSHIFT_STALLED names, for tests.
fn stalled() -> Duration {
    let named = std::env::var("PROXYSHIFT_STALLED").ok().filter(|_| cfg!(debug_assertions));
    named.and_then(|text| text.parse().ok()).map_or(STALLED, Duration::from_secs)
}

/// Reads all that the attempt prints, in a thread, because a program that the attempt started may
/// never close the pipe.
fn read_output(mut out: ChildStdout) -> Receiver<String> {
    let (sender, text) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let _ = out.read_to_end(&mut text);
        // Nobody may wait any more.
        let _ = sender.send(String::from_utf8_lossy(&text).into_owned());
    });
    text
}

/// What the output of an attempt says.
fn answered(output: &str, status: &str) -> Ended {
    if let Ok(answer) = serde_json::from_str::<AttemptResult>(output) {
        return if answer.undone { Ended::Undone } else { Ended::NothingToDo };
    }
    match serde_json::from_str::<Error>(output) {
        Ok(error) => Ended::Failed(error),
        Err(_) => Ended::Failed(failure(format!("it ended with {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_says_that_the_run_is_undone() {
        assert!(matches!(answered(r#"{"undone": true}"#, ""), Ended::Undone));
        assert!(matches!(answered(r#"{"undone": false}"#, ""), Ended::NothingToDo));
        for output in ["", "{", "true", r#"{"undone": 1}"#] {
            let Ended::Failed(error) = answered(output, "exit status: 0") else { panic!() };
            assert_eq!(error.cause, "it ended with exit status: 0", "{output}");
        }
        let error = Error::new(Kind::Lock, "a", "b").hint("c");
        let text = serde_json::json!({
            "schema": "proxyshift.error", "version": 1, "code": 3, "kind": error.kind,
            "object": error.object, "cause": error.cause, "hint": error.hint,
        });
        let Ended::Failed(found) = answered(&text.to_string(), "") else { panic!() };
        assert_eq!((found.kind, found.cause.as_str()), (Kind::Lock, "b"));
    }
}
