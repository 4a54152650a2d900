//! Measures how long proxyshift takes on large nodes, beside `iptables-save` and other methods of
//! clean-up.
//!
//! `cargo bench --bench scale [-- SERVICES…]`, as root: each measurement is made on the real
//! kernel, in private namespaces. Prints a Markdown table, and fails if proxyshift exceeds a limit
//! of time or memory.

mod measure;
mod node;
mod report;
mod watch;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use measure::{KUBE_PROXY, Measured, Method, measure};

const SIZES: [usize; 3] = [1000, 5000, 20000];
const BACKENDS: [&str; 2] = ["nft", "legacy"];

/// The time that all measurements together may take.
const BUDGET: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    if words[0].ends_with(KUBE_PROXY) {
        return stand_in(&words[1..]);
    }
    // `cargo bench` adds `--bench` to the arguments.
    let words: Vec<&str> =
        words[1..].iter().map(String::as_str).filter(|w| *w != "--bench").collect();
    if let ["inside", method, backend, services, store] = words[..] {
        let method = serde_json::from_str(method).expect("a method");
        let services = services.parse().expect("a number");
        let measured = measure(method, backend, services, Path::new(store));
        println!("{}", serde_json::to_string(&measured).expect("plain data"));
        return ExitCode::SUCCESS;
    }
    let requested: Vec<usize> = words.iter().filter_map(|w| w.parse().ok()).collect();
    let sizes = if requested.is_empty() { SIZES.to_vec() } else { requested };
    let start = Instant::now();
    let mut columns = Vec::new();
    for services in sizes {
        for backend in BACKENDS {
            eprintln!("{services} services, iptables-{backend}");
            let [ours, grep, kube_proxy] =
                [Method::Ours, Method::Grep, Method::KubeProxy].map(|method| {
                    in_namespace(method, backend, services, BUDGET.saturating_sub(start.elapsed()))
                });
            columns.push(report::Column {
                services,
                backend,
                ours,
                grep: grep.cleanup,
                kube_proxy: kube_proxy.cleanup,
            });
        }
    }
    print!("{}", report::table(&columns));
    let missed = report::missed(&columns);
    missed.iter().for_each(|requirement| eprintln!("missed: {requirement}"));
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one measurement in private namespaces, with an empty /run. One of the namespaces is a PID
/// namespace, so that stopping this program leaves no process behind.
fn in_namespace(method: Method, backend: &str, services: usize, left: Duration) -> Measured {
    // The store is on a real disk, because a journal in memory would cost no time.
    let store = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the store");
    // At least 1 second, because `timeout 0` means no limit.
    let limit = left.as_secs().max(1).to_string();
    let output = Command::new("timeout")
        .args(["--signal=KILL", &limit, "unshare"])
        .args(["-nmpf", "--propagation", "private", "--mount-proc", "--kill-child", "sh", "-c"])
        .args(["mount -t tmpfs -o mode=755 bench /run && exec \"$@\"", "sh"])
        .arg(std::env::current_exe().expect("our own path"))
        .args(["inside", &serde_json::to_string(&method).expect("a word"), backend])
        .arg(services.to_string())
        .arg(store.path())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("timeout, of coreutils, runs");
    if output.status.signal() == Some(9) || output.status.code() == Some(137) {
        eprintln!("{method:?} {backend} {services}: no time left");
        return Measured::default();
    }
    assert!(output.status.success(), "{method:?} {backend} {services}: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("what the copy measured")
}

/// Stands in for kube-proxy: with `--version` prints a version, otherwise sleeps forever.
fn stand_in(args: &[String]) -> ExitCode {
    if args.iter().any(|a| a == "--version") {
        println!("Kubernetes v1.20.2");
        return ExitCode::SUCCESS;
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
