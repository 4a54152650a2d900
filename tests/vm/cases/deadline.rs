//! A run waits to be confirmed under a real systemd, and meanwhile the clock is set, or the store's
//! disk fails. At the deadline the node is as before, and the system log says so.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::migrate::Case as Migration;
use crate::common::disk::{DISK, FULL, READ_ONLY, new_disk};
use crate::common::node::{Case, Proxyshift, assert_same};
use crate::common::{run, run_with};
use crate::machine::inside;
use crate::systemd::Systemd;
use proxyshift::state::Backend;

/// A day, in seconds.
const DAY: i64 = 86_400;

/// How much later than the deadline an emulated CPU may have undone a run.
const PATIENCE: Duration = Duration::from_secs(180);

/// Makes the store's disk, before systemd gets a copy of the tree. Returns the store's path.
fn store() -> PathBuf {
    run("modprobe -a loop ext4");
    new_disk();
    Path::new(DISK).join("store")
}

/// A script of sh that shuts the store's file system down: EXT4_IOC_SHUTDOWN.
const SHUT_DOWN: &str = "python3 -c \"import fcntl, os
disk = os.open('/run/disk', 0)
fcntl.ioctl(disk, 0x8004587d, b'\\2\\0\\0\\0')\"";

/// A system log of the case's own.
struct SystemLog(UnixDatagram);

impl SystemLog {
    fn listen() -> SystemLog {
        let _ = fs::remove_file("/dev/log");
        let socket = UnixDatagram::bind("/dev/log").expect("a socket");
        socket.set_nonblocking(true).expect("set");
        SystemLog(socket)
    }

    /// Fails unless the log was told each of `words`, soon.
    fn was_told(&self, words: &[&str]) {
        let (mut told, mut message) = (String::new(), [0; 65536]);
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until && !words.iter().all(|word| told.contains(word)) {
            match self.0.recv(&mut message) {
                Ok(n) => told += &format!("{}\n", String::from_utf8_lossy(&message[..n])),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        for word in words {
            assert!(told.contains(word), "{word:?} is not in: {told}");
        }
    }
}

impl Drop for SystemLog {
    fn drop(&mut self) {
        let _ = fs::remove_file("/dev/log");
    }
}

/// The machine's clock, which is set right again when this value is dropped.
struct Clock {
    moved: i64,
    began: Instant,
}

impl Clock {
    fn moved(by: i64) -> Clock {
        run(&format!("date -s @{}", now() + by));
        Clock { moved: by, began: Instant::now() }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        run(&format!("date -s @{}", now() - self.moved));
        println!("-- the clock was wrong for {} s", self.began.elapsed().as_secs());
    }
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_secs()).expect("a time")
}

/// A node with leftovers, under a systemd, whose store is on a disk of its own.
struct Waiting {
    case: Case,
    systemd: Systemd,
    log: SystemLog,
}

impl Waiting {
    fn new() -> Waiting {
        let store = store();
        let mut case = Case::of("half-migrated-ipvs-1.20", Backend::Nft);
        let log = SystemLog::listen();
        let systemd = Systemd::of_node();
        let within = systemd.prefix();
        case.proxyshift = Proxyshift { store, lock_wait: 30, within };
        Waiting { case, systemd, log }
    }

    /// Runs a clean-up that waits to be confirmed for `seconds`. Returns when it began to wait.
    fn cleans(&self, seconds: u64) -> Instant {
        let words = format!("cleanup --yes --confirm-within {seconds}s");
        println!("{}", self.case.proxyshift.expect(0, &words).err);
        assert_ne!(self.case.node.rules(), self.case.before);
        println!("-- units: {}", self.systemd.ctl("list-units --all --plain proxyshift*"));
        Instant::now()
    }

    /// Fails unless the node becomes as before at the deadline.
    fn is_undone(&self, what: &str) {
        let Case { node, before, .. } = &self.case;
        let until = Instant::now() + PATIENCE;
        while node.rules() != *before && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_same(&node.rules(), before, what);
        self.log.was_told(&["nobody confirmed it in time", "as before"]);
    }
}

/// The clock is set while a run waits: the deadline comes neither sooner nor later, and a run can
/// be confirmed.
fn clock_is_set(by: i64) {
    let waiting = Waiting::new();
    let Case { node, proxyshift, before } = &waiting.case;
    let began = waiting.cleans(40);
    let clean = node.rules();
    let clock = Clock::moved(by);
    // A watchdog, or a timer, that goes by the clock would act at once.
    std::thread::sleep(Duration::from_secs(15));
    if began.elapsed() < Duration::from_secs(35) {
        assert_same(&node.rules(), &clean, "before the deadline");
        proxyshift.expect(6, "status");
    }
    waiting.is_undone("the clock was set");
    assert!(began.elapsed() < Duration::from_secs(40) + PATIENCE / 2, "{:?}", began.elapsed());
    proxyshift.expect(0, "status");
    drop(clock);
    waiting.cleans(600);
    let clock = Clock::moved(by);
    proxyshift.expect(0, "extend 10m");
    proxyshift.expect(0, "confirm");
    drop(clock);
    assert_same(&node.rules(), &clean, "confirmed");
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), before, "rolled back");
}

#[test]
#[ignore = "in the machine"]
fn soak_a_clock_that_is_set_back_moves_no_deadline() {
    if inside("cases::deadline::soak_a_clock_that_is_set_back_moves_no_deadline") {
        clock_is_set(-DAY);
    }
}

#[test]
#[ignore = "in the machine"]
fn a_clock_that_is_set_forward_moves_no_deadline() {
    if inside("cases::deadline::a_clock_that_is_set_forward_moves_no_deadline") {
        clock_is_set(DAY);
    }
}

/// The store's disk fails while a run waits. Nobody is told afterwards that the run was kept.
fn disk_fails(script: &str) {
    let waiting = Waiting::new();
    let Case { node, proxyshift, before } = &waiting.case;
    waiting.cleans(20);
    run_with(script, &["sh"]);
    waiting.is_undone(script);
    for words in ["status", "confirm", "rollback"] {
        let ended = proxyshift.run(words);
        let shown = format!("{words}: {:?} {}{}", ended.code, ended.out, ended.err);
        assert!(matches!(ended.code, Some(0 | 3)), "{shown}");
        assert!(words != "confirm" || ended.code == Some(3), "{shown}");
        assert_same(&node.rules(), before, &shown);
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_a_full_disk_stops_no_deadline() {
    if inside("cases::deadline::soak_a_full_disk_stops_no_deadline") {
        disk_fails(FULL);
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_a_read_only_disk_stops_no_deadline() {
    if inside("cases::deadline::soak_a_read_only_disk_stops_no_deadline") {
        disk_fails(READ_ONLY);
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_a_disk_that_is_shut_down_stops_no_deadline() {
    if inside("cases::deadline::soak_a_disk_that_is_shut_down_stops_no_deadline") {
        disk_fails(SHUT_DOWN);
    }
}

/// A migration waits to be confirmed, its store's disk is shut down, and the clock is set forward.
/// kube-proxy serves in its old mode again, and nothing of others is lost.
#[test]
#[ignore = "in the machine"]
fn soak_a_migration_whose_disk_is_shut_down_is_undone() {
    if !inside("cases::deadline::soak_a_migration_whose_disk_is_shut_down_is_undone") {
        return;
    }
    let store = store();
    let log = SystemLog::listen();
    let mut case = Migration::new("nft", "iptables");
    case.proxyshift = Proxyshift { store, ..case.proxyshift.clone() };
    case.playbook("iptables", "ipvs", |text| text);
    assert_eq!(case.migrate("ipvs", "--confirm-within 30s").code, Some(0));
    let _clock = Clock::moved(DAY);
    run_with(SHUT_DOWN, &["sh"]);
    log.was_told(&["begins"]);
    let configuration = || fs::read_to_string("/run/kube-proxy/config.conf").unwrap_or_default();
    let until = Instant::now() + PATIENCE;
    while !configuration().contains("mode: iptables") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(configuration().contains("mode: iptables"), "{}", configuration());
    let until = Instant::now() + PATIENCE;
    while !case.cluster.save("nat").contains("KUBE-SVC-") && Instant::now() < until {
        std::thread::sleep(Duration::from_secs(1));
    }
    log.was_told(&["as before"]);
    case.cluster.serves();
    case.keeps_what_is_foreign();
    let confirmed = case.proxyshift.run("confirm");
    assert_eq!(confirmed.code, Some(3), "{}{}", confirmed.out, confirmed.err);
}
