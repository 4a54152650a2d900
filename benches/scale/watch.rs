//! Runs a program, and records its duration, its peak memory, and when it wrote each line.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// The interval at which the program's memory and exit are polled. The memory is the kernel's own
/// peak value (VmHWM), so only growth in a process's last moments can be missed.
const TICK: Duration = Duration::from_millis(4);

/// The process name of the program under test.
pub const OWN: &str = "proxyshift";

/// A part of the message with which proxyshift refuses a table that takes too long to read under
/// the xtables lock.
const REFUSED: &str = "under the xtables lock, and others wait";

/// How long a program ran, or why there is no duration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub enum Took {
    /// The program succeeded, after this many seconds.
    Seconds(f64),
    /// The program was stopped at the limit.
    TooLong,
    /// proxyshift refused by design, because a legacy table takes too long to read under the
    /// xtables lock.
    Refused,
    /// The program failed, was not tried, or no time was left for it.
    #[default]
    No,
}

impl Took {
    pub fn seconds(self) -> Option<f64> {
        match self {
            Took::Seconds(seconds) => Some(seconds),
            Took::TooLong | Took::Refused | Took::No => None,
        }
    }
}

/// What was recorded of one program.
pub struct Watched {
    /// The time from the program's start to its end.
    pub took: Took,
    /// The peak memory of the proxyshift process that used the most, in bytes.
    pub own: u64,
    /// The peak memory of the process of another program that used the most, in bytes.
    pub children: u64,
    /// The lines that the program wrote to standard error, each with the seconds since its start.
    pub lines: Vec<(f64, String)>,
}

/// Runs `command` with `input` on its standard input, for `limit` at most. Its standard output is
/// discarded.
pub fn watch(command: &mut Command, input: &str, limit: Duration) -> Watched {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(|| {
            // A program that ends early closes its input, so this write may fail; the exit status
            // has the cause.
            let _ = stdin.map(|mut pipe| pipe.write_all(input.as_bytes()));
        });
        let lines = scope.spawn(|| stderr.map_or_else(Vec::new, |pipe| read(pipe, start)));
        let mut watched = Watched { took: Took::TooLong, own: 0, children: 0, lines: Vec::new() };
        loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                let seconds = Took::Seconds(start.elapsed().as_secs_f64());
                watched.took = if status.success() { seconds } else { Took::No };
                break;
            }
            peaks(child.id(), &mut watched);
            if start.elapsed() > limit {
                kill(child.id());
                let _ = child.wait();
                break;
            }
            thread::sleep(TICK);
        }
        watched.lines = lines.join().expect("the reader does not fail");
        if watched.took == Took::No && watched.lines.iter().any(|(_, line)| line.contains(REFUSED))
        {
            watched.took = Took::Refused;
        }
        if watched.took == Took::No {
            let lines: Vec<&str> = watched.lines.iter().map(|(_, line)| line.as_str()).collect();
            eprintln!("{command:?} failed:\n{}", lines.join("\n"));
        }
        watched
    })
}

fn read(pipe: impl Read, start: Instant) -> Vec<(f64, String)> {
    let lines = BufReader::new(pipe).lines().map_while(Result::ok);
    lines.map(|line| (start.elapsed().as_secs_f64(), line)).collect()
}

/// Raises the peaks in `watched` to those of process `pid` and of every process that it started.
fn peaks(pid: u32, watched: &mut Watched) {
    let proc = format!("/proc/{pid}");
    let status = fs::read_to_string(format!("{proc}/status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let kilobytes = field("VmHWM:").and_then(|v| v.split(' ').next()?.parse::<u64>().ok());
    let peak = if field("Name:") == Some(OWN) { &mut watched.own } else { &mut watched.children };
    *peak = (*peak).max(kilobytes.unwrap_or(0) * 1024);
    let children = fs::read_to_string(format!("{proc}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|c| c.parse().ok()) {
        peaks(child, watched);
    }
}

fn kill(pid: u32) {
    let group = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // Killing a process group that has ended is no error.
    let _ = group.map(|group| kill_process_group(group, Signal::KILL));
}
