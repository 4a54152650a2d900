//! The store fails while a run is under way: its disk becomes full or read-only, is shut down or
//! unmounted, or its folders are moved. The node is as before at the deadline all the same, the
//! exit code tells what was done, and the system log has it.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proxyshift::state::Backend;

use crate::common::disk::{DISK, FULL, READ_ONLY, new_disk};
use crate::common::node::{Case, Proxyshift, assert_same};
use crate::common::{in_machine, run_with};
use crate::compile;

/// What happens to the store, or to /run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No block and no inode is left.
    Full,
    /// As a file system becomes after an error, `errors=remount-ro`.
    ReadOnly,
    /// Each access fails: EIO.
    ShutDown,
    /// The file system is not in the tree any more.
    Unmounted,
    Renamed,
    Emptied,
    SnapshotsMoved,
    /// Not the store, but /run, is read-only.
    RunReadOnly,
    /// Neither the store nor /run can be written.
    NothingWritable,
}

/// The request EXT4_IOC_SHUTDOWN to a file system, which forgets what is not on the disk yet.
const SHUT_DOWN: &str = r#"
unsafe extern "C" { fn ioctl(fd: i32, request: u64, flags: *const u32) -> i32; }
fn main() {
    use std::os::fd::AsRawFd;
    let disk = std::fs::File::open(std::env::args().nth(1).unwrap()).unwrap();
    assert_eq!(unsafe { ioctl(disk.as_raw_fd(), 0x8004_587d, &2) }, 0);
}
"#;

impl Failure {
    /// What is to be done before the run begins.
    fn prepare(self) {
        if self == Failure::ShutDown {
            compile(SHUT_DOWN, "/run/shut-down");
        }
    }

    /// A script of sh that lets it happen.
    pub(crate) fn script(self) -> String {
        // A process may have a file of /run open for writing, so another mount covers it.
        let run_read_only = "mount --rbind /run /run && mount -o remount,bind,ro /run\n";
        let script = match self {
            Failure::Full => FULL,
            Failure::ReadOnly => READ_ONLY,
            Failure::ShutDown => "/run/shut-down /run/disk",
            Failure::Unmounted => "umount -l /run/disk",
            Failure::Renamed => "mv /run/disk/store /run/disk/other",
            Failure::Emptied => "rm -rf /run/disk/store/*",
            Failure::SnapshotsMoved => "mv /run/disk/store/snapshots /run/disk/other",
            Failure::RunReadOnly => run_read_only,
            Failure::NothingWritable => &format!("{{ {READ_ONLY}}} && {run_read_only}"),
        };
        script.to_owned()
    }

    pub(crate) fn happens(self) {
        run_with(&self.script(), &["sh"]);
    }

    /// A script of sh after which the store can be used again; none if nothing brings it back.
    fn remedy(self) -> Option<&'static str> {
        // As long as somebody still has a file of it open, the file system is the same one, with
        // its error.
        let again = "for i in $(seq 100); do
                         umount -l /run/disk; mount -o loop /run/store.img /run/disk
                         touch /run/disk/a && exit 0; sleep 0.1
                     done 2>/dev/null; exit 1";
        Some(match self {
            Failure::Full => "rm -r /run/disk/f* /run/disk/a",
            Failure::ReadOnly | Failure::ShutDown | Failure::Unmounted => again,
            Failure::Renamed => "rm -rf /run/disk/store; mv /run/disk/other /run/disk/store",
            Failure::SnapshotsMoved => {
                "rm -rf /run/disk/store/snapshots; mv /run/disk/other /run/disk/store/snapshots"
            }
            Failure::RunReadOnly => "mount -o remount,bind,rw /run",
            Failure::Emptied | Failure::NothingWritable => return None,
        })
    }
}

/// A node whose store is on a small ext4 of its own, and the system log of this test.
pub(crate) struct Failing {
    pub(crate) case: Case,
    log: Arc<Mutex<String>>,
}

impl Failing {
    pub(crate) fn new(captured: &str, backend: Backend, failure: Failure) -> Failing {
        failure.prepare();
        new_disk();
        let log = system_log();
        let mut case = Case::of(captured, backend);
        let store = Path::new(DISK).join("store");
        case.proxyshift = Proxyshift { lock_wait: 30, ..Proxyshift::of_store(store) };
        Failing { case, log }
    }

    /// Fails unless the rules become as before.
    pub(crate) fn is_undone(&self, what: &str) {
        let Case { node, before, .. } = &self.case;
        let until = Instant::now() + Duration::from_secs(45);
        while node.rules() != *before && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_same(&node.rules(), before, what);
    }

    /// Fails unless the system log gets each of `words`.
    pub(crate) fn logs(&self, words: &[&str]) {
        for word in words {
            let found = || self.log.lock().expect("a log").contains(word);
            let until = Instant::now() + Duration::from_secs(30);
            while !found() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(found(), "{word:?} is not in: {}", self.log.lock().expect("a log"));
        }
    }
}

/// Puts a system log of the test's own into a private /dev. Returns what it was told.
fn system_log() -> Arc<Mutex<String>> {
    let private = "mkdir /run/dev; mount -t tmpfs -o mode=755 dev /run/dev
                   cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/loop* \
                       /run/dev/
                   ln -s /proc/self/fd /run/dev/fd; mount --bind /run/dev /dev";
    run_with(private, &["sh", "-e"]);
    let socket = UnixDatagram::bind("/dev/log").expect("a socket");
    let log = Arc::new(Mutex::new(String::new()));
    let told = log.clone();
    std::thread::spawn(move || {
        let mut message = [0; 65536];
        while let Ok(length) = socket.recv(&mut message) {
            let text = String::from_utf8_lossy(&message[..length]);
            *told.lock().expect("a log") += &format!("{text}\n");
        }
    });
    log
}

/// The store fails while a run waits to be confirmed. At the deadline the node is as before, and
/// the system log says so. Whatever is asked afterwards, nobody is told that the run was kept.
fn fails_before_the_deadline(test: &str, backend: Backend, failure: Failure) {
    if !in_machine(test) {
        return;
    }
    let failing = Failing::new("half-migrated-ipvs-1.20", backend, failure);
    let Case { node, proxyshift, before } = &failing.case;
    proxyshift.expect(0, "cleanup --yes --confirm-within 5s");
    assert_ne!(node.rules(), *before);
    failure.happens();
    failing.is_undone(&format!("{failure:?}: nobody confirmed"));
    failing.logs(&["nobody confirmed it in time", "as before"]);
    for words in ["status", "confirm", "resume", "rollback", "cleanup --dry-run"] {
        let ended = proxyshift.run(words);
        let shown = format!("{failure:?}: {words}: {:?} {}{}", ended.code, ended.out, ended.err);
        // `status` is exit 6 while a run is pending, and this one is undone, which can be noted
        // wherever something can be written.
        let nowhere = failure == Failure::NothingWritable;
        assert!(matches!(ended.code, Some(0 | 3)) || nowhere && ended.code == Some(6), "{shown}");
        assert!(ended.code != Some(0) || words != "confirm" && words != "resume", "{shown}");
        assert!(!ended.out.contains("waits to be confirmed"), "{shown}");
        assert_same(&node.rules(), before, &shown);
    }
    let Some(remedy) = failure.remedy() else { return };
    run_with(remedy, &["sh"]);
    // The store is there again, and its run is not pending although its run.json could not be
    // written.
    let confirmed = proxyshift.run("confirm");
    assert_eq!(confirmed.code, Some(3), "{failure:?}: {}{}", confirmed.out, confirmed.err);
    let status = proxyshift.expect(0, "status");
    assert!(!status.out.contains("waits to be confirmed"), "{failure:?}: {}", status.out);
    proxyshift.expect(0, "cleanup --yes");
    assert_ne!(node.rules(), *before, "{failure:?}: another run begins");
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), before, &format!("{failure:?}: another run is undone"));
}

/// Who does not wait for the deadline gets the same by hand.
fn fails_before_a_rollback(test: &str, failure: Failure) {
    if !in_machine(test) {
        return;
    }
    let failing = Failing::new("half-migrated-ipvs-1.20", Backend::Nft, failure);
    let Case { node, proxyshift, before } = &failing.case;
    proxyshift.expect(0, "cleanup --yes --confirm-within 10m");
    assert_ne!(node.rules(), *before);
    failure.happens();
    let ended = proxyshift.run("rollback");
    let shown = format!("{failure:?}: {:?} {}{}", ended.code, ended.out, ended.err);
    assert_eq!(ended.code, Some(0), "{shown}");
    assert_same(&node.rules(), before, &shown);
    let confirmed = proxyshift.run("confirm");
    assert_eq!(confirmed.code, Some(3), "{shown}{}{}", confirmed.out, confirmed.err);
    assert_same(&node.rules(), before, &shown);
}

/// A run that is done waits for nobody. Its store cannot be written, and `rollback` either undoes
/// it or refuses; its exit code says which.
#[test]
fn a_rollback_of_a_done_run_says_what_it_did() {
    let test = "failing_store::a_rollback_of_a_done_run_says_what_it_did";
    if !in_machine(test) {
        return;
    }
    let failure = Failure::ReadOnly;
    let failing = Failing::new("half-migrated-ipvs-1.20", Backend::Nft, failure);
    let Case { node, proxyshift, before } = &failing.case;
    proxyshift.expect(0, "cleanup --yes");
    let clean = node.rules();
    failure.happens();
    let ended = proxyshift.run("rollback");
    let shown = format!("{:?} {}{}", ended.code, ended.out, ended.err);
    match ended.code {
        Some(0) => assert_same(&node.rules(), before, &shown),
        Some(3 | 5) => assert_same(&node.rules(), &clean, &shown),
        _ => panic!("{shown}"),
    }
    assert!(ended.code == Some(0) || ended.err.contains("next:"), "{shown}");
}

/// Whoever confirms a run whose store cannot be written keeps it, or is told that it is not kept.
#[test]
fn a_confirmation_holds_or_is_refused() {
    let test = "failing_store::a_confirmation_holds_or_is_refused";
    if !in_machine(test) {
        return;
    }
    let failure = Failure::ReadOnly;
    let failing = Failing::new("half-migrated-ipvs-1.20", Backend::Nft, failure);
    let Case { node, proxyshift, .. } = &failing.case;
    proxyshift.expect(0, "cleanup --yes --confirm-within 10s");
    let clean = node.rules();
    failure.happens();
    let ended = proxyshift.run("confirm");
    let shown = format!("{:?} {}{}", ended.code, ended.out, ended.err);
    if ended.code == Some(0) {
        std::thread::sleep(Duration::from_secs(15));
        assert_same(&node.rules(), &clean, &shown);
    } else {
        assert!(ended.code == Some(3) && ended.err.contains("next:"), "{shown}");
        failing.is_undone(&shown);
    }
}

#[test]
fn a_full_disk_stops_no_deadline() {
    let test = "failing_store::a_full_disk_stops_no_deadline";
    fails_before_the_deadline(test, Backend::Nft, Failure::Full);
}

#[test]
fn a_read_only_disk_stops_no_deadline() {
    let test = "failing_store::a_read_only_disk_stops_no_deadline";
    fails_before_the_deadline(test, Backend::Nft, Failure::ReadOnly);
}

#[test]
fn a_disk_that_is_shut_down_stops_no_deadline() {
    let test = "failing_store::a_disk_that_is_shut_down_stops_no_deadline";
    fails_before_the_deadline(test, Backend::Nft, Failure::ShutDown);
}

#[test]
fn a_disk_that_is_unmounted_stops_no_deadline() {
    let test = "failing_store::a_disk_that_is_unmounted_stops_no_deadline";
    fails_before_the_deadline(test, Backend::Nft, Failure::Unmounted);
}

#[test]
fn a_store_that_is_renamed_stops_no_deadline() {
    let test = "failing_store::a_store_that_is_renamed_stops_no_deadline";
    fails_before_the_deadline(test, Backend::Nft, Failure::Renamed);
}

#[test]
fn a_store_that_is_emptied_stops_no_deadline() {
    let test = "failing_store::a_store_that_is_emptied_stops_no_deadline";
    fails_before_the_deadline(test, Backend::Nft, Failure::Emptied);
}

#[test]
fn snapshots_that_are_moved_stop_no_deadline() {
    let test = "failing_store::snapshots_that_are_moved_stop_no_deadline";
    fails_before_the_deadline(test, Backend::Nft, Failure::SnapshotsMoved);
}

#[test]
fn a_read_only_run_stops_no_deadline() {
    let test = "failing_store::a_read_only_run_stops_no_deadline";
    fails_before_the_deadline(test, Backend::Nft, Failure::RunReadOnly);
}

#[test]
fn a_node_with_nothing_to_write_to_stops_no_deadline() {
    let test = "failing_store::a_node_with_nothing_to_write_to_stops_no_deadline";
    fails_before_the_deadline(test, Backend::Nft, Failure::NothingWritable);
}

#[test]
fn a_read_only_disk_stops_no_deadline_on_legacy() {
    let test = "failing_store::a_read_only_disk_stops_no_deadline_on_legacy";
    fails_before_the_deadline(test, Backend::Legacy, Failure::ReadOnly);
}

#[test]
fn a_read_only_disk_stops_no_rollback() {
    let test = "failing_store::a_read_only_disk_stops_no_rollback";
    fails_before_a_rollback(test, Failure::ReadOnly);
}

#[test]
fn a_disk_that_is_shut_down_stops_no_deadline_on_legacy() {
    let test = "failing_store::a_disk_that_is_shut_down_stops_no_deadline_on_legacy";
    fails_before_the_deadline(test, Backend::Legacy, Failure::ShutDown);
}

#[test]
fn a_disk_that_is_shut_down_stops_no_rollback() {
    let test = "failing_store::a_disk_that_is_shut_down_stops_no_rollback";
    fails_before_a_rollback(test, Failure::ShutDown);
}

#[test]
fn snapshots_that_are_moved_stop_no_rollback() {
    fails_before_a_rollback(
        "failing_store::snapshots_that_are_moved_stop_no_rollback",
        Failure::SnapshotsMoved,
    );
}

#[test]
fn a_store_that_is_renamed_stops_no_rollback() {
    fails_before_a_rollback(
        "failing_store::a_store_that_is_renamed_stops_no_rollback",
        Failure::Renamed,
    );
}

#[test]
fn a_read_only_run_stops_no_rollback() {
    fails_before_a_rollback(
        "failing_store::a_read_only_run_stops_no_rollback",
        Failure::RunReadOnly,
    );
}
