//! Ends a process of ours that is past its time, with the programs that it runs: a runner, or an
//! attempt to undo a run.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, getpgid, kill_process, kill_process_group, test_kill_process_group,
};

use crate::runtime::{self, ProcessId};

/// The pause between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(50);

/// Ends `runner`, and every program that it runs: a program that goes on would change the node
/// while, or after, the run is undone. SIGTERM lets the runner undo the run itself, even if it was
/// stopped. If it lives on after `timeout`, it is killed with its programs, which are waited for as
/// long. The processes of `spared` and what these started live on.
pub(super) fn end(runner: ProcessId, timeout: Duration, spared: &[u32]) {
    let Some(pid) = raw(runner.pid) else { return };
    let _ = kill_process(pid, Signal::TERM);
    let _ = kill_process(pid, Signal::CONT);
    if !gone_within(timeout, || !runner.is_alive()) {
        kill_except(runner, timeout, spared);
    }
}

/// Kills `process` and every program that it runs, and waits for them for `timeout` at most.
pub(super) fn kill(process: ProcessId, timeout: Duration) {
    kill_except(process, timeout, &[]);
}

fn kill_except(runner: ProcessId, timeout: Duration, spared: &[u32]) {
    let Some(pid) = raw(runner.pid) else { return };
    // Stopped first, so that it starts no more programs.
    let _ = kill_process(pid, Signal::STOP);
    let spared: Vec<u32> = spared.iter().copied().chain([std::process::id()]).collect();
    let programs = runtime::descendants(runner.pid, &spared);
    let mut groups: BTreeSet<i32> =
        programs.iter().filter_map(|p| getpgid(raw(p.pid)).ok()).map(Pid::as_raw_pid).collect();
    // The runner's own group is that of whoever started it.
    for own in [None, Some(pid)] {
        if let Ok(group) = getpgid(own) {
            groups.remove(&group.as_raw_pid());
        }
    }
    let _ = kill_process(pid, Signal::KILL);
    for program in programs.iter().filter(|p| p.is_alive()) {
        let _ = raw(program.pid).map(|pid| kill_process(pid, Signal::KILL));
    }
    for group in groups.iter().filter_map(|group| Pid::from_raw(*group)) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    gone_within(timeout, || {
        let no_group = |group: &i32| {
            Pid::from_raw(*group).is_none_or(|group| test_kill_process_group(group).is_err())
        };
        !runner.is_alive() && !programs.iter().any(|p| p.is_alive()) && groups.iter().all(no_group)
    });
}

fn raw(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Waits until `gone` returns true, for `timeout` at most. Returns whether it did.
fn gone_within(timeout: Duration, gone: impl Fn() -> bool) -> bool {
    let until = Instant::now() + timeout;
    while !gone() {
        if Instant::now() >= until {
            return false;
        }
        sleep(PAUSE);
    }
    true
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// A runner that is deaf to SIGTERM, whose program leads a group of its own and has a child.
    /// The calling process stands for the watchdog, which the runner started too.
    #[test]
    fn its_programs_are_dead_before_this_returns() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "trap '' TERM; cd {}; setsid sh -c 'sleep 100 & echo $! >child; wait' & \
             echo $! >program; wait; sleep 100",
            dir.path().display()
        );
        let mut runner = Command::new("sh").args(["-c", &script]).process_group(0).spawn().unwrap();
        let pid = runner.id();
        // It is reaped at once, as by init.
        let reaped = std::thread::spawn(move || runner.wait());
        let process = |name: &str| {
            let text = fs::read_to_string(dir.path().join(name)).unwrap_or_default();
            text.trim().parse().ok().and_then(ProcessId::of)
        };
        let until = Instant::now() + Duration::from_secs(30);
        while (process("program").is_none() || process("child").is_none()) && Instant::now() < until
        {
            sleep(PAUSE);
        }
        let programs = ["program", "child"].map(|name| process(name).expect(name));
        let runner = ProcessId::of(pid).unwrap();
        end(runner, Duration::from_millis(500), &[]);
        assert!(!runner.is_alive());
        assert_eq!(programs.map(ProcessId::is_alive), [false, false]);
        reaped.join().unwrap().unwrap();
    }
}
