//! The virtual machine: from outside, what boots it and reads what it says; from inside, what each
//! case begins with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::in_namespace;
use crate::common::vm::cached;

/// Set inside of the machine.
const INSIDE: &str = "PROXYSHIFT_VM";

/// Seconds until the machine must have booted, on a busy host without KVM.
const BOOT: u64 = 150;

/// Seconds until all must be over, likewise.
const ALL: u64 = 1800;

/// Cases with this in their names run only when asked for.
const SOAK: &str = "soak";

/// What selects the cases with one of the words of `part` in their names; without one, all that do
/// not take long.
fn selection(part: &str) -> Vec<&str> {
    if part.is_empty() { vec!["--skip", SOAK] } else { part.split_whitespace().collect() }
}

/// The names of the cases that have `part` in theirs; without one, of all that do not take long.
pub fn cases(part: &str) -> Vec<String> {
    let exe = std::env::current_exe().expect("the test's own path");
    let mut list = Command::new(exe);
    list.args(["--list", "--ignored", "--format", "terse"]).args(selection(part));
    let out = list.output().expect("the test lists its cases").stdout;
    let out = String::from_utf8(out).expect("text");
    out.lines().filter_map(|l| l.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Boots the machine, runs the cases inside that have `part` in their names, and returns what they
/// say.
pub fn run(part: &str) -> String {
    for needed in ["kernel/vmlinuz", "bin/vng", "kube-proxy"] {
        cached(needed);
    }
    let shared = tempfile::tempdir().expect("a folder to share with the machine");
    let dir = shared.path();
    let exe = std::env::current_exe().expect("the test's own path");
    fs::write(dir.join("run"), script(&exe, dir, part)).expect("the script to run inside");
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/boot");
    let console = fs::File::create(dir.join("console")).expect("a file for the console");
    let mut command = Command::new(boot);
    command.arg(dir).arg(ALL.to_string()).arg(format!("sh {}/run", dir.display()));
    command.stdin(Stdio::null()).stderr(console.try_clone().expect("a handle")).stdout(console);
    let began = Instant::now();
    let mut machine = Machine(command.spawn().expect("tests/vm/boot starts"));
    while machine.runs() {
        let booted = dir.join("log").exists();
        if !booted && began.elapsed() > Duration::from_secs(BOOT) {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(machine);
    println!("the machine ran for {} s", began.elapsed().as_secs());
    let read = |name: &str| {
        String::from_utf8_lossy(&fs::read(dir.join(name)).unwrap_or_default()).into_owned()
    };
    let log = read("log");
    assert!(log.contains("test result: "), "the machine did not get through; {log}\n{}", {
        let console = read("console");
        let lines: Vec<&str> = console.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    });
    log
}

/// What the machine runs: the cases, after what a node has loaded at boot.
fn script(exe: &Path, dir: &Path, part: &str) -> String {
    format!(
        "export {INSIDE}=1 XDG_CACHE_HOME={cache} RUST_BACKTRACE=0 PATH=$PATH:/usr/local/sbin\n\
         cd {here}\n\
         exec >{dir}/log 2>&1\n\
         modprobe -a br_netfilter ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh ip_set nf_conntrack\n\
         cat {exe} {program} {kube_proxy} >/dev/null\n\
         {exe} --ignored --nocapture --test-threads 2 {selection}\n\
         sync\n",
        cache = cache().display(),
        here = env!("CARGO_MANIFEST_DIR"),
        dir = dir.display(),
        exe = exe.display(),
        selection = selection(part).join(" "),
        program = env!("CARGO_BIN_EXE_proxyshift"),
        kube_proxy = cached("kube-proxy").display(),
    )
}

fn cache() -> PathBuf {
    let vm = cached("");
    vm.ancestors().nth(2).expect("below the cache").to_owned()
}

/// `true` in the copy of a case that has namespaces of its own, inside of the machine.
pub fn inside(case: &str) -> bool {
    assert!(
        std::env::var_os(INSIDE).is_some(),
        "{case} is for the machine: PROXYSHIFT_CASES={case} cargo test --test vm"
    );
    in_namespace(case)
}

/// The machine; it ends with this.
struct Machine(Child);

impl Machine {
    fn runs(&mut self) -> bool {
        self.0.try_wait().expect("a child can be waited for").is_none()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
