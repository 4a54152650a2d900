//! No process, file or port of a stranger stops a rollback, neither the watchdog's nor the
//! operator's.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use proxyshift::state::Backend;

use crate::common::node::{Case, assert_same};
use crate::common::{in_namespace, poll, run_with};

/// How long a rollback may take. It takes a second or two on an idle machine.
const CEILING: Duration = Duration::from_secs(25);

/// A user without any right.
const STRANGER: &str = "setpriv --reuid 1000 --regid 1000 --clear-groups";

/// Removes the hostile files.
const CLEAR: &str = "rm -rf /run/hostile /run/flannel /etc/cni/net.d/[xyz].*";

/// The hostile processes and files. The processes end when this value is dropped.
struct Strangers {
    processes: Vec<Child>,
    _silent: TcpListener,
}

impl Strangers {
    /// Starts processes that look like kube-proxy and other components, and that name files which
    /// never end, block, or cannot be parsed in a reasonable time.
    fn appear() -> Strangers {
        let files = "chmod 755 /run; mkdir -p /run/hostile; mkfifo /run/hostile/fifo
            awk 'BEGIN { while (i++ < 500000) printf \"[\" }' > /run/hostile/nested
            truncate -s 4G /run/hostile/sparse; chmod -R a+rX /run/hostile
            mkdir -p /etc/cni/net.d; ln -sf /proc/kmsg /etc/cni/net.d/x.conf
            ln -sf /dev/zero /etc/cni/net.d/y.conflist; mkfifo /etc/cni/net.d/z.conf
            mkdir -p /run/flannel; rm -f /run/flannel/subnet.env; mkfifo /run/flannel/subnet.env";
        run_with(files, &["sh", "-e"]);
        // It accepts connections, and never replies.
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address =
            format!("--metrics-bind-address={}", silent.local_addr().expect("an address"));
        let mut strangers = Strangers { processes: Vec::new(), _silent: silent };
        let configs = [
            "/proc/kmsg",
            "/dev/zero",
            "/run/hostile/fifo",
            "/run/hostile/nested",
            "/run/hostile/sparse",
        ];
        for config in configs {
            strangers.process("kube-proxy", &format!("--config={config}"));
        }
        strangers.process("kube-proxy", &address);
        strangers.process("kube-proxy", &format!("--x={}", "x".repeat(100_000)));
        strangers.process("dockerd", "--config-file=/proc/kmsg");
        strangers.process("flanneld", "--subnet-file=/run/hostile/fifo");
        strangers
    }

    /// Starts a process of the stranger's with this name and argument.
    fn process(&mut self, name: &str, argument: &str) {
        let script = format!("exec -a {name} tail -f /dev/null -- {argument}");
        let mut words = STRANGER.split(' ');
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).args(["bash", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("setpriv, of util-linux, runs");
        let line = format!("/proc/{}/cmdline", child.id());
        poll("the stranger appears", || {
            fs::read(&line).is_ok_and(|line| line.starts_with(format!("{name}\0").as_bytes()))
        });
        self.processes.push(child);
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn case() -> Case {
    Case::of("half-migrated-ipvs-1.20", Backend::Nft)
}

/// Runs the program, which must end within [`CEILING`] with the exit code 0.
fn runs_in_time(case: &Case, words: &str) {
    let mut child = case.proxyshift.command(words).spawn().expect("the program starts");
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break status,
            None if begun.elapsed() < CEILING => std::thread::sleep(Duration::from_millis(50)),
            None => {
                let wchan = fs::read_to_string(format!("/proc/{}/wchan", child.id()));
                let _ = child.kill();
                panic!("proxyshift {words} does not end: {wchan:?}");
            }
        }
    };
    assert!(status.success(), "proxyshift {words}: {status}");
}

#[test]
fn the_watchdog_reads_nothing_of_a_stranger() {
    if !in_namespace("rollback::the_watchdog_reads_nothing_of_a_stranger") {
        return;
    }
    let case = case();
    case.proxyshift.expect(0, "cleanup --yes --confirm-within 20s");
    assert_ne!(case.node.rules(), case.before);
    let _strangers = Strangers::appear();
    let begun = Instant::now();
    let is_undone = || {
        let store = case.proxyshift.store.join("runs");
        let runs = fs::read_dir(store).expect("runs").flatten();
        let texts = runs.map(|run| fs::read_to_string(run.path().join("run.json")));
        texts.flatten().any(|text| text.contains("\"rolled-back\""))
    };
    assert!(!is_undone(), "the strangers came too late");
    while !is_undone() {
        assert!(begun.elapsed() < CEILING + Duration::from_secs(20), "the watchdog hangs");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_same(&case.node.rules(), &case.before, "undone by the watchdog");
}

#[test]
fn the_operators_rollback_reads_nothing_of_a_stranger() {
    if !in_namespace("rollback::the_operators_rollback_reads_nothing_of_a_stranger") {
        return;
    }
    let case = case();
    for words in ["cleanup --yes", "cleanup --yes --confirm-within 10m"] {
        case.proxyshift.expect(0, words);
        assert_ne!(case.node.rules(), case.before);
        let strangers = Strangers::appear();
        runs_in_time(&case, "rollback");
        assert_same(&case.node.rules(), &case.before, words);
        drop(strangers);
        run_with(CLEAR, &["sh", "-e"]);
    }
    // The same for a rollback to a snapshot, and for a run that was cut off.
    let taken = case.proxyshift.expect(0, "snapshot create -o json").json();
    let snapshot = taken["snapshot"].as_str().expect("an id").to_owned();
    case.proxyshift.killed("cleanup --yes", "after:3");
    let _strangers = Strangers::appear();
    runs_in_time(&case, &format!("rollback --to {snapshot} --yes"));
    assert_same(&case.node.rules(), &case.before, "rolled back to a snapshot");
}
