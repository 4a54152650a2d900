//! The watchdog under a real systemd.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use proxyshift::apply::systemd::exec_argument;
use proxyshift::state::Backend;

use crate::common::node::{Case, assert_same};
use crate::machine::inside;
use crate::systemd::Systemd;

/// How long an emulated CPU may take for anything here.
const SOON: Duration = Duration::from_secs(240);

/// What the clean-up reports.
const LOG: &str = "/run/session.log";

/// A node of which systemd is the first process, with an unconfirmed clean-up.
struct Watched {
    systemd: Systemd,
    case: Case,
    id: String,
}

impl Watched {
    /// The clean-up runs in a unit of its own, with the store in the folder `store`. systemd kills
    /// the unit's control group as soon as the clean-up has ended.
    fn new(store: &str, time: &str) -> Watched {
        let mut case = Case::of("half-migrated-ipvs-1.20", Backend::Nft);
        let systemd = Systemd::of_node();
        case.proxyshift.store = store.into();
        let verb = case.proxyshift.command(&format!("cleanup --yes --confirm-within {time}"));
        let words: Vec<String> = verb.get_args().map(exec_argument).collect();
        let line = format!("{} {}", verb.get_program().display(), words.join(" "));
        systemd.start("session", "oneshot", &line, LOG);
        let log = fs::read_to_string(LOG).expect("a log");
        println!("{log}");
        assert!(log.contains("by a systemd unit of its own"));
        case.proxyshift.within = systemd.prefix();
        let run = fs::read_dir(Path::new(store).join("runs")).expect("runs").flatten().next();
        let id = run.expect("one run").file_name().into_string().expect("text");
        let watched = Watched { systemd, case, id };
        assert_ne!(watched.case.node.rules(), watched.case.before);
        watched
    }

    fn unit(&self) -> String {
        format!("proxyshift-watchdog-{}", self.id)
    }

    /// A property of the watchdog's unit.
    fn property(&self, name: &str) -> String {
        let text = self.systemd.ctl(&format!("show --property {name} {}.service", self.unit()));
        text.trim().split_once('=').expect("a property").1.to_owned()
    }

    /// Waits until the unit has another process than `earlier`.
    fn is_started_anew(&self, earlier: &str) -> String {
        let mut pid = String::new();
        soon("another process watches", || {
            pid = self.property("MainPID");
            pid != earlier && pid != "0" && self.property("ActiveState") == "active"
        });
        pid
    }

    fn state(&self) -> String {
        let file = self.case.proxyshift.store.join("runs").join(&self.id).join("run.json");
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(file).expect("run.json")).expect("JSON");
        json["state"].as_str().expect("a state").to_owned()
    }

    fn is_undone(&self) {
        soon("the run is undone", || self.state() == "rolled-back");
        assert_same(&self.case.node.rules(), &self.case.before, "undone by the watchdog");
        self.has_no_units();
    }

    fn has_no_units(&self) {
        let pattern = "list-units --all --plain --no-legend proxyshift-watchdog-*";
        soon("the units are gone", || self.systemd.ctl(pattern).trim().is_empty());
        let kept = Path::new("/run/proxyshift/watchdogs").join(&self.id);
        soon("nothing is noted", || !kept.exists());
    }
}

/// Waits until `done` returns true.
fn soon(what: &str, done: impl FnMut() -> bool) {
    let mut done = done;
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
#[ignore = "in the machine"]
fn a_unit_of_its_own_outlives_the_session_and_every_signal() {
    if !inside("cases::watchdog::a_unit_of_its_own_outlives_the_session_and_every_signal") {
        return;
    }
    let watched = Watched::new("/run/store", "3m");
    let unit = watched.unit();
    let first = watched.property("MainPID");
    assert_eq!(watched.property("ActiveState"), "active");
    let target = watched.systemd.ctl("show --property ActiveState sysinit.target");
    assert_eq!(target.trim(), "ActiveState=inactive", "it starts what a boot starts");
    let status = watched.case.proxyshift.expect(6, "status");
    assert!(status.out.contains("watched by a systemd unit of its own"), "{}", status.out);
    // The process has an answer to SIGTERM: none.
    watched.systemd.ctl(&format!("kill {unit}.service"));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(watched.property("MainPID"), first);
    watched.systemd.ctl(&format!("kill --signal=KILL {unit}.service"));
    let second = watched.is_started_anew(&first);
    watched.systemd.ctl(&format!("kill --signal=STOP {unit}.service"));
    let third = watched.is_started_anew(&second);
    assert_ne!(third, first);
    let score = fs::read_to_string(watched.inside_proc(&third, "oom_score_adj")).expect("a score");
    assert_eq!(score.trim(), "-900");
    watched.case.proxyshift.expect(0, "extend 3s");
    watched.is_undone();
}

#[test]
#[ignore = "in the machine"]
fn a_timer_starts_another_watchdog_whatever_the_path_of_the_store() {
    if !inside("cases::watchdog::a_timer_starts_another_watchdog_whatever_the_path_of_the_store") {
        return;
    }
    let watched = Watched::new("/run/a %h $HOME \"b\" \\c", "10s");
    watched.systemd.ctl(&format!("stop {}.service", watched.unit()));
    watched.is_undone();
}

#[test]
#[ignore = "in the machine"]
fn the_units_go_with_the_run() {
    if !inside("cases::watchdog::the_units_go_with_the_run") {
        return;
    }
    let watched = Watched::new("/run/store", "10m");
    watched.case.proxyshift.expect(0, "confirm");
    watched.has_no_units();
}

impl Watched {
    /// A file of /proc, as systemd's namespaces have it, of the process `pid` there.
    fn inside_proc(&self, pid: &str, name: &str) -> String {
        let first = &self.systemd.prefix()[2];
        format!("/proc/{first}/root/proc/{pid}/{name}")
    }
}
