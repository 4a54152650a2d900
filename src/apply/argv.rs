//! Runs the operator's commands: hooks, upgrades, and commands that stop and start kube-proxy.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, Kind, Result};
use crate::node::command::TRUSTED_PATH;
use crate::node::{environment, launcher};
use crate::state::argv::Argv;

/// How many of the last lines of output an error message repeats.
const LINES: usize = 3;

/// How many bytes at the end of the output are read to find those last lines.
const TAIL: u64 = 4096;

/// Runs a command until it exits. The command dies with this process. The output goes to a file, not to a pipe, because background
/// processes of the command may run on and keep a pipe open.
///
/// # Errors
/// [`Kind::MissingTool`] for a missing program; otherwise [`Kind::Command`], with the last lines of
/// the command's output. A command that passes its deadline is killed with its descendants.
pub fn run(argv: &Argv, deadline: Duration) -> Result<()> {
    let error = |kind, cause: String| Error::new(kind, argv.to_string(), cause);
    let program = which::which_in(argv.program(), Some(TRUSTED_PATH), "/").map_err(|_| {
        let cause = format!("{} is not in {TRUSTED_PATH}", argv.program());
        error(Kind::MissingTool, cause).hint("give its full path, or install it")
    })?;
    let failed = |e: std::io::Error| error(Kind::Command, e.to_string());
    let mut output = tempfile::tempfile().map_err(failed)?;
    let arguments: Vec<OsString> = argv.arguments().iter().map(OsString::from).collect();
    let (program, arguments) = launcher::bound(&program, &arguments);
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment::of_operator())
        .env("PATH", TRUSTED_PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output.try_clone().map_err(failed)?)
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let until = Instant::now() + deadline;
    loop {
        match child.try_wait().map_err(failed)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                let cause = format!("{status}{}", last_lines(&mut output));
                return Err(error(Kind::Command, cause).hint("run it by hand to see more"));
            }
            None if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
            None => break,
        }
    }
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // The process group may be gone already; that is no error.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
    let output = last_lines(&mut output);
    let cause = format!("did not finish within {deadline:?}, and was killed{output}");
    Err(error(Kind::Command, cause)
        .hint("a command ends by itself: one that starts a program must not wait for it"))
}

/// The last lines of `output` as `: one; two`, or an empty string.
fn last_lines(output: &mut File) -> String {
    let mut read = || -> std::io::Result<Vec<u8>> {
        let length = output.metadata()?.len();
        output.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        output.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    match &lines[lines.len().saturating_sub(LINES)..] {
        [] => String::new(),
        last => format!(": {}", last.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Argv {
        Argv::try_from(vec!["sh".into(), "-c".into(), script.into()]).unwrap()
    }

    #[test]
    fn a_failure_repeats_the_end_of_what_was_written() {
        let error = run(
            &sh("for i in 1 2 3 4; do echo line $i; done; echo why >&2; exit 7"),
            Duration::from_secs(30),
        )
        .unwrap_err();
        assert_eq!(error.cause, "exit status: 7: line 3; line 4; why");
        assert!(error.object.starts_with("sh -c for"), "{error}");
        let missing = Argv::try_from(vec!["no-such-program".into()]).unwrap();
        let missing = run(&missing, Duration::from_secs(1)).unwrap_err();
        assert_eq!(missing.kind, Kind::MissingTool);
    }

    #[test]
    fn what_it_leaves_running_is_not_waited_for() {
        let begun = Instant::now();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let command = sh(&format!("sleep 60 & echo $! > {}", file.display()));
        run(&command, Duration::from_secs(30)).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20));
        let pid = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL)
            .expect("it still runs");
    }

    #[test]
    fn past_the_deadline_it_is_killed() {
        let error = run(&sh("echo begun; sleep 60"), Duration::from_millis(300)).unwrap_err();
        assert!(error.cause.contains("within 300ms, and was killed: begun"), "{error}");
    }
}
