//! A run that is to be confirmed is undone when nobody confirms it, when its process dies, and
//! whatever is done to the process that stands by.

mod common;

use common::node::{Case, assert_same};
use common::{in_namespace, poll};
use proxyshift::state::Backend;
use rustix::process::{Pid, Signal, kill_process};

impl Case {
    fn new() -> Case {
        Case::of("half-migrated-ipvs-1.20", Backend::Nft)
    }

    /// The run in hand, as `status` tells it.
    fn pending(&self) -> serde_json::Value {
        self.proxyshift.run("status -o json").json()["pending"].clone()
    }

    /// The process that stands by for the run in hand.
    fn watchdog(&self) -> Pid {
        let run = self.pending()["id"].as_str().expect("pending").to_owned();
        let json = self.proxyshift.store.join("runs").join(run).join("run.json");
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(json).expect("run.json")).expect("JSON");
        let pid = json["pending"]["watchdog"]["pid"].as_i64().expect("one stands by");
        Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid")
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
fn what_nobody_confirms_is_undone() {
    if !in_namespace("what_nobody_confirms_is_undone") {
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
    // A hang-up and a request to end do not end the one who stands by.
    for signal in [Signal::HUP, Signal::TERM, Signal::INT] {
        kill_process(case.watchdog(), signal).expect("signalled");
    }
    case.is_undone("nobody confirmed");
    case.proxyshift.expect(3, "confirm").says(&["was rolled back", "next:"]);
}

#[test]
fn what_is_confirmed_stays() {
    if !in_namespace("what_is_confirmed_stays") {
        return;
    }
    let case = Case::new();
    case.proxyshift.expect(3, "confirm").says(&["no run waits"]);
    case.proxyshift.expect(3, "extend 1m");
    case.proxyshift.expect(2, "extend soon").says(&["90s"]);
    case.proxyshift.expect(0, "cleanup --yes --confirm-within 20s");
    let clean = case.node.rules();
    // Nothing else is begun meanwhile, and there is nothing to resume.
    case.proxyshift.expect(6, "cleanup --yes");
    case.proxyshift.expect(6, "resume").says(&["waits to be confirmed"]);
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
    // What was confirmed can be undone all the same.
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
    // The process that stood by leaves what comes next alone.
    case.proxyshift.expect(0, "cleanup --yes");
    let clean = case.node.rules();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_same(&case.node.rules(), &clean, "another run");
}

#[test]
fn when_who_stands_by_is_killed_whoever_looks_has_another() {
    if !in_namespace("when_who_stands_by_is_killed_whoever_looks_has_another") {
        return;
    }
    let case = Case::new();
    case.proxyshift.expect(0, "cleanup --yes --confirm-within 5s");
    kill_process(case.watchdog(), Signal::KILL).expect("killed");
    poll("its death is seen", || {
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
    // In the middle of its edits.
    case.proxyshift.killed("cleanup --yes --confirm-within 10m", "after:3");
    let status = case.proxyshift.expect(6, "status");
    assert!(status.out.contains("cut off"), "{}", status.out);
    assert_ne!(case.node.rules(), case.before);
    // 30 s for somebody to resume it, then it is undone.
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
    // As if it had died between its journal and its watchdog.
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
