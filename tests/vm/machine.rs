//! The virtual machine. On the host, the test boots the machine and reads its output. Inside the
//! machine, each case begins in [`inside`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cases::reboot::{CUT, INTERRUPTS, RESOLVES};
use crate::common::vm::{OLD, cached, kubernetes};
use crate::common::{in_namespace, running_test};
use crate::kube_proxy;

/// The environment variable that is set inside the machine.
const INSIDE: &str = "PROXYSHIFT_VM";

/// Within how many seconds the machine must have booted, on a busy host without KVM.
const BOOT: u64 = 150;

/// How many times a machine that does not come up is booted. On a busy host without KVM, one or the
/// other ends before it runs anything.
const BOOTS: usize = 3;

/// Within how many seconds all trials must have ended, on a busy host without KVM. [`LONG`] is the
/// limit if some of the cases are long.
const ALL: u64 = 1800;
const LONG: u64 = 5 * 3600;

/// A case with this word in its name is long, and runs only on request.
const SOAK: &str = "soak";

/// The version of kube-proxy with which the old ones are compared, and to which they are upgraded.
pub const TODAY: &str = "1.37.2";

/// The versions of kube-proxy with which a case is tried: first those of every run, then those of
/// runs on request. The version of an upgrade is the one that it begins with.
fn versions(case: &str) -> [&'static [&'static str]; 2] {
    match case {
        "cases::migrate::carries::iptables_to_ipvs_breaks_nothing"
        | "cases::migrate::carries::ipvs_to_iptables_breaks_nothing" => {
            [&[TODAY], &[OLD, "1.34.4", "1.35.4", "1.36.3"]]
        }
        // Kubernetes 1.20 has no nftables mode.
        _ if case.contains("nftables") && case.contains(SOAK) => [&[], &[TODAY]],
        _ if case.contains("nftables") => [&[TODAY], &[]],
        _ if case.contains("::upgrade::") => [&[], &[OLD, "1.34.4", "1.35.4", "1.36.3"]],
        _ if case.contains(SOAK) => [&[], &[OLD, TODAY]],
        _ => [&[TODAY], &[OLD]],
    }
}

/// The places in README of trials of every run, and of those on request.
pub const ALWAYS: &str = "a virtual machine";
pub const ON_REQUEST: &str = "a virtual machine, on request";

/// The name of the folder that has a file for each trial that was not started yet.
const QUEUE: &str = "queue";

/// What a machine prints before the name of a trial that passed.
const PASSED: &str = "passed: ";

/// The line that a machine prints after its last trial.
const THROUGH: &str = "the machine is through";

/// The text between the name of a trial and the seconds that it took.
pub const TOOK: &str = " took, in seconds: ";

/// The case that needs boots of its own.
const REBOOT: &str = "cases::reboot";

/// The file that is the disk of a machine, if the machine needs one that outlives a boot.
const DISK: &str = "disk";

/// The trials whose names contain one of the words in `wanted`; if it is empty, those of every run.
/// A trial is a case with a version of kube-proxy, and its name is `CASE@VERSION`.
pub fn trials(wanted: &str) -> Vec<String> {
    let cases = cases();
    let of = |case: &String| {
        let [always, on_request] = versions(case);
        let on_request = on_request.iter().filter(|_| !wanted.is_empty());
        always.iter().chain(on_request).map(|version| trial(case, version)).collect::<Vec<_>>()
    };
    let mut trials: Vec<String> = cases.iter().flat_map(of).collect();
    trials.retain(|name| wanted.split(' ').any(|word| name.contains(word)));
    trials
}

/// The names of all cases but the one that needs boots of its own.
fn cases() -> Vec<String> {
    let exe = std::env::current_exe().expect("the test's own path");
    let mut list = Command::new(exe);
    list.args(["--list", "--ignored", "--format", "terse", "--skip", REBOOT]);
    let out = list.output().expect("the test lists its cases").stdout;
    let out = String::from_utf8(out).expect("text");
    out.lines().filter_map(|l| l.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Where README says that the running case was tried: a trial on request has a place of its own.
pub fn place() -> &'static str {
    match is_on_request(&trial(&running_test(), &kube_proxy::version())) {
        true => ON_REQUEST,
        false => ALWAYS,
    }
}

/// Whether a trial is run only on request.
fn is_on_request(trial: &str) -> bool {
    let (case, version) = trial.split_once('@').expect("a version");
    versions(case)[1].contains(&version)
}

fn trial(case: &str, version: &str) -> String {
    format!("{case}@{version}")
}

/// Whether, by the output `log`, a trial passed.
pub fn has_passed(trial: &str, log: &str) -> bool {
    let line = format!("{PASSED}{trial}");
    log.lines().any(|l| l == line)
}

/// Those of `trials` that, by the output `log`, did not pass.
pub fn failed(trials: &[String], log: &str) -> Vec<String> {
    trials.iter().filter(|trial| !has_passed(trial, log)).cloned().collect()
}

/// A queue of trials, from which machines take one after the other until it is empty.
pub struct Queue {
    shared: tempfile::TempDir,
    /// How many seconds a machine may run.
    seconds: u64,
}

impl Queue {
    /// A queue of these trials. They are taken from the end, so that the long ones come first.
    pub fn new(trials: &[String]) -> Queue {
        let shared = tempfile::tempdir().expect("a folder to share with machines");
        let queue = shared.path().join(QUEUE);
        fs::create_dir(&queue).expect("a folder");
        for trial in trials {
            let (_, version) = trial.split_once('@').expect("a version");
            kubernetes(version, "kube-proxy");
            fs::write(queue.join(trial), "").expect("a trial");
        }
        let is_long = trials.iter().any(|trial| is_on_request(trial));
        Queue { shared, seconds: if is_long { LONG } else { ALL } }
    }

    /// Boots a machine called `name`, which runs the trials that are left. Returns their output.
    pub fn run(&self, name: &str) -> String {
        let queue = self.shared.path().join(QUEUE);
        if fs::read_dir(&queue).expect("the queue").next().is_none() {
            return String::new();
        }
        let took = self.shared.path().join(format!("{name}-took"));
        fs::create_dir(&took).expect("a folder");
        // Two machines may want the same trial. The machine that succeeds in moving the trial's file
        // runs it.
        let all = format!(
            "for trial in $(ls -r {queue}); do\n\
             export {version}=${{trial#*@}}\n\
             mv {queue}/$trial {took}/ 2>/dev/null && cases ${{trial%@*}} && echo \"{PASSED}$trial\"\n\
             done\n\
             echo {THROUGH}",
            version = kube_proxy::VERSION,
            queue = queue.display(),
            took = took.display(),
        );
        let began = Instant::now();
        let log = boot(self.shared.path(), name, self.seconds, &all, "");
        println!("{name} ran for {} s", began.elapsed().as_secs());
        assert!(log.contains(THROUGH), "{name} did not get through; {log}");
        log
    }
}

/// Boots a machine several times with the same disk. In each boot but the last, a migration reaches
/// the next of `cuts`, and then the power is cut. The boot that follows resolves the run. Returns
/// how many seconds each boot took.
pub fn reboots(cuts: &[&str]) -> Vec<u64> {
    let shared = tempfile::tempdir().expect("a folder to share with the machine");
    let disk = shared.path().join(DISK);
    let image = fs::File::create(&disk).expect("a disk");
    image.set_len(1 << 30).expect("a sparse file");
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).status();
    assert!(made.expect("mkfs.ext4, of e2fsprogs, runs").success());
    let boot_of = |number: usize| {
        let began = Instant::now();
        let mut variables = format!("{}={TODAY} ", kube_proxy::VERSION);
        if let Some(before) = number.checked_sub(1).map(|n| cuts[n]) {
            variables += &format!("{RESOLVES}={before} ");
        }
        if let Some(cut) = cuts.get(number) {
            variables += &format!("{INTERRUPTS}={cut} ");
        }
        let name = format!("boot-{number}");
        let log = boot(shared.path(), &name, ALL, "cases cases::reboot::one_boot", &variables);
        println!("{log}");
        let is_cut = fs::remove_file(shared.path().join(CUT)).is_ok();
        let ended = if number < cuts.len() { is_cut } else { log.contains("test result: ok") };
        assert!(ended, "boot {number} ({variables})");
        began.elapsed().as_secs()
    };
    (0..=cuts.len()).map(boot_of).collect()
}

/// Boots a machine that shares the folder `shared` with the host, and runs the shell commands
/// `what` in it with the environment `variables`. The files of the machine in that folder are named
/// `NAME-…`. Returns the output. The machine stops after `seconds` at the latest, and is killed at
/// once when a case asks for a power cut.
fn boot(shared: &Path, name: &str, seconds: u64, what: &str, variables: &str) -> String {
    for needed in ["kernel/vmlinuz", "bin/vng"] {
        cached(needed);
    }
    let file = |what: &str| shared.join(format!("{name}-{what}"));
    let exe = std::env::current_exe().expect("the test's own path");
    let script = script(&exe, shared, &file("log"), what, variables);
    fs::write(file("run"), script).expect("the script to run");
    for _ in 0..BOOTS {
        boot_once(shared, seconds, &file("run"), &file("console"), &file("log"));
        if file("log").exists() {
            break;
        }
        println!("{name} did not come up");
    }
    let read = |what: &str| {
        String::from_utf8_lossy(&fs::read(file(what)).unwrap_or_default()).into_owned()
    };
    let console = read("console");
    let lines: Vec<&str> = console.lines().collect();
    format!("{}\n{}", read("log"), lines[lines.len().saturating_sub(40)..].join("\n"))
}

/// Boots a machine that runs the script `run`, and waits until it ends. Gives it up if it has not
/// begun its `log` in time.
fn boot_once(shared: &Path, seconds: u64, run: &Path, console: &Path, log: &Path) {
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/boot");
    let console = fs::File::create(console).expect("a file for the console");
    let mut command = Command::new(boot);
    command.arg(shared).arg(seconds.to_string()).arg(format!("sh {}", run.display()));
    command.stdin(Stdio::null()).stderr(console.try_clone().expect("a handle")).stdout(console);
    let began = Instant::now();
    let mut machine = Machine(command.spawn().expect("tests/vm/boot starts"));
    while machine.runs() && !shared.join(CUT).exists() {
        if !log.exists() && began.elapsed() > Duration::from_secs(BOOT) {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The script that a machine runs: it loads the kernel modules that a node has at boot, and runs
/// `what`, which may call `cases` with the names of cases.
fn script(exe: &Path, shared: &Path, log: &Path, what: &str, variables: &str) -> String {
    format!(
        "export {INSIDE}=1 XDG_CACHE_HOME={cache} RUST_BACKTRACE=0 PATH=$PATH:/usr/local/sbin\n\
         export PROXYSHIFT_SHARED={shared} {variables}\n\
         cd {here}\n\
         exec >{log} 2>&1\n\
         echo kernel: $(uname -r)\n\
         modprobe -a br_netfilter ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh ip_set nf_conntrack\n\
         cat {exe} {program} >/dev/null\n\
         cases() {{ {exe} --ignored --nocapture --test-threads 2 --exact \"$@\"; }}\n\
         {what}\n\
         sync\n",
        cache = cache().display(),
        here = env!("CARGO_MANIFEST_DIR"),
        shared = shared.display(),
        log = log.display(),
        exe = exe.display(),
        program = env!("CARGO_BIN_EXE_proxyshift"),
    )
}

fn cache() -> PathBuf {
    let vm = cached("");
    vm.ancestors().nth(2).expect("below the cache").to_owned()
}

/// Begins a case inside the machine. Returns `true` in the copy of the case that has namespaces of
/// its own.
pub fn inside(case: &str) -> bool {
    assert!(
        std::env::var_os(INSIDE).is_some(),
        "{case} is for the machine: PROXYSHIFT_CASES={case} cargo test --test vm"
    );
    let began = Instant::now();
    // The machine then remembers the program, which it would otherwise fetch page by page.
    fs::read(kube_proxy::program()).expect("kube-proxy");
    let is_inside = in_namespace(case);
    if !is_inside {
        let trial = trial(case, &kube_proxy::version());
        println!("{trial}{TOOK}{}", began.elapsed().as_secs());
    }
    is_inside
}

/// A running machine, which ends when this value is dropped.
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
