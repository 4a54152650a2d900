//! Watches a program: time, peak memory, and the time of each line.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// The interval at which memory and the end are polled. The memory is the kernel's own high-water
/// mark, so only the growth of a process's last moments can be missed.
const TICK: Duration = Duration::from_millis(4);

/// The program under test.
pub const OWN: &str = "proxyshift";

/// proxyshift's message when it refuses a table that is too large for the xtables lock.
const REFUSED: &str = "under the xtables lock, and others wait";

/// The duration of a program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub enum Took {
    /// It ended well.
    Seconds(f64),
    /// It was stopped at the limit.
    TooLong,
    /// It refused by design: a legacy table that takes too long to read under the xtables lock.
    Refused,
    /// It failed, was not tried, or no time was left for it.
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

/// The result of a program.
pub struct Watched {
    /// From start to end.
    pub took: Took,
    /// The peak of the largest process of proxyshift, in bytes.
    pub own: u64,
    /// The peak of the largest process that is another program, in bytes.
    pub children: u64,
    /// Its lines on standard error, each with the seconds since the start.
    pub lines: Vec<(f64, String)>,
}

/// Runs `command` with `input`, for `limit` at most. Its output is discarded.
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
            // A program that ends early closes its input; its status has the cause.
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

/// Reads the peaks of a process and of all that it started.
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
    // An ended process is no error.
    let _ = group.map(|group| kill_process_group(group, Signal::KILL));
}
