//! Whatever happens to the watchdog, and to what it needs: the run is undone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use proxyshift::runtime::is_stopped;
use proxyshift::state::Backend;
use rustix::process::{Pid, Signal, kill_process};

use crate::Stranger;
use crate::common::node::{Case, Ended, Proxyshift, assert_same};
use crate::common::{in_namespace, poll, program, run, run_with};

/// How long after its deadline a run may take to be undone here.
const SOON: Duration = Duration::from_secs(90);

/// While this file is there, no table can be read.
const FAILS: &str = "/run/fails";

/// The next program that reads a table removes this file, and hangs.
const HANGS: &str = "/run/hangs";

/// An unconfirmed clean-up.
struct Watched {
    case: Case,
    id: String,
}

impl Watched {
    /// Runs a clean-up that is undone unless it is confirmed within `time`.
    fn new(time: &str, backend: Backend) -> Watched {
        let node = if backend == Backend::Nft {
            "half-migrated-ipvs-1.20"
        } else {
            "canal-stale-flannel-1.20"
        };
        let case = Case::of(node, backend);
        let command = case.proxyshift.command(&format!("cleanup --yes --confirm-within {time}"));
        Watched::by(command, case)
    }

    fn by(command: Command, case: Case) -> Watched {
        let ended = Ended::of(command);
        assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
        let run = fs::read_dir(case.proxyshift.store.join("runs")).expect("runs").flatten().next();
        let id = run.expect("one run").file_name().into_string().expect("text");
        let watched = Watched { case, id };
        assert_ne!(watched.case.node.rules(), watched.case.before);
        assert_eq!(watched.state(), "unconfirmed");
        watched
    }

    fn dir(&self) -> PathBuf {
        self.case.proxyshift.store.join("runs").join(&self.id)
    }

    fn json(&self) -> serde_json::Value {
        let text = fs::read(self.dir().join("run.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Looks without proxyshift, which would start a watchdog that is gone.
    fn state(&self) -> String {
        self.json()["state"].as_str().unwrap_or_default().to_owned()
    }

    /// The PIDs of all watchdogs: the one that the run names, which is all that other versions
    /// have, and those that are noted.
    fn watchdogs(&self) -> Vec<Pid> {
        let noted = fs::read_dir(Path::new("/run/proxyshift/watchdogs").join(&self.id));
        let names = noted.into_iter().flatten().flatten().map(|entry| entry.file_name());
        let pid = |name: std::ffi::OsString| name.to_str()?.split_once('-')?.0.parse().ok();
        let mut pids: Vec<i32> = names.filter_map(pid).collect();
        if pids.is_empty() {
            let named = self.json()["pending"]["watchdog"]["pid"].as_i64().expect("a watchdog");
            pids.push(i32::try_from(named).expect("a pid"));
        }
        pids.sort_unstable();
        pids.into_iter().filter_map(Pid::from_raw).filter(|pid| is_alive(*pid)).collect()
    }

    /// Waits until there are two watchdogs, none of them `but`.
    fn two(&self, but: &[Pid]) -> Vec<Pid> {
        let two = || self.watchdogs().iter().filter(|pid| !but.contains(pid)).count() >= 2;
        poll("there are two watchdogs", two);
        self.watchdogs()
    }

    fn is_undone(&self) {
        let begun = Instant::now();
        while self.state() != "rolled-back" {
            let log = fs::read_to_string(self.dir().join("watchdog.log")).unwrap_or_default();
            assert!(begun.elapsed() < SOON, "the run is {}: {log}", self.state());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_same(&self.case.node.rules(), &self.case.before, "undone by the watchdog");
        poll("no watchdog stays", || self.watchdogs().is_empty());
        self.case.proxyshift.expect(0, "status");
    }
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn is_alive(pid: Pid) -> bool {
    proxyshift::runtime::process_start(number(pid)).is_some()
}

/// Puts a script in front of the programs of iptables-nft that does as [`FAILS`] and [`HANGS`] say.
fn in_front() {
    let program = "/usr/sbin/xtables-nft-multi";
    run("mount -t tmpfs front /mnt");
    fs::copy(program, "/mnt/real").expect("a copy");
    let text = format!(
        "#!/bin/bash\n\
         if [[ $0 = *-save ]]; then\n\
         [ ! -e {FAILS} ] || {{ echo no memory >&2; exit 1; }}\n\
         rm {HANGS} 2>/dev/null && sleep 1000\n\
         fi\n\
         exec -a \"${{0##*/}}\" /mnt/real \"$@\"\n"
    );
    fs::write("/mnt/script", text).expect("written");
    fs::set_permissions("/mnt/script", fs::Permissions::from_mode(0o755)).expect("executable");
    run(&format!("mount --bind /mnt/script {program}"));
}

/// Records what is written to all terminals, in the file /run/wall.
fn record_wall() {
    fs::write("/run/wall-script", "#!/bin/sh\necho \"$*\" >>/run/wall\n").expect("written");
    fs::set_permissions("/run/wall-script", fs::Permissions::from_mode(0o755)).expect("executable");
    run("mount --bind /run/wall-script /usr/bin/wall");
}

#[test]
fn a_program_that_fails_for_some_seconds_is_tried_again() {
    if !in_namespace("watchdog::a_program_that_fails_for_some_seconds_is_tried_again") {
        return;
    }
    in_front();
    record_wall();
    let watched = Watched::new("3s", Backend::Nft);
    fs::write(FAILS, "").expect("written");
    std::thread::sleep(Duration::from_secs(8));
    assert_ne!(watched.state(), "rolled-back");
    fs::remove_file(FAILS).expect("removed");
    watched.is_undone();
    // One kind of failure is broadcast once, however many attempts fail.
    let wall = fs::read_to_string("/run/wall").expect("it was broadcast");
    assert_eq!(wall.matches("could NOT be rolled back").count(), 1, "{wall}");
}

#[test]
fn a_program_that_hangs_is_killed_and_the_undo_is_begun_anew() {
    if !in_namespace("watchdog::a_program_that_hangs_is_killed_and_the_undo_is_begun_anew") {
        return;
    }
    in_front();
    let case = Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    let mut command = case.proxyshift.command("cleanup --yes --confirm-within 3s");
    // Less than a program may take otherwise.
    command.env("PROXYSHIFT_STALLED", "3");
    let watched = Watched::by(command, case);
    fs::write(HANGS, "").expect("written");
    watched.is_undone();
    assert!(!Path::new(HANGS).exists(), "nothing hung");
    let log = fs::read_to_string(watched.dir().join("watchdog.log")).expect("a log");
    assert!(log.contains("it hung"), "{log}");
    let sleeps = run_with("grep -lzx 1000 /proc/[0-9]*/cmdline 2>/dev/null; true", &["sh"]);
    for sleep in sleeps.lines() {
        let parent = fs::read_to_string(sleep.replace("cmdline", "comm")).unwrap_or_default();
        assert_ne!(parent.trim(), "sleep", "{sleep} still runs");
    }
}

#[test]
fn a_limit_that_is_lowered_is_raised() {
    if !in_namespace("watchdog::a_limit_that_is_lowered_is_raised") {
        return;
    }
    let watched = Watched::new("5s", Backend::Nft);
    for watchdog in watched.watchdogs() {
        // The soft limits: only a process with the right CAP_SYS_RESOURCE may raise the hard ones.
        run(&format!("prlimit --pid {} --nofile=8: --fsize=0:", number(watchdog)));
    }
    watched.is_undone();
}

#[test]
fn a_watchdog_that_is_killed_is_started_anew() {
    if !in_namespace("watchdog::a_watchdog_that_is_killed_is_started_anew") {
        return;
    }
    let watched = Watched::new("20s", Backend::Nft);
    // It needs neither its file nor the mount of its file.
    let _ = fs::remove_file(watched.dir().join("proxyshift"));
    let mut killed = Vec::new();
    for n in 0..4 {
        let watchdogs = watched.two(&killed);
        // The first, then the second, which is the first after that.
        let one = watchdogs[n % watchdogs.len()];
        kill_process(one, Signal::KILL).expect("killed");
        poll("it is dead", || !is_alive(one));
        killed.push(one);
    }
    watched.two(&killed);
    watched.is_undone();
}

#[test]
fn a_watchdog_that_is_stopped_is_replaced() {
    if !in_namespace("watchdog::a_watchdog_that_is_stopped_is_replaced") {
        return;
    }
    let watched = Watched::new("20s", Backend::Nft);
    let mut stopped = Vec::new();
    for n in 0..2 {
        let one = watched.two(&stopped)[n];
        kill_process(one, Signal::STOP).expect("stopped");
        poll("it is gone", || !is_alive(one));
        stopped.push(one);
    }
    watched.two(&stopped);
    watched.is_undone();
}

/// Ctrl-Z at the wrong moment.
#[test]
fn whoever_is_stopped_with_the_nodes_lock_does_not_keep_it() {
    if !in_namespace("watchdog::whoever_is_stopped_with_the_nodes_lock_does_not_keep_it") {
        return;
    }
    let watched = Watched::new("3s", Backend::Nft);
    let script = "lock=/run/proxyshift/$(stat -Lc %i /proc/self/ns/net).lock; exec 9<>$lock; \
                  flock 9; echo '{\"pid\":'$$',\"verb\":\"confirm\",\"since\":\"now\"}' >&9; \
                  kill -STOP $$; sleep 1000";
    let holder = Stranger::root(script);
    poll("it is stopped", || is_stopped(holder.0.id()));
    watched.is_undone();
}

#[test]
fn a_control_group_that_is_killed_does_not_take_the_watchdog_along() {
    if !in_namespace("watchdog::a_control_group_that_is_killed_does_not_take_the_watchdog_along") {
        return;
    }
    run("mount -t cgroup2 none /sys/fs/cgroup");
    let case = Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    let group = format!("/sys/fs/cgroup/proxyshift-test-{}", std::process::id());
    fs::create_dir(&group).expect("a control group");
    let verb = case.proxyshift.command("cleanup --yes --confirm-within 8s");
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ >$0/cgroup.procs && exec \"$@\"", &group]);
    command.arg(verb.get_program()).args(verb.get_args());
    let watched = Watched::by(command, case);
    fs::write(format!("{group}/cgroup.kill"), "1").expect("killed");
    poll("the group is empty", || fs::remove_dir(&group).is_ok());
    watched.is_undone();
}

#[test]
fn a_run_that_cannot_be_read_for_some_seconds_is_undone() {
    if !in_namespace("watchdog::a_run_that_cannot_be_read_for_some_seconds_is_undone") {
        return;
    }
    let watched = Watched::new("3s", Backend::Nft);
    let file = watched.dir().join("run.json");
    let text = fs::read(&file).expect("run.json");
    fs::remove_dir_all("/run/proxyshift/runs").expect("no copy in memory");
    fs::write(&file, "{").expect("written");
    std::thread::sleep(Duration::from_secs(6));
    fs::write(&file, text).expect("written");
    watched.is_undone();
}

#[test]
fn a_store_that_is_away_for_some_seconds_is_waited_for() {
    if !in_namespace("watchdog::a_store_that_is_away_for_some_seconds_is_waited_for") {
        return;
    }
    let watched = Watched::new("3s", Backend::Nft);
    let store = &watched.case.proxyshift.store;
    let away = store.with_extension("away");
    fs::remove_dir_all("/run/proxyshift/runs").expect("no copy in memory");
    fs::rename(store, &away).expect("moved");
    std::thread::sleep(Duration::from_secs(6));
    fs::rename(&away, store).expect("moved back");
    watched.is_undone();
}

#[test]
fn nothing_of_tmp_is_needed() {
    if !in_namespace("watchdog::nothing_of_tmp_is_needed") {
        return;
    }
    run("mount -t tmpfs -o size=64k,nr_inodes=8 small /tmp");
    run_with(
        "head -c 64k /dev/zero >/tmp/a; for i in 1 2 3 4 5 6 7; do >/tmp/$i; done; true",
        &["sh"],
    );
    let case = Case::of("canal-stale-flannel-1.20", Backend::Legacy);
    let mut command = case.proxyshift.command("cleanup --yes --confirm-within 3s");
    command.env("TMPDIR", "/run/none");
    Watched::by(command, case).is_undone();
}

/// The folder of the store, on a file system of its own.
fn mounted_store(options: &str) {
    fs::create_dir("/run/store").expect("a folder");
    run(&format!("mount -t tmpfs -o mode=700,{options} store /run/store"));
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Nothing is begun, not even a snapshot, that the watchdog could not end.
fn is_refused(proxyshift: &Proxyshift, parts: &[&str]) {
    proxyshift.expect(3, "cleanup --yes --confirm-within 10m").reports(parts);
    for folder in ["snapshots", "runs"] {
        assert_eq!(names(&proxyshift.store.join(folder)), [""; 0], "{folder}");
    }
}

#[test]
fn a_store_from_which_nothing_may_be_executed_is_found_before() {
    if !in_namespace("watchdog::a_store_from_which_nothing_may_be_executed_is_found_before") {
        return;
    }
    mounted_store("noexec");
    let case = Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    // A program in memory is gone after a reboot.
    fs::copy(program(), "/run/proxyshift-program").expect("a copy");
    let Proxyshift { store, lock_wait, .. } = case.proxyshift.clone();
    let by = |path: &str| {
        let mut command = Command::new(path);
        command.arg("--store").arg(&store).args(["--lock-wait", &lock_wait.to_string()]);
        command.args(["cleanup", "--yes", "--confirm-within", "3s"]);
        command
    };
    let ended = Ended::of(by("/run/proxyshift-program"));
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    ended.reports(&["/run/store/runs", "noexec", "--store DIR", "remount", "/usr/local/sbin"]);
    for folder in ["snapshots", "runs"] {
        assert_eq!(names(&store.join(folder)), [""; 0], "{folder}");
    }
    // Where only root may write, on a disk.
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    fs::copy(program(), disk.path().join("proxyshift")).expect("a copy");
    run(&format!("mount --bind {} /usr/local/sbin", disk.path().display()));
    Watched::by(by("/usr/local/sbin/proxyshift"), case).is_undone();
}

#[test]
fn a_disk_without_room_for_the_program_is_found_before() {
    if !in_namespace("watchdog::a_disk_without_room_for_the_program_is_found_before") {
        return;
    }
    let size = fs::metadata(program()).expect("the program").len();
    mounted_store(&format!("size={}", size / 2));
    let case = Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    is_refused(&case.proxyshift, &["/run/store/runs", "KiB are free", "--store DIR"]);
    assert_same(&case.node.rules(), &case.before, "refused");
}
