//! Who was told that a run stays is not told wrong: the watchdog, which may have decided before,
//! looks again once it has the node's lock.

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use proxyshift::state::Backend;

use crate::common::node::{Case, Ended, Proxyshift};
use crate::common::{in_namespace, poll};
use crate::compile;

/// Takes a lease on a file: who opens it for writing waits until the lease is gone (fcntl(2)). It
/// goes when the standard input ends.
const LEASE: &str = r#"
use std::os::fd::AsRawFd;
unsafe extern "C" {
    fn fcntl(fd: i32, command: i32, kind: i32) -> i32;
    fn signal(number: i32, handler: usize) -> usize;
}
fn main() {
    let file = std::fs::OpenOptions::new().write(true).open(std::env::args().nth(1).unwrap());
    let file = file.unwrap();
    unsafe {
        signal(29, 1);
        assert_eq!(fcntl(file.as_raw_fd(), 1024, 1), 0);
    }
    println!("held");
    std::io::Read::read(&mut std::io::stdin(), &mut [0]).unwrap();
}
"#;

/// Holds up whoever writes the `run.json` of the only run, who has the node's lock meanwhile.
struct HeldUp(Child);

impl HeldUp {
    fn new(proxyshift: &Proxyshift) -> HeldUp {
        compile(LEASE, "/run/lease");
        let mut runs = fs::read_dir(proxyshift.store.join("runs")).expect("runs").flatten();
        let spare = runs.next().expect("a run").path().join("run.spare");
        let mut command = Command::new("/run/lease");
        let mut child = command
            .arg(spare)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let out = child.stdout.as_mut().expect("its output");
        let mut text = [0; 5];
        std::io::Read::read_exact(out, &mut text).expect("a lease");
        HeldUp(child)
    }

    fn goes_on(mut self) {
        self.0.stdin.take().expect("its input").write_all(b".").expect("a byte");
        self.0.wait().expect("ended");
    }
}

/// Starts the verb, which is held up with the node's lock, and lets it go on after `time`.
fn held_up_for(proxyshift: &Proxyshift, words: &str, time: Duration) -> Ended {
    let until = Instant::now() + time;
    let held_up = HeldUp::new(proxyshift);
    let verb = proxyshift.command(words);
    let verb = std::thread::spawn(|| Ended::of(verb));
    let lock = || {
        let mut all = fs::read_dir("/run/proxyshift").expect("locks").flatten();
        all.any(|e| fs::read_to_string(e.path()).is_ok_and(|t| t.contains("\"verb\":\"")))
    };
    poll("the lock", lock);
    sleep(until.saturating_duration_since(Instant::now()));
    assert!(!verb.is_finished(), "it was not held up");
    held_up.goes_on();
    verb.join().expect("ended")
}

#[test]
fn an_extension_that_was_granted_holds() {
    if !in_namespace("deadlines::an_extension_that_was_granted_holds") {
        return;
    }
    let Case { node, proxyshift, .. } = &Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    proxyshift.expect(0, "cleanup --yes --confirm-within 8s");
    let clean = node.rules();
    let extended = held_up_for(proxyshift, "extend 10m", Duration::from_secs(12));
    assert_eq!(extended.code, Some(0), "{}", extended.err);
    sleep(Duration::from_secs(4));
    assert_eq!(node.rules(), clean, "the run stays");
    proxyshift.expect(0, "confirm");
}

#[test]
fn a_run_that_was_resumed_in_time_goes_on() {
    if !in_namespace("deadlines::a_run_that_was_resumed_in_time_goes_on") {
        return;
    }
    let Case { node, proxyshift, before } = &Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    proxyshift.killed("cleanup --yes --confirm-within 10m", "after:1");
    // Longer than the watchdog waits for somebody to resume it.
    let resumed = held_up_for(proxyshift, "resume", Duration::from_secs(34));
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    let clean = node.rules();
    assert_ne!(clean, *before);
    sleep(Duration::from_secs(4));
    assert_eq!(node.rules(), clean, "the run stays");
    proxyshift.expect(0, "confirm");
}
