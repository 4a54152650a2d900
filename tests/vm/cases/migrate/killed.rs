//! Migrations that are killed midway, and watchdogs that are killed.

use std::collections::BTreeSet;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use super::Case;
use crate::machine::inside;
use crate::traffic::Traffic;

/// The names of the stages that change the node.
const CHANGING: [&str; 4] = ["prepare", "switch", "clean", "settle"];

/// Kills a migration when it writes a line of its journal; `point` is `after:switch:intent`, for
/// example.
fn killed(case: &Case, point: &str) {
    println!("-- killed {point}");
    println!("{}", case.proxyshift.killed(&Case::words("ipvs"), point).err);
    case.proxyshift.expect(6, "status");
}

/// Kills a migration after it journals the intent of a stage's first change, or after it made the
/// change and before it journals the outcome. Then the run is undone by a person or by the
/// watchdog, or it is resumed and not confirmed, so that it is undone.
#[test]
#[ignore = "in the machine"]
fn soak_killed_at_each_stage_it_is_resumed_or_undone() {
    if !inside("cases::migrate::killed::soak_killed_at_each_stage_it_is_resumed_or_undone") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    killed(&case, "after:prepare:intent");
    println!("{}", case.proxyshift.expect(0, "rollback").err);
    case.is_in("iptables");

    killed(&case, "before:switch:done");
    case.wait_until_undone();
    case.is_in("iptables");

    case.playbook("iptables", "ipvs", |text| text.replace("within: 5m", "within: 5s"));
    let traffic = Traffic::start();
    killed(&case, "before:clean:done");
    case.cluster.serves();
    println!("{}", case.proxyshift.expect(0, "resume").err);
    case.wait_until_undone();
    traffic.stop("killed at clean, resumed, not confirmed, undone");
    case.is_in("iptables");
    case.proxyshift.expect(3, "confirm").reports(&["was rolled back"]);
}

#[test]
#[ignore = "in the machine"]
fn soak_killed_at_each_end_of_a_stage_it_is_undone() {
    if !inside("cases::migrate::killed::soak_killed_at_each_end_of_a_stage_it_is_undone") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    assert_eq!(case.migrate("ipvs", "").code, Some(0));
    // The journal lines of one stage are alike, so only the first and the last of each stage are
    // tried.
    let mut journal = case.journal();
    journal.retain(|line| CHANGING.iter().any(|stage| line["stage"] == *stage));
    let stages = journal.chunk_by(|a, b| a["stage"] == b["stage"]);
    let ends: BTreeSet<u64> = stages
        .flat_map(|stage| [stage.first(), stage.last()])
        .map(|line| line.expect("a line")["seq"].as_u64().expect("its number"))
        .collect();
    case.proxyshift.expect(0, "rollback");
    for (n, seq) in ends.into_iter().enumerate() {
        killed(&case, &format!("{}:{seq}", if n % 2 == 0 { "after" } else { "before" }));
        if n % 3 == 0 {
            case.proxyshift.expect(0, "resume");
            case.cluster.serves();
        }
        case.proxyshift.expect(0, "rollback");
        case.is_in("iptables");
    }
}

/// Kills both watchdogs of the last run with SIGKILL. They are stopped first, so that none starts
/// another.
fn kill_watchdogs(case: &Case) {
    let id = case.last_run()["id"].as_str().expect("a run").to_owned();
    let noted = std::fs::read_dir(Path::new("/run/proxyshift/watchdogs").join(id));
    let names = noted.expect("watchdogs").map(|entry| entry.expect("an entry").file_name());
    let pid = |name: std::ffi::OsString| name.to_str()?.split_once('-')?.0.parse().ok();
    let pids: Vec<Pid> = names.filter_map(pid).filter_map(Pid::from_raw).collect();
    assert!(!pids.is_empty());
    for signal in [Signal::STOP, Signal::KILL] {
        for pid in &pids {
            // It may have ended by itself.
            let _ = kill_process(*pid, signal);
        }
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_when_who_stands_by_is_killed_whoever_looks_sees_to_another() {
    if !inside(
        "cases::migrate::killed::soak_when_who_stands_by_is_killed_whoever_looks_sees_to_another",
    ) {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    // While the run is executed, its next stage starts others. While the run waits to be
    // confirmed, any verb starts one.
    let ended = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            case.wait_until_cleaning();
            kill_watchdogs(&case);
        });
        let ended = case.migrate("ipvs", "--confirm-within 20s");
        killer.join().expect("it was killed");
        ended
    });
    assert_eq!(ended.code, Some(0));
    kill_watchdogs(&case);
    std::thread::sleep(std::time::Duration::from_secs(1));
    case.proxyshift.expect(6, "status").reports(&["was gone; another one stands by now"]);
    case.wait_until_undone();
    case.is_in("iptables");
}
