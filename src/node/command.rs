//! Runs programs with a deadline, and captures their output and error text.
//!
//! Never uses a shell. A child has nothing of the caller's environment, but the C locale and the
//! trusted path, and leads a process group of its own: so Ctrl-C does not interrupt a restore, and
//! a child that passes its deadline is killed with its descendants.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::environment::Variable;
use super::launcher;
use super::locks::XtablesLock;
use crate::error::{Error, Kind, Result};

/// The only directories in which programs are searched. The caller's `PATH` is never used.
pub const TRUSTED_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The deadline of a program, unless another is set.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// How many lines of a failed program's error text are repeated in the error.
const ERROR_LINES: usize = 3;

/// One run of a program: its arguments, input and deadline.
#[derive(Debug, Clone)]
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<Variable>,
    stdin: Option<Arc<String>>,
    deadline: Duration,
    lossy: bool,
    bound: bool,
    lock: Option<XtablesLock>,
}

/// The output of a program that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutput {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error. Some programs report there that their standard output is incomplete.
    pub stderr: String,
}

impl Command {
    /// A run of the program at the path `program` (see [`super::tools::Tools`]), with no arguments,
    /// no input, and [`DEADLINE`].
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Command {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: None,
            deadline: DEADLINE,
            lossy: false,
            bound: false,
            lock: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable for the child.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the standard input; without this call it is `/dev/null`.
    #[must_use]
    pub fn stdin(self, text: impl Into<String>) -> Self {
        self.shared_stdin(Arc::new(text.into()))
    }

    /// As [`Self::stdin`], for a text that the caller also keeps. The text is shared instead of
    /// copied, because it may be as large as all rules of the node.
    #[must_use]
    pub fn shared_stdin(mut self, text: Arc<String>) -> Self {
        self.stdin = Some(text);
        self
    }

    /// Sets the deadline, after which the program is killed.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Takes output that is not UTF-8, and replaces what is not. For what others named: the kernel
    /// lets a link's name hold any byte.
    #[must_use]
    pub fn lossy(mut self) -> Self {
        self.lossy = true;
        self
    }

    /// Lets the kernel kill the program when this process dies. For each program that changes the
    /// node; a program that only reads is not worth the time.
    #[must_use]
    pub fn bound(mut self) -> Self {
        self.bound = true;
        self
    }

    /// Lets the program hold `lock` too, until it and all that it started have ended. The program
    /// gets the lock as its standard output, and so has no other.
    #[must_use]
    pub fn holding(mut self, lock: &XtablesLock) -> Self {
        self.lock = Some(lock.clone());
        self
    }

    /// Runs the program to its end.
    ///
    /// Fails with [`Kind::Command`] when the program cannot be started, passes its deadline, exits
    /// with a status other than 0, or writes something other than UTF-8.
    pub fn run(&self) -> Result<CommandOutput> {
        let mut output = self.run_once()?;
        if never_began(output.status) {
            output = self.run_once()?;
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(self.error(failure(&output.status.to_string(), &stderr)));
        }
        let stdout = match String::from_utf8(output.stdout) {
            Ok(text) => text,
            Err(e) if self.lossy => String::from_utf8_lossy(e.as_bytes()).into_owned(),
            Err(e) => return Err(self.error(format!("its output is not UTF-8: {e}"))),
        };
        Ok(CommandOutput { stdout, stderr })
    }

    /// Starts the program, and waits until it has ended or its deadline has passed.
    fn run_once(&self) -> Result<Output> {
        let handle = self.start().map_err(|e| self.error(e))?;
        let done = handle.wait_timeout(self.deadline).map_err(|e| self.error(e))?.is_some();
        if !done {
            kill_group(&handle.pids());
            // Reaps the killed child, waiting at most 1 s, because a descendant that left the
            // process group may still hold the pipes open.
            let _ = handle.wait_timeout(Duration::from_secs(1));
            let cause = format!("did not finish within {:?}, and was killed", self.deadline);
            return Err(self.error(cause));
        }
        // The program has ended, so this does not wait. `into_output` does not copy the output,
        // which may be large.
        handle.into_output().map_err(|e| self.error(e))
    }

    /// Starts the program, and a thread that writes the program's standard input.
    fn start(&self) -> io::Result<duct::Handle> {
        let expression = self.expression()?;
        let Some(text) = self.stdin.clone() else { return expression.stdin_null().start() };
        let (reader, mut writer) = io::pipe()?;
        let handle = expression.stdin_file(reader).start()?;
        // A program that ends early closes its input, so this write may fail; the exit status
        // reports the failure.
        thread::spawn(move || writer.write_all(text.as_bytes()));
        Ok(handle)
    }

    fn expression(&self) -> io::Result<duct::Expression> {
        let expression = if self.bound {
            let (program, args) = launcher::bound(&self.program, &self.args);
            child(&program, args, &self.env)
        } else {
            child(&self.program, &self.args, &self.env)
        };
        Ok(match &self.lock {
            Some(lock) => expression.stdout_file(lock.shared()?),
            None => expression.stdout_capture(),
        })
    }

    fn error(&self, cause: impl std::fmt::Display) -> Error {
        Error::new(Kind::Command, self.to_string(), cause)
    }
}

impl std::fmt::Display for Command {
    /// The program's path and its arguments.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.program.display())?;
        for arg in &self.args {
            write!(f, " {}", arg.display())?;
        }
        Ok(())
    }
}

/// A child with an environment of our own, to which `env` is added, and a process group of its own,
/// so that the terminal's signals reach only this process, which handles them. A failed exit status
/// is not an error here.
pub fn child(
    program: &Path,
    args: impl IntoIterator<Item = impl Into<OsString>>,
    env: &[Variable],
) -> duct::Expression {
    let ours = [("PATH", TRUSTED_PATH), ("LC_ALL", "C")].map(|(n, v)| (n.into(), v.into()));
    duct::cmd(program, args)
        .stderr_capture()
        .unchecked()
        .full_env(ours.into_iter().chain(env.iter().cloned()))
        .before_spawn(|command| {
            command.process_group(0);
            Ok(())
        })
}

/// Whether a child was ended by the terminal before it became the program. A new process is in our
/// process group for some microseconds, and until it has one of its own, Ctrl-C reaches it too, and
/// ends it.
pub fn never_began(status: ExitStatus) -> bool {
    let of_terminal = [Signal::INT, Signal::HUP, Signal::QUIT].map(Signal::as_raw);
    status.signal().is_some_and(|signal| of_terminal.contains(&signal))
}

/// Formats the exit status of a failed program with the first lines of its error text.
fn failure(status: &str, stderr: &str) -> String {
    let lines: Vec<_> =
        stderr.lines().map(str::trim).filter(|l| !l.is_empty()).take(ERROR_LINES).collect();
    if lines.is_empty() {
        return status.to_owned();
    }
    format!("{status}: {}", lines.join("; "))
}

/// Kills the process groups that the processes `leaders` lead.
fn kill_group(leaders: &[u32]) {
    for leader in leaders {
        let group = i32::try_from(*leader).ok().and_then(Pid::from_raw);
        // Killing a process group that has ended is no error.
        let _: Option<io::Result<()>> =
            group.map(|g| kill_process_group(g, Signal::KILL).map_err(Into::into));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn sh(script: &str) -> Command {
        Command::new("/bin/sh").args(["-c", script])
    }

    #[test]
    fn gives_output_and_error_text() {
        let out = sh("cat; echo warned >&2").stdin("text").run().unwrap();
        assert_eq!(out, CommandOutput { stdout: "text".into(), stderr: "warned\n".into() });
    }

    #[test]
    fn without_stdin_reads_nothing() {
        assert_eq!(sh("cat").run().unwrap().stdout, "");
    }

    #[test]
    fn the_environment_is_ours() {
        let out = sh("tr '\\0' '\n' </proc/$$/environ").env("X", "y").run().unwrap();
        let mut lines: Vec<&str> = out.stdout.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C", &format!("PATH={TRUSTED_PATH}"), "X=y"]);
    }

    #[test]
    fn a_failure_names_program_status_and_error_text() {
        let e = sh("echo one >&2; echo >&2; echo two >&2; exit 3").run().unwrap_err();
        assert_eq!(e.kind, Kind::Command);
        assert!(e.object.starts_with("/bin/sh -c echo one"), "{}", e.object);
        assert_eq!(e.cause, "exit status: 3: one; two");
    }

    #[test]
    fn a_missing_program_is_an_error() {
        let e = Command::new("/no/such/program").run().unwrap_err();
        assert_eq!((e.kind, e.object.as_str()), (Kind::Command, "/no/such/program"));
    }

    #[test]
    fn what_the_terminal_ended_before_it_began_runs_again_once() {
        let tmp = tempfile::tempdir().unwrap();
        let count = tmp.path().join("count");
        let run = |times: u32| {
            let _ = std::fs::remove_file(&count);
            let count = count.display();
            let script =
                format!("echo >>{count}; [ $(wc -l <{count}) -gt {times} ] || kill -INT $$");
            // A shell that runs the tests in its background has them ignore the signal.
            Command::new("/usr/bin/env").args(["--default-signal=INT", "sh", "-c", &script]).run()
        };
        assert!(run(0).is_ok() && run(1).is_ok());
        assert!(run(2).unwrap_err().cause.contains("SIGINT"));
        let killed = sh("kill -TERM $$").run().unwrap_err();
        assert!(killed.cause.contains("SIGTERM"), "{killed}");
    }

    #[test]
    fn output_that_is_not_text_is_an_error() {
        let e = sh(r"printf '\377'").run().unwrap_err();
        assert!(e.cause.contains("not UTF-8"), "{}", e.cause);
    }

    #[test]
    fn past_the_deadline_the_whole_group_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 100 & echo $! > {}; wait", pid_file.display());
        let start = Instant::now();
        let e = sh(&script).deadline(Duration::from_millis(500)).run().unwrap_err();
        assert!(e.cause.contains("did not finish within 500ms"), "{}", e.cause);
        assert!(start.elapsed() < Duration::from_secs(20));
        let grandchild = std::fs::read_to_string(pid_file).unwrap();
        let stat = format!("/proc/{}/stat", grandchild.trim());
        let gone = || std::fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z "));
        let until = Instant::now() + Duration::from_secs(30);
        while !gone() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(gone(), "the grandchild still runs");
    }
}
