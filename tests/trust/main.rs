//! What a stranger on the node can do to the program: nothing. Each test stands for an attack that
//! broke version 0.1.0 before its release, or for a variant of one. PROXYSHIFT_PROGRAM names another
//! program to try, such as that version.

mod api;
mod api_of_node;
mod api_writes;
mod archives;
mod bundles;
mod children;
mod clocks;
#[path = "../common/mod.rs"]
mod common;
mod deadlines;
mod disks;
mod environment;
mod failing_runs;
mod failing_store;
mod files;
mod journals;
mod kernels;
mod names;
mod outputs;
mod rollback;
mod store;
mod strangers;
mod terminal;
mod watchdog;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::node::{Ended, Proxyshift};
use common::{poll, run_with};

/// How long a verb may take on a small node, beside other tests.
const SOON: Duration = Duration::from_secs(45);

/// How much memory a verb may claim, in bytes.
const MEMORY: &str = "--as=2500000000";

/// A process that ends when this value is dropped.
struct Stranger(Child);

impl Stranger {
    /// Runs a script of bash as user 1000, who has no rights.
    fn unprivileged(script: &str) -> Stranger {
        let user = ["--reuid", "1000", "--regid", "1000", "--clear-groups"];
        Stranger::start(Command::new("setpriv").args(user).args(["bash", "-c", script]))
    }

    /// Runs a script of bash as root.
    fn root(script: &str) -> Stranger {
        Stranger::start(Command::new("bash").args(["-c", script]))
    }

    fn start(command: &mut Command) -> Stranger {
        let child = command.stdin(Stdio::null()).process_group(0).spawn();
        Stranger(child.expect("bash, or setpriv of util-linux"))
    }

    /// Waits until the first argument of the process ends with `name`.
    fn named(self, name: &str) -> Stranger {
        poll(name, || {
            let line = fs::read(format!("/proc/{}/cmdline", self.0.id())).unwrap_or_default();
            line.split(|b| *b == 0).next().is_some_and(|first| first.ends_with(name.as_bytes()))
        });
        self
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.0.wait();
    }
}

/// Runs a verb, which must end soon and without much memory.
fn soon(proxyshift: &Proxyshift, words: &str) -> Ended {
    let verb = proxyshift.command(words);
    let mut command = Command::new("timeout");
    command.args(["--kill-after=1", &SOON.as_secs().to_string(), "prlimit", MEMORY]);
    command.arg(verb.get_program()).args(verb.get_args()).stdin(Stdio::null());
    let begun = Instant::now();
    let ended = Ended::of(command);
    let took = begun.elapsed();
    assert!(took < SOON, "proxyshift {words} did not end: {}{}", ended.out, ended.err);
    assert!(ended.code.is_some_and(|code| code <= 6), "{words}: {:?} {}", ended.code, ended.err);
    ended
}

/// Runs every verb that looks at the node. Each must end soon; a snapshot must be taken.
fn everyone_looks(proxyshift: &Proxyshift) {
    for words in ["plan", "check", "status"] {
        let ended = soon(proxyshift, words);
        // A check may stop a change. Nothing else is expected to fail, and no run is pending.
        assert!(matches!(ended.code, Some(0 | 3)), "{words}: {:?} {}", ended.code, ended.err);
    }
    let taken = soon(proxyshift, "snapshot create");
    assert_eq!(taken.code, Some(0), "{}", taken.err);
}

/// The text of every file of the newest snapshot, with the names of the files.
fn newest_snapshot(proxyshift: &Proxyshift) -> String {
    let dir = proxyshift.store.join("snapshots").display().to_string();
    run_with(&format!("cd {dir}/$(ls -t {dir} | head -1) && grep -ra ''"), &["sh", "-e"])
}

/// Compiles a program of Rust to the path `to`.
fn compile(source: &str, to: &str) {
    run_with(source, &["rustc", "--edition", "2024", "--crate-name", "stranger", "-o", to, "-"]);
}

/// The text of a playbook that is little but a snapshot and a switch. The commands `stop` and `start`,
/// of which the words are parted by commas, have `timeout`.
fn only_a_switch(stop: &str, start: &str, timeout: &str) -> String {
    format!(
        r#"
playbook: only-a-switch
from: iptables
to: ipvs
stages:
  - snapshot: {{}}
  - switch:
      controller: {{commands: {{stop: [{stop}], start: [{start}], again: safe}}}}
      timeout: {timeout}
  - converge: {{parity: services, timeout: 3s}}
  - verify: {{invariants: all, probes: baseline}}
  - confirm: {{within: 5m}}
on_failure: rollback
"#
    )
}
