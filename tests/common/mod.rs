//! Shared by the tests that need a real kernel: private namespaces, and commands that run in them.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod clients;
pub mod disk;
pub mod node;
pub mod schemas;
pub mod tried;
pub mod vm;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The environment variable that is set in the copy of a test that runs inside namespaces.
const INSIDE: &str = "PROXYSHIFT_TEST_INSIDE";

/// The name of the test that runs in this copy, which has namespaces of its own.
pub fn running_test() -> String {
    std::env::var(INSIDE).expect("inside the namespaces of a test")
}

/// Runs the calling test again in network and mount namespaces of its own, with an empty /run.
///
/// Returns `true` in the copy of the test that runs there and is to do the test, and `false` in the
/// original after the copy has passed. Fails if the copy failed or could not run; the test is never
/// skipped. `test` is the name that `cargo test` prints. Use: `if !in_namespace("my_test") {
/// return; }`
pub fn in_namespace(test: &str) -> bool {
    enter(test, "-nm")
}

/// As [`in_namespace`], but also in a new user namespace. There the copy is root, but for the host
/// the copy is an ordinary user.
pub fn in_user_namespace(test: &str) -> bool {
    enter(test, "-Urnm")
}

/// As [`in_namespace`], but also in a new PID namespace, so that all processes of the copy end when
/// the copy ends.
pub fn in_machine(test: &str) -> bool {
    enter(test, MACHINE)
}

/// The program under test: the one that `PROXYSHIFT_PROGRAM` names, or else the one that was built
/// with the test.
pub fn program() -> std::path::PathBuf {
    let named = std::env::var_os("PROXYSHIFT_PROGRAM");
    named.map_or_else(|| env!("CARGO_BIN_EXE_proxyshift").into(), Into::into)
}

/// The options of `unshare` for namespaces that look like a whole machine.
pub const MACHINE: &str = "-nmpf";

/// The command that runs `test` again; `namespaces` are the options of `unshare`.
pub fn again(test: &str, namespaces: &str) -> Command {
    // A watchdog leaves the control groups that it can see. The old ones of this machine are not
    // to be left by a test.
    let prepare = "mount -t tmpfs -o mode=755 proxyshift /run && \
                   { [ ! -d /sys/fs/cgroup/memory ] || mount -t tmpfs none /sys/fs/cgroup; } && \
                   { [ $$ != 1 ] || mount -t proc proc /proc; } && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args([namespaces, "--propagation", "private", "--kill-child", "sh", "-c", prepare, "sh"])
        .arg(std::env::current_exe().expect("the test's own path"))
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env(INSIDE, test);
    command
}

fn enter(test: &str, namespaces: &str) -> bool {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == *test) {
        return true;
    }
    let mut child = again(test, namespaces)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare, of util-linux, runs");
    // Each line is forwarded at once, so that a long or endless test shows its progress.
    let err = child.stderr.take().expect("piped");
    let forwarded = std::thread::spawn(move || lines(err).for_each(|line| eprintln!("{line}")));
    let mut out = String::new();
    for line in lines(child.stdout.take().expect("piped")) {
        println!("{line}");
        out += &(line + "\n");
    }
    let status = child.wait().expect("waiting for a child");
    forwarded.join().expect("what it says is text");
    assert!(status.success(), "{test} in namespaces {namespaces}: {status}");
    assert!(out.contains("1 passed"), "no test is called {test}: give its full name");
    false
}

fn lines(from: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(from).lines().map(|line| line.expect("text"))
}

/// Runs the program and arguments `argv` with `input` on its standard input. Returns its standard
/// output.
pub fn run_with(input: &str, argv: &[&str]) -> String {
    let mut child = Command::new(argv[0])
        .args(&argv[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", argv[0]));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("waiting for a child");
    // The result of writing the input is ignored: a program that fails early closes its input, and
    // its own message says why.
    let _ = writer.join();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{argv:?}: {}: {err}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command line whose arguments are separated by spaces. Returns its standard output.
pub fn run(command: &str) -> String {
    run_with("", &command.split_whitespace().collect::<Vec<_>>())
}

/// Waits until `done` returns true, for 30 s at most. If the wait fails, `what` names the
/// condition.
pub fn poll(what: &str, done: impl FnMut() -> bool) {
    poll_for(Duration::from_secs(120), what, done);
}

/// As [`poll`], for `limit` at most.
pub fn poll_for(limit: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < until, "waited for {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
