//! The virtual machine. On the host, the test boots the machine and reads its output. Inside the
//! machine, each case begins in [`inside`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cases::reboot::{CUT, INTERRUPTS, RESOLVES};
use crate::common::in_namespace;
use crate::common::vm::cached;

/// The environment variable that is set inside the machine.
const INSIDE: &str = "PROXYSHIFT_VM";

/// Within how many seconds the machine must have booted, on a busy host without KVM.
const BOOT: u64 = 150;

/// Within how many seconds all cases must have ended, on a busy host without KVM. [`LONG`] is the
/// limit if some of the cases are long.
const ALL: u64 = 1800;
const LONG: u64 = 3 * 3600;

/// A case with this word in its name is long, and runs only on request.
const SOAK: &str = "soak";

/// The name of the folder that has a file for each case that was not started yet.
const QUEUE: &str = "queue";

/// The line that a machine prints after its last case.
const THROUGH: &str = "the machine is through";

/// The text between the name of a case and the seconds that it took.
pub const TOOK: &str = " took, in seconds: ";

/// The case that needs boots of its own.
const REBOOT: &str = "cases::reboot";

/// The file that is the disk of a machine, if the machine needs one that outlives a boot.
const DISK: &str = "disk";

/// The names of the cases that contain one of the words in `part`; if `part` is empty, of all cases
/// but the long ones.
pub fn cases(part: &str) -> Vec<String> {
    let exe = std::env::current_exe().expect("the test's own path");
    let selected = if part.is_empty() { vec!["--skip", SOAK] } else { part.split(' ').collect() };
    let mut list = Command::new(exe);
    list.args(["--list", "--ignored", "--format", "terse", "--skip", REBOOT]).args(selected);
    let out = list.output().expect("the test lists its cases").stdout;
    let out = String::from_utf8(out).expect("text");
    out.lines().filter_map(|l| l.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Those of `cases` that, by the output `log`, did not pass.
pub fn failed(cases: &[String], log: &str) -> Vec<String> {
    cases.iter().filter(|c| !log.contains(&format!("test {c} ... ok"))).cloned().collect()
}

/// A queue of cases, from which machines take one after the other until it is empty.
pub struct Queue {
    shared: tempfile::TempDir,
    /// How many seconds a machine may run.
    seconds: u64,
}

impl Queue {
    /// A queue of these cases. Cases are taken from the end, so that the long ones come first.
    pub fn new(cases: &[String]) -> Queue {
        let shared = tempfile::tempdir().expect("a folder to share with machines");
        let queue = shared.path().join(QUEUE);
        fs::create_dir(&queue).expect("a folder");
        for case in cases {
            fs::write(queue.join(case), "").expect("a case");
        }
        let is_long = cases.iter().any(|case| case.contains(SOAK));
        Queue { shared, seconds: if is_long { LONG } else { ALL } }
    }

    /// Boots a machine called `name`, which runs the cases that are left. Returns their output.
    pub fn run(&self, name: &str) -> String {
        let queue = self.shared.path().join(QUEUE);
        if fs::read_dir(&queue).expect("the queue").next().is_none() {
            return String::new();
        }
        let took = self.shared.path().join(format!("{name}-took"));
        fs::create_dir(&took).expect("a folder");
        // Two machines may want the same case. The machine that succeeds in moving the case's file
        // runs it.
        let all = format!(
            "for case in $(ls -r {queue}); do\n\
             mv {queue}/$case {took}/ 2>/dev/null && cases $case\n\
             done\n\
             echo {THROUGH}",
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
/// the next of `stages`, and then the power is cut. The boot that follows resolves the run. Returns
/// how many seconds each boot took.
pub fn reboots(stages: &[&str]) -> Vec<u64> {
    let shared = tempfile::tempdir().expect("a folder to share with the machine");
    let disk = shared.path().join(DISK);
    let image = fs::File::create(&disk).expect("a disk");
    image.set_len(1 << 30).expect("a sparse file");
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).status();
    assert!(made.expect("mkfs.ext4, of e2fsprogs, runs").success());
    let boot_of = |number: usize| {
        let began = Instant::now();
        let mut variables = String::new();
        if let Some(before) = number.checked_sub(1).map(|n| stages[n]) {
            variables += &format!("{RESOLVES}={before} ");
        }
        if let Some(stage) = stages.get(number) {
            variables += &format!("{INTERRUPTS}={stage} ");
        }
        let name = format!("boot-{number}");
        let log = boot(shared.path(), &name, ALL, "cases cases::reboot::one_boot", &variables);
        println!("{log}");
        let cut = fs::remove_file(shared.path().join(CUT)).is_ok();
        let ended = if number < stages.len() { cut } else { log.contains("test result: ok") };
        assert!(ended, "boot {number} ({variables})");
        began.elapsed().as_secs()
    };
    (0..=stages.len()).map(boot_of).collect()
}

/// Boots a machine that shares the folder `shared` with the host, and runs the shell commands
/// `what` in it with the environment `variables`. The files of the machine in that folder are named
/// `NAME-…`. Returns the output. The machine stops after `seconds` at the latest, and is killed at
/// once when a case asks for a power cut.
fn boot(shared: &Path, name: &str, seconds: u64, what: &str, variables: &str) -> String {
    for needed in ["kernel/vmlinuz", "bin/vng", "kube-proxy"] {
        cached(needed);
    }
    let file = |what: &str| shared.join(format!("{name}-{what}"));
    let exe = std::env::current_exe().expect("the test's own path");
    let script = script(&exe, shared, &file("log"), what, variables);
    fs::write(file("run"), script).expect("the script to run");
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/boot");
    let console = fs::File::create(file("console")).expect("a file for the console");
    let mut command = Command::new(boot);
    command.arg(shared).arg(seconds.to_string()).arg(format!("sh {}", file("run").display()));
    command.stdin(Stdio::null()).stderr(console.try_clone().expect("a handle")).stdout(console);
    let began = Instant::now();
    let mut machine = Machine(command.spawn().expect("tests/vm/boot starts"));
    while machine.runs() && !shared.join(CUT).exists() {
        let booted = file("log").exists();
        if !booted && began.elapsed() > Duration::from_secs(BOOT) {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(machine);
    let read = |what: &str| {
        String::from_utf8_lossy(&fs::read(file(what)).unwrap_or_default()).into_owned()
    };
    let console = read("console");
    let lines: Vec<&str> = console.lines().collect();
    format!("{}\n{}", read("log"), lines[lines.len().saturating_sub(40)..].join("\n"))
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
         cat {exe} {program} {kube_proxy} >/dev/null\n\
         cases() {{ {exe} --ignored --nocapture --test-threads 2 --exact \"$@\"; }}\n\
         {what}\n\
         sync\n",
        cache = cache().display(),
        here = env!("CARGO_MANIFEST_DIR"),
        shared = shared.display(),
        log = log.display(),
        exe = exe.display(),
        program = env!("CARGO_BIN_EXE_proxyshift"),
        kube_proxy = cached("kube-proxy").display(),
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
    let is_inside = in_namespace(case);
    if !is_inside {
        println!("{case}{TOOK}{}", began.elapsed().as_secs());
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
