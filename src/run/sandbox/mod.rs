//! The sandbox: proxyshift runs itself again under `unshare`. That inner process loads a node's
//! state into an empty network namespace.
//!
//! The inner process writes JSON lines to its standard output: events, then a report or an error.

mod bridge;
pub mod links;
pub mod load;
pub mod packet_probe;
pub mod packets;
mod prerequisites;
pub mod rehearse;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::exit;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::event::{Claim, Event, Sink};
use crate::node::command::{child, never_began};
use crate::node::tools::{Tool, Tools};
use crate::plan::change::Edit;
use crate::run::sandbox::rehearse::Rehearsal;
use crate::runtime;
use crate::state::kube_proxy::Mode;

/// What the inner process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SandboxTask {
    /// Load the state, save it again, compare.
    Validate,
    /// Load the state, clean it up, roll that back, and verify both.
    Rehearse,
    /// As [`SandboxTask::Rehearse`], with edits from standard input.
    Edits,
    /// As [`SandboxTask::Rehearse`], with the leftovers of the present mode after another mode has
    /// taken over.
    Leave,
}

/// The result of a rehearsal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RehearsalReport {
    /// Objects that this kernel does not support. If there are any, they were not rehearsed, so the
    /// result is partial.
    pub unsupported: Vec<String>,
    /// Objects that a clean-up would remove and that this kernel does not support, so that their removal
    /// was not rehearsed.
    #[serde(default)]
    pub unrehearsed: Vec<String>,
    /// How many objects were removed and restored.
    pub removed: usize,
    /// The claims that were verified, in order.
    pub claims: Vec<Claim>,
}

/// One line on the standard output of the inner process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Message {
    Event(Event),
    Report(RehearsalReport),
    Error(Error),
}

/// Runs `task` on the snapshot in `dir`, in private network and mount namespaces.
///
/// # Errors
/// The error that the inner process reports; [`Kind::Permission`] when a namespace cannot be
/// created.
pub fn run(
    task: SandboxTask,
    dir: &Path,
    tools: &Tools,
    sink: &dyn Sink,
) -> Result<RehearsalReport> {
    run_with(task, None, Vec::new(), dir, tools, sink)
}

/// Rehearses the clean-up that follows when kube-proxy has moved to the mode `to`. What the new
/// mode writes by itself is not rehearsed: in chains that both modes write, the jumps to the old
/// mode's chains are removed, and nothing is added.
///
/// # Errors
/// As [`run`].
pub fn rehearse_takeover(
    to: Mode,
    dir: &Path,
    tools: &Tools,
    sink: &dyn Sink,
) -> Result<RehearsalReport> {
    run_with(SandboxTask::Leave, Some(to), Vec::new(), dir, tools, sink)
}

/// Rehearses `edits` on the snapshot in `dir`: applies and undoes them, and verifies both.
///
/// # Errors
/// As [`run`].
pub fn rehearse_edits(
    edits: &[Edit],
    dir: &Path,
    tools: &Tools,
    sink: &dyn Sink,
) -> Result<RehearsalReport> {
    let input = serde_json::to_vec(edits)
        .map_err(|e| Error::new(Kind::Unexpected, "the edits to rehearse", e))?;
    run_with(SandboxTask::Edits, None, input, dir, tools, sink)
}

fn run_with(
    task: SandboxTask,
    to: Option<Mode>,
    input: Vec<u8>,
    dir: &Path,
    tools: &Tools,
    sink: &dyn Sink,
) -> Result<RehearsalReport> {
    let own = runtime::program()?;
    let root = rustix::process::geteuid().is_root();
    let spaces = if root { "-nm" } else { "-Urnm" };
    let word = match task {
        SandboxTask::Validate => "validate",
        SandboxTask::Rehearse => "rehearse",
        SandboxTask::Edits => "edits",
        SandboxTask::Leave => "leave",
    };
    let mut args: Vec<OsString> = [spaces, "--kill-child"].map(OsString::from).into();
    args.extend([own.into(), "inside".into(), word.into(), dir.into()]);
    args.extend(to.map(|mode| mode.name().into()));
    let child = child(tools.tool(Tool::Unshare)?, args, &[]).stdin_bytes(input);
    let failed = |e| Error::new(Kind::Command, "unshare", e);
    let reader = child.reader().map_err(failed)?;
    let mut lines = BufReader::new(&reader);
    let mut last = None;
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).map_err(failed)? == 0 {
            break;
        }
        match serde_json::from_str(&line) {
            Ok(Message::Event(event)) => sink.emit(event),
            Ok(end) => last = Some(end),
            Err(_) => return Err(failed_inside(&line)),
        }
    }
    match last {
        Some(Message::Report(report)) => Ok(report),
        Some(Message::Error(error)) => Err(error),
        _ => Err(no_answer(&reader, root)),
    }
}

fn failed_inside(line: &str) -> Error {
    Error::new(Kind::Unexpected, "the private namespace", format!("said `{}`", line.trim_end()))
}

fn no_answer(reader: &duct::ReaderHandle, root: bool) -> Error {
    let stderr = match reader.try_wait() {
        Ok(Some(output)) if never_began(output.status) => {
            let cause = "interrupted; nothing was changed";
            return Error::new(Kind::Interrupted, "the private namespace", cause);
        }
        Ok(Some(output)) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        _ => String::new(),
    };
    let error = Error::new(Kind::Permission, "a private namespace", stderr);
    error.hint(if root {
        "this kernel or container does not let root make network namespaces"
    } else {
        "run as root, or allow user namespaces (user.max_user_namespaces)"
    })
}

/// The event sink of the inner process: writes events and the result to standard output, one JSON
/// object a line.
pub struct JsonLines;

impl JsonLines {
    fn line(line: &Message) {
        if let Ok(text) = serde_json::to_string(line) {
            // An error is ignored: it means that the outer process is gone, and that nobody reads
            // the line.
            let _ = writeln!(std::io::stdout().lock(), "{text}");
        }
    }

    /// Writes the result as the last line. Returns the exit code, which only `unshare` sees.
    pub fn end(result: Result<RehearsalReport>) -> u8 {
        match result {
            Ok(report) => {
                Self::line(&Message::Report(report));
                0
            }
            Err(error) => {
                let code = error.kind.exit_code();
                Self::line(&Message::Error(error));
                code
            }
        }
    }
}

impl Sink for JsonLines {
    fn emit(&self, event: Event) {
        Self::line(&Message::Event(event));
    }
}

/// Runs the task of the inner process on the snapshot in `dir`. `to` is the mode after a takeover.
pub fn inside(task: SandboxTask, dir: &Path, to: Option<Mode>) -> Result<RehearsalReport> {
    thread::spawn(end_unheard);
    let tools = Tools::find();
    let rehearsal = match (task, to) {
        (SandboxTask::Validate, _) => return rehearse::validate(dir, &tools),
        (SandboxTask::Rehearse, _) => Rehearsal::CleanUp,
        (SandboxTask::Edits, _) => Rehearsal::Edits(given_edits()?),
        (SandboxTask::Leave, Some(to)) => Rehearsal::Leaving(to),
        (SandboxTask::Leave, None) => {
            return Err(Error::new(Kind::Usage, "leave", "to which mode?"));
        }
    };
    rehearse::rehearse(dir, rehearsal, &tools, &JsonLines)
}

/// Ends this inner process when the outer one is gone, because nobody reads its output then.
fn end_unheard() {
    let stdout = std::io::stdout();
    // No events are requested, so poll reports only that the other end was closed.
    let mut end = [PollFd::new(&stdout, PollFlags::empty())];
    while let Ok(0) | Err(Errno::INTR) = poll(&mut end, None) {}
    exit(1);
}

fn given_edits() -> Result<Vec<Edit>> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).map_err(|e| Error::io("standard input", &e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::new(Kind::Unexpected, "the edits to rehearse", e))
}
