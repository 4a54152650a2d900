//! The namespaces that hold a whole cluster. From the host nothing of it can be seen but its
//! processes and a folder of control groups; all of it ends with the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::common::run;
use crate::common::tried::hold_readme_to;

/// What the names of all cases contain.
pub const ALL: &str = "cases::";

/// What the names of those begin with that `make soak` alone runs.
const SOAK: &str = "soak_";

/// Where the cases run, in README.
pub const AT: &str = "a real cluster";

/// Where those of `make soak` run, in README.
pub const AT_SOAK: &str = "a real cluster, in `make soak`";

/// The variable that is set inside, with the folder of control groups for the nodes.
const CONTROL_GROUPS: &str = "PROXYSHIFT_CONTROL_GROUPS";

/// What an `ip netns` of its own and an empty /run need. The rest of the script is the test.
const PREPARE: &str = "mount -t tmpfs -o mode=755 proxyshift /run && mount -t proc proc /proc && \
                       ip link set lo up && exec \"$@\"";

/// How many machines there are at once: for half of the time the cases wait. With three, the traffic of one
/// starves that of the others.
const MACHINES: usize = 2;

/// Runs the cases whose names contain a word of `wanted`, in namespaces that look like some machines, each
/// with a cluster of its own. On one machine they run one after the other, as what one does to Services would
/// be seen by the kube-proxies of the others.
pub fn run_cases(wanted: &str) {
    let cases = cases(wanted);
    assert!(!cases.is_empty(), "no case has `{wanted}` in its name");
    // Neighbours are alike, and take alike long.
    let shares = (0..MACHINES.min(cases.len()))
        .map(|first| (first, cases.iter().skip(first).step_by(MACHINES).collect::<Vec<_>>()));
    let outputs = std::thread::scope(|scope| {
        let machines: Vec<_> =
            shares.map(|(number, cases)| scope.spawn(move || run_on(number, &cases))).collect();
        machines.into_iter().map(|m| m.join().expect("a machine")).collect::<Vec<Output>>()
    });
    // Why a case failed comes first: whoever has only a part of a long log has its beginning.
    let [errors, said] =
        [|o: &Output| o.stderr.clone(), |o: &Output| o.stdout.clone()].map(|of| text(&outputs, of));
    println!("{errors}{said}");
    outputs.iter().for_each(|output| assert!(output.status.success(), "{}", output.status));
    hold_readme_to(&said, if wanted == ALL { &[AT] } else { &[] });
}

fn text(outputs: &[Output], of: fn(&Output) -> Vec<u8>) -> String {
    outputs.iter().map(|output| String::from_utf8_lossy(&of(output)).into_owned()).collect()
}

/// The names of the cases that contain one of the words of `wanted`.
fn cases(wanted: &str) -> Vec<String> {
    let mut list = Command::new(own_program());
    list.args(wanted.split(' ')).args(["--list", "--ignored", "--format", "terse"]);
    if wanted == ALL {
        // What takes long is for `make soak`, and for who asks for it.
        list.args(["--skip", SOAK]);
    }
    let out = list.output().expect("the test lists its cases").stdout;
    let out = String::from_utf8(out).expect("text");
    out.lines().filter_map(|l| l.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Runs these cases on a machine of their own.
fn run_on(number: usize, cases: &[&String]) -> Output {
    let groups = ControlGroups::make(number);
    // What unshare has started ends with unshare, and unshare with this test.
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "-nmpf",
            "--propagation",
            "private",
            "--kill-child",
            "sh",
            "-c",
            PREPARE,
            "sh",
        ])
        .arg(own_program())
        .args(cases)
        .args(["--exact", "--ignored", "--nocapture", "--test-threads", "1"])
        .env(CONTROL_GROUPS, &groups.0)
        .stdin(Stdio::null());
    command.output().expect("setpriv, of util-linux, runs")
}

fn own_program() -> PathBuf {
    std::env::current_exe().expect("the test's own path")
}

/// The folder with the control groups of the nodes. Fails outside of the namespaces.
pub fn control_groups() -> PathBuf {
    let folder = std::env::var_os(CONTROL_GROUPS);
    PathBuf::from(folder.expect("cases run by: PROXYSHIFT_CASES=… cargo test --test cluster"))
}

/// A folder below the root of version 2 of the control groups. It is removed when this value is
/// dropped.
struct ControlGroups(PathBuf);

impl ControlGroups {
    fn make(number: usize) -> ControlGroups {
        let root = run("findmnt -n -f -t cgroup2 -o TARGET");
        let name = format!("proxyshift-cluster-{}-{number}", std::process::id());
        let folder = Path::new(root.trim()).join(name);
        fs::create_dir(&folder).expect("a folder of control groups");
        ControlGroups(folder)
    }
}

impl Drop for ControlGroups {
    fn drop(&mut self) {
        // A control group can only be removed once its last process has ended.
        for _ in 0..100 {
            remove(&self.0);
            if !self.0.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        eprintln!("{} was left", self.0.display());
    }
}

/// Removes a folder of control groups with all below it, as far as they are empty.
fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}
