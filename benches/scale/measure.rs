//! The measurements on one node, inside a private namespace.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::node::{self, Node};
use crate::watch::{OWN, Took, Watched, watch};

/// The time after which a measured program is stopped.
pub const LIMIT: Duration = Duration::from_secs(300);

/// How often a quick measurement is repeated; the median is reported.
const TIMES: usize = 3;

/// The name of this program's copy that stands in for kube-proxy.
pub const KUBE_PROXY: &str = "kube-proxy";

/// A method of clean-up. Each one is measured in a namespace of its own, because each changes the
/// node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// `proxyshift cleanup`, and after it `proxyshift rollback`.
    Ours,
    /// `iptables-save | grep -v KUBE- | iptables-restore`.
    Grep,
    /// `iptables-restore --noflush` with a `-X` line for each leftover chain.
    KubeProxy,
}

/// The measurements of one method. A field that the method does not measure keeps its default.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Lines and bytes of the output of `iptables-save -c`.
    pub dump: (usize, usize),
    pub save: Took,
    pub plan: Took,
    /// The part of `proxyshift check` that captures the node; `checks` is the part that runs all
    /// checks.
    pub capture: Took,
    pub checks: Took,
    pub validation: Took,
    pub apply_and_verify: Took,
    pub save_after_rollback: Took,
    pub whole_cleanup: Took,
    pub whole_rollback: Took,
    /// Peak memory in bytes: of proxyshift, and of the programs that it started.
    pub plan_memory: (u64, u64),
    pub cleanup_memory: (u64, u64),
    /// The duration of a clean-up by a method other than proxyshift's.
    pub cleanup: Took,
}

/// Loads a generated node into the current namespace, and measures `method` there.
pub fn measure(method: Method, backend: &str, services: usize, store: &Path) -> Measured {
    let node = node::generate(services);
    load(&node, backend);
    match method {
        Method::Ours => ours(backend, store),
        Method::Grep => {
            let line =
                format!("iptables-{backend}-save | grep -v KUBE- | iptables-{backend}-restore");
            other(Command::new("sh").args(["-c", &line]), "")
        }
        Method::KubeProxy => {
            let declared = node.leftovers.iter().map(|name| format!(":{name} - [0:0]\n"));
            let deleted = node.leftovers.iter().map(|name| format!("-X {name}\n"));
            let text: String = declared.chain(deleted).collect();
            let text = format!("*nat\n{text}COMMIT\n");
            let mut command = Command::new(format!("iptables-{backend}-restore"));
            other(command.args(["--noflush", "--counters"]), &text)
        }
    }
}

fn other(command: &mut Command, input: &str) -> Measured {
    Measured { cleanup: watch(command, input, LIMIT).took, ..Measured::default() }
}

fn load(node: &Node, backend: &str) {
    watch(Command::new("ip").args(["-batch", "-"]), node::LINKS, LIMIT);
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a namespace's own sysctl");
    watch(Command::new("ipset").arg("restore"), &node.sets, LIMIT);
    let restore = format!("iptables-{backend}-restore");
    let loaded = watch(&mut Command::new(restore), &node.rules, LIMIT).took;
    assert!(loaded.seconds().is_some(), "the node's rules are loaded");
}

fn ours(backend: &str, store: &Path) -> Measured {
    let _kube_proxy = KubeProxy::start();
    let mut measured = Measured { dump: dump(backend), ..Measured::default() };
    let save = || watch(Command::new(format!("iptables-{backend}-save")).arg("-c"), "", LIMIT);
    measured.save = median(|| save().took);

    let mut plan_memory = (0, 0);
    measured.plan = median(|| {
        let plan = watch(&mut proxyshift(store, &["plan"]), "", LIMIT);
        plan_memory = (plan_memory.0.max(plan.own), plan_memory.1.max(plan.children));
        plan.took
    });
    measured.plan_memory = plan_memory;

    // A finding may make the exit code an error; only the duration counts.
    let check = watch(&mut proxyshift(store, &["check", "--to", "ipvs"]), "", LIMIT);
    measured.capture = between(&check, "capturing the node", "capturing the node");
    measured.checks = between(&check, "judging the node", "judging the node");

    let cleanup = watch(&mut proxyshift(store, &["cleanup"]), "", 3 * LIMIT);
    measured.whole_cleanup = cleanup.took;
    measured.cleanup_memory = (cleanup.own, cleanup.children);
    let task = "writing the snapshot and restoring it in a private namespace";
    measured.validation = between(&cleanup, task, task);
    measured.apply_and_verify = took(&cleanup, "remove ", "verifying against the kernel");

    if measured.whole_cleanup.seconds().is_none() {
        return measured;
    }
    measured.whole_rollback = watch(&mut proxyshift(store, &["rollback"]), "", 3 * LIMIT).took;
    if measured.whole_rollback.seconds().is_some() {
        assert_eq!(dump(backend).0, measured.dump.0, "all lines are back");
    }
    measured.save_after_rollback = median(|| save().took);
    measured
}

/// The time from the start of the last task `from` to the end of the last task `to`. The last ones,
/// because the rehearsal earlier in the run has the same tasks.
fn took(run: &Watched, from: &str, to: &str) -> Took {
    match run.took {
        Took::Seconds(_) => between(run, from, to),
        other => other,
    }
}

/// As [`took`], but measures also a run whose exit code is an error.
fn between(run: &Watched, from: &str, to: &str) -> Took {
    let last = |event: &str, task: &str| {
        let event = format!("\"event\":\"{event}\"");
        let sentence = format!("\"sentence\":\"{task}");
        let named = |line: &str| line.contains(&event) && line.contains(&sentence);
        run.lines.iter().rev().find(|(_, line)| named(line)).map(|(at, _)| *at)
    };
    match last("started", from).zip(last("finished", to)) {
        Some((from, to)) => Took::Seconds(to - from),
        None => Took::No,
    }
}

/// The median of several runs, or the result of the first run that gave no duration.
fn median(mut run: impl FnMut() -> Took) -> Took {
    let mut seconds = Vec::new();
    for _ in 0..TIMES {
        match run() {
            Took::Seconds(s) => seconds.push(s),
            other => return other,
        }
    }
    seconds.sort_by(f64::total_cmp);
    seconds.get(TIMES / 2).map_or(Took::No, |s| Took::Seconds(*s))
}

/// Counts the lines and bytes of the output of `iptables-save -c`.
fn dump(backend: &str) -> (usize, usize) {
    let output = Command::new(format!("iptables-{backend}-save")).arg("-c").output();
    let text = output.expect("iptables-save runs").stdout;
    (text.iter().filter(|b| **b == b'\n').count(), text.len())
}

fn proxyshift(store: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxyshift"));
    command.arg("--store").arg(store).args(["--yes", "--progress", "json"]).args(args);
    assert!(command.get_program().to_string_lossy().ends_with(OWN));
    command
}

/// A running stand-in for kube-proxy in ipvs mode. Without it, proxyshift could not tell who owns
/// the rules.
struct KubeProxy(Child);

impl KubeProxy {
    fn start() -> Self {
        let path = Path::new("/run").join(KUBE_PROXY);
        let own = std::env::current_exe().expect("our own path");
        fs::copy(own, &path).expect("room in /run");
        let child = Command::new(path)
            .args(["--proxy-mode=ipvs"])
            .stdin(Stdio::null())
            .spawn()
            .expect("a copy of this program runs");
        KubeProxy(child)
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
