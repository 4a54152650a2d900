//! An unconfirmed run is undone at its deadline, or when its process dies, whatever is done to its
//! watchdog.

mod common;

use common::node::{Case, assert_same};
use common::{in_namespace, poll};
use proxyshift::state::Backend;
use rustix::process::{Pid, Signal, kill_process};

impl Case {
    fn new() -> Case {
        Case::of("half-migrated-ipvs-1.20", Backend::Nft)
    }

    /// The pending run, as `status` prints it.
    fn pending(&self) -> serde_json::Value {
        self.proxyshift.run("status -o json").json()["pending"].clone()
    }

    /// The PID of the watchdog of the pending run.
    fn watchdog(&self) -> Pid {
        let run = self.pending()["id"].as_str().expect("pending").to_owned();
        let json = self.proxyshift.store.join("runs").join(run).join("run.json");
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(json).expect("run.json")).expect("JSON");
        let pid = json["pending"]["watchdog"]["pid"].as_i64().expect("one stands by");
        Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid")
    }

    /// The PIDs of all watchdogs of the pending run, once there are two.
    fn watchdogs(&self) -> Vec<Pid> {
        let run = self.pending()["id"].as_str().expect("pending").to_owned();
        let folder = std::path::Path::new("/run/proxyshift/watchdogs").join(run);
        let names = || {
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok())
        };
        let pids = || names().filter_map(|name| name.split_once('-')?.0.parse().ok());
        poll("there are two", || pids().count() == 2);
        pids().filter_map(Pid::from_raw).collect()
    }

    fn state_of_last_run(&self) -> String {
        let status = self.proxyshift.run("status -o json").json();
        status["runs"][0]["state"].as_str().expect("a state").to_owned()
    }

    fn is_undone(&self, what: &str) {
        poll(what, || self.state_of_last_run() == "rolled-back");
        assert_same(&self.node.rules(), &self.before, what);
        self.proxyshift.expect(0, "status");
    }
}

#[test]
fn an_unconfirmed_run_is_undone() {
    if !in_namespace("an_unconfirmed_run_is_undone") {
        return;
    }
    let case = Case::new();
    let cleaned = case.proxyshift.expect(0, "cleanup --yes --confirm-within 4s -o json").json();
    assert!(cleaned["confirm_within"].as_u64().is_some_and(|left| left <= 4), "{cleaned}");
    assert_ne!(case.node.rules(), case.before);
    let pending = case.pending();
    assert_eq!((&pending["state"], &pending["watchdog"]), (&"unconfirmed".into(), &true.into()));
    let status = case.proxyshift.expect(6, "status");
    for word in ["waits to be confirmed", "proxyshift confirm", "proxyshift rollback"] {
        assert!(status.out.contains(word), "{}", status.out);
    }
    // None of these signals ends the watchdog.
    for signal in [Signal::HUP, Signal::TERM, Signal::INT] {
        kill_process(case.watchdog(), signal).expect("signalled");
    }
    case.is_undone("nobody confirmed");
    case.proxyshift.expect(3, "confirm").reports(&["was rolled back", "next:"]);
}

#[test]
fn a_confirmed_run_is_kept() {
    if !in_namespace("a_confirmed_run_is_kept") {
        return;
    }
    let case = Case::new();
    case.proxyshift.expect(3, "confirm").reports(&["no run waits"]);
    case.proxyshift.expect(3, "extend 1m");
    case.proxyshift.expect(2, "extend soon").reports(&["90s"]);
    case.proxyshift.expect(0, "cleanup --yes --confirm-within 20s");
    let clean = case.node.rules();
    // While a run waits to be confirmed, no other run may begin, and there is nothing to resume.
    case.proxyshift.expect(6, "cleanup --yes");
    case.proxyshift.expect(6, "resume").reports(&["waits to be confirmed"]);
    case.proxyshift.expect(0, "extend 10m");
    assert!(case.pending()["seconds_left"].as_u64().is_some_and(|left| left > 500));
    let watchdog = case.watchdog();
    let confirmed = case.proxyshift.expect(0, "confirm -o json").json();
    assert_eq!(confirmed["changed"], true);
    assert_eq!(case.proxyshift.expect(0, "confirm -o json").json()["changed"], false);
    poll("nobody stands by any more", || {
        proxyshift::runtime::process_start(watchdog.as_raw_nonzero().get().unsigned_abs()).is_none()
    });
    assert_same(&case.node.rules(), &clean, "confirmed");
    // A run can still be undone after it was confirmed.
    case.proxyshift.expect(0, "rollback");
    assert_same(&case.node.rules(), &case.before, "rolled back");
}

#[test]
fn a_rollback_at_once_leaves_nothing_to_undo() {
    if !in_namespace("a_rollback_at_once_leaves_nothing_to_undo") {
        return;
    }
    let case = Case::new();
    case.proxyshift.expect(0, "cleanup --yes --confirm-within 2s");
    case.proxyshift.expect(0, "rollback");
    assert_same(&case.node.rules(), &case.before, "rolled back");
    case.is_undone("by hand");
    // The watchdog of the earlier run does not touch the next run.
    case.proxyshift.expect(0, "cleanup --yes");
    let clean = case.node.rules();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_same(&case.node.rules(), &clean, "another run");
}

#[test]
fn a_killed_watchdog_is_restarted_by_the_next_verb() {
    if !in_namespace("a_killed_watchdog_is_restarted_by_the_next_verb") {
        return;
    }
    let case = Case::new();
    case.proxyshift.expect(0, "cleanup --yes --confirm-within 5s");
    // Both at once: stopped first, so that none starts another.
    let watchdogs = case.watchdogs();
    for signal in [Signal::STOP, Signal::KILL] {
        watchdogs.iter().for_each(|watchdog| kill_process(*watchdog, signal).expect("signalled"));
    }
    poll("their death is seen", || {
        let status = case.proxyshift.expect(6, "status");
        status.err.contains("was gone; another one stands by now")
    });
    let status = case.proxyshift.expect(6, "status");
    assert!(!status.err.contains("was gone"), "{}", status.err);
    case.is_undone("nobody confirmed");
}

#[test]
fn what_is_extended_has_a_watchdog() {
    if !in_namespace("what_is_extended_has_a_watchdog") {
        return;
    }
    let case = Case::new();
    case.proxyshift.expect(0, "cleanup --yes --confirm-within 10m");
    let first = case.watchdog();
    kill_process(first, Signal::KILL).expect("killed");
    poll("it is gone", || {
        proxyshift::runtime::process_start(first.as_raw_nonzero().get().unsigned_abs()).is_none()
    });
    case.proxyshift.expect(0, "extend 1s");
    assert_ne!(case.watchdog(), first);
    case.is_undone("nobody confirmed");
}

#[test]
fn a_run_whose_process_dies_is_undone() {
    if !in_namespace("a_run_whose_process_dies_is_undone") {
        return;
    }
    let case = Case::new();
    // The run is killed in the middle of its edits.
    case.proxyshift.killed("cleanup --yes --confirm-within 10m", "after:3");
    let status = case.proxyshift.expect(6, "status");
    assert!(status.out.contains("cut off"), "{}", status.out);
    assert_ne!(case.node.rules(), case.before);
    // An interrupted run may be resumed for 30 s; then it is undone.
    std::thread::sleep(std::time::Duration::from_secs(25));
    assert_eq!(case.state_of_last_run(), "running");
    case.is_undone("its process died");
}

#[test]
fn a_run_that_is_resumed_in_time_is_not_undone() {
    if !in_namespace("a_run_that_is_resumed_in_time_is_not_undone") {
        return;
    }
    let case = Case::new();
    case.proxyshift.killed("cleanup --yes --confirm-within 10m", "before:4");
    case.proxyshift.expect(0, "resume");
    assert_eq!(case.pending()["state"], "unconfirmed");
    case.proxyshift.expect(0, "confirm");
    let clean = case.node.rules();
    std::thread::sleep(std::time::Duration::from_secs(32));
    assert_same(&case.node.rules(), &clean, "resumed and confirmed");
}

#[test]
fn a_run_that_died_before_it_was_armed_is_armed_when_it_is_resumed() {
    if !in_namespace("a_run_that_died_before_it_was_armed_is_armed_when_it_is_resumed") {
        return;
    }
    let case = Case::new();
    case.proxyshift.killed("cleanup --yes --confirm-within 10m", "before:1");
    // Here the run looks as if its process had died after the journal was created and before the
    // watchdog was started.
    let run = case.pending()["id"].as_str().expect("pending").to_owned();
    let watchdog = case.watchdog();
    kill_process(watchdog, Signal::KILL).expect("killed");
    let file = case.proxyshift.store.join("runs").join(run).join("run.json");
    let text = std::fs::read(&file).expect("run.json");
    let mut json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    json.as_object_mut().expect("an object").remove("pending").expect("armed");
    std::fs::write(&file, serde_json::to_vec(&json).expect("plain data")).expect("written");
    case.proxyshift.expect(0, "resume");
    assert_eq!(case.pending()["state"], "unconfirmed");
    assert_ne!(case.node.rules(), case.before);
    case.proxyshift.expect(0, "extend 1s");
    case.is_undone("nobody confirmed");
}
