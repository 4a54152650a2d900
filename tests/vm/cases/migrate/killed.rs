//! Migrations that are killed, themselves or who stands by for them.

use std::os::unix::process::ExitStatusExt;

use serde_json::Value;

use super::Case;
use crate::machine::inside;

/// Kills a migration where its journal has line `seq`; `when` is `before` or `after` it is written.
fn killed(case: &Case, when: &str, seq: u64) {
    println!("-- killed {when} line {seq}");
    let mut command = case.proxyshift.command(&Case::words("ipvs"));
    let output = command.env("PROXYSHIFT_CRASH", format!("{when}:{seq}")).output().expect("starts");
    let err = String::from_utf8_lossy(&output.stderr);
    println!("{err}");
    assert_eq!(output.status.signal(), Some(9), "{err}");
    case.proxyshift.expect(6, "status");
}

/// Where in a migration's journal each stage that changes something begins and ends its first
/// change.
fn lines(journal: &[Value]) -> Vec<(String, u64, u64)> {
    let mut stages: Vec<(String, u64, u64)> = Vec::new();
    for entry in journal {
        let (stage, seq) = (&entry["stage"], entry["seq"].as_u64().expect("a number"));
        let stage = stage.as_str().expect("a stage").to_owned();
        match (stages.iter_mut().find(|(known, ..)| *known == stage), entry["kind"].as_str()) {
            (None, Some("intent")) => stages.push((stage, seq, seq)),
            (Some((_, begun, done)), Some("done")) if begun == done => *done = seq,
            _ => {}
        }
    }
    stages
}

#[test]
#[ignore = "in the machine"]
fn killed_at_every_stage_it_is_resumed_or_undone() {
    if !inside("cases::migrate::killed::killed_at_every_stage_it_is_resumed_or_undone") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    assert_eq!(case.migrate("ipvs", "").code, Some(0));
    let stages = lines(&case.journal());
    println!("{stages:?}");
    let names: Vec<&str> = stages.iter().map(|(stage, ..)| &**stage).collect();
    assert_eq!(names, ["prepare", "switch", "clean"]);
    case.proxyshift.expect(0, "rollback");
    case.is_in("iptables");

    for (stage, begun, done) in stages {
        // The change is announced, and not made: nobody comes, and it is undone.
        killed(&case, "after", begun);
        match &*stage {
            "prepare" => case.wait_until_undone(),
            _ => drop(case.proxyshift.expect(0, "rollback")),
        }
        case.is_in("iptables");
        // The change is made, and not written down: it is gone on with.
        killed(&case, "before", done);
        case.cluster.serves();
        case.proxyshift.expect(0, "resume");
        case.cluster.serves();
        println!("{}", case.proxyshift.expect(0, "rollback").err);
        case.is_in("iptables");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_killed_at_each_line_it_is_undone() {
    if !inside("cases::migrate::killed::soak_killed_at_each_line_it_is_undone") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    assert_eq!(case.migrate("ipvs", "").code, Some(0));
    let all = case.journal().len() as u64;
    case.proxyshift.expect(0, "rollback");
    for seq in 1..=all {
        killed(&case, if seq % 2 == 0 { "before" } else { "after" }, seq);
        if seq % 3 == 0 {
            case.proxyshift.expect(0, "resume");
            case.cluster.serves();
        }
        case.proxyshift.expect(0, "rollback");
        case.is_in("iptables");
    }
}
