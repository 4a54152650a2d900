//! Journals and locks that several processes use, one of which is killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use proxyshift::error::Kind;
use proxyshift::node::locks::NodeLock;
use proxyshift::node::locks::XtablesLock;
use proxyshift::store::journal::{self, Journal};

use super::{CEILING, Killed, another_process, folder, in_namespaces, poll, record, role};

#[test]
fn a_run_can_be_killed_on_either_side_of_a_line() {
    const NAME: &str = "processes::a_run_can_be_killed_on_either_side_of_a_line";
    if let Some((_, dir)) = role() {
        let mut journal = Journal::create(&folder(&dir), 4096).unwrap();
        for step in 0..5 {
            journal.append(record(step)).unwrap();
        }
        return;
    }
    for (crash, lines) in [("before:1", 0), ("before:3", 2), ("after:3", 3), ("after:9", 5)] {
        let tmp = tempfile::tempdir().unwrap();
        let mut child = another_process(NAME, "writer", tmp.path());
        let status = child.env("PROXYSHIFT_CRASH", crash).stdout(Stdio::null()).status().unwrap();
        assert_eq!(status.signal(), (lines < 5).then_some(9), "{crash}: {status}");
        assert_eq!(
            journal::read::<serde_json::Value>(&folder(tmp.path())).unwrap().len(),
            lines,
            "{crash}"
        );
    }
}

#[test]
fn one_process_holds_the_node_and_the_next_waits_for_it() {
    const NAME: &str = "processes::one_process_holds_the_node_and_the_next_waits_for_it";
    if let Some((_, dir)) = role() {
        let _lock = NodeLock::acquire(&dir.join("locks"), "migrate", Duration::ZERO).unwrap();
        fs::write(dir.join("held"), "").unwrap();
        std::thread::sleep(CEILING);
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut command = another_process(NAME, "holder", tmp.path());
    let mut child = Killed(command.stdout(Stdio::null()).spawn().unwrap());
    poll("the lock to be held", || tmp.path().join("held").exists());

    let locks = tmp.path().join("locks");
    let error = NodeLock::acquire(&locks, "cleanup", Duration::from_millis(100)).unwrap_err();
    assert_eq!(error.kind, Kind::Lock);
    let holder = format!("`proxyshift migrate`, pid {}", child.0.id());
    assert!(error.cause.contains(&holder), "{error}");
    assert!(error.hint.is_some());

    let waiting = std::thread::spawn(move || NodeLock::acquire(&locks, "cleanup", CEILING));
    child.0.kill().unwrap();
    waiting.join().unwrap().expect("a dead process holds nothing");
}

#[test]
fn the_xtables_lock_is_the_one_that_iptables_takes() {
    if !in_namespaces("processes::the_xtables_lock_is_the_one_that_iptables_takes") {
        return;
    }
    let path = Path::new("/run/xtables.lock");
    let lock = XtablesLock::acquire(path, Duration::ZERO).unwrap();
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o600);
    let iptables = |args: &str| {
        Command::new("sh")
            .args(["-c", &format!("iptables-legacy {args} -N TEST")])
            .output()
            .unwrap()
    };
    assert_eq!(iptables("-w 1").status.code(), Some(4), "iptables does not see the lock");
    let inode = fs::metadata(path).unwrap().ino();
    drop(lock);
    assert!(iptables("-w 1").status.success());
    assert_eq!(fs::metadata(path).unwrap().ino(), inode);

    let script = "exec 9>/run/xtables.lock; flock 9; echo held > /run/held; exec sleep 30";
    let holder = Killed(Command::new("sh").args(["-c", script]).spawn().unwrap());
    poll("the lock to be held", || Path::new("/run/held").exists());
    let error = XtablesLock::acquire(path, Duration::from_millis(50)).unwrap_err();
    assert_eq!(error.kind, Kind::Lock);
    // The lock was taken by the command `flock`, which has exited. Now the shell's child `sleep`
    // holds the lock.
    assert!(error.cause.starts_with("held by a child of process"), "{error}");
    drop(holder);
    XtablesLock::acquire(path, CEILING).unwrap();
}
