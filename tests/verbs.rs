//! Every captured node on the command line: planned for, checked and rehearsed, as root and as an
//! ordinary user.

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::in_namespace;
use common::node::{Ended, Proxyshift, all_captured, captured};
use serde_json::Value;

/// The keys of a JSON object.
fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// Runs the program twice. Returns the document, which must be the same both times.
fn stable(proxyshift: &Proxyshift, words: &str) -> Value {
    let first = proxyshift.expect(0, words);
    assert_eq!(first.out, proxyshift.expect(0, words).out, "{words}: not the same twice");
    first.json()
}

fn is_one_of(value: &Value, allowed: &[&str]) -> bool {
    value.as_str().is_some_and(|v| allowed.contains(&v))
}

#[test]
fn plans_have_the_documented_form() {
    let tmp = tempfile::tempdir().expect("a folder");
    let proxyshift = Proxyshift::of_store(tmp.path().join("store"));
    let fields =
        ["action", "kind", "family", "backend", "table", "name", "text", "owner", "reason"];
    for name in all_captured() {
        let words = format!("plan -o json --snapshot {}", captured(&name).display());
        let plan = stable(&proxyshift, &words);
        assert_eq!(keys(&plan), BTreeSet::from(["schema", "version", "objects"]), "{name}");
        assert_eq!((&plan["schema"], &plan["version"]), (&"proxyshift.plan".into(), &1.into()));
        for object in plan["objects"].as_array().expect("a list") {
            assert_eq!(keys(object), BTreeSet::from(fields), "{name}: {object}");
            let kinds = ["table", "chain", "rule", "set", "virtual-server", "link"];
            assert!(
                is_one_of(&object["action"], &["remove", "keep", "suspect"]),
                "{name}: {object}"
            );
            assert!(is_one_of(&object["kind"], &kinds), "{name}: {object}");
            for field in ["backend", "name", "text", "owner", "reason"] {
                assert!(object[field].is_string(), "{name}: {object}");
            }
            assert!(object["reason"].as_str().is_some_and(|r| r.len() > 10), "{name}: {object}");
        }
    }
}

#[test]
fn plans_of_a_migration_add_its_stages() {
    let tmp = tempfile::tempdir().expect("a folder");
    let proxyshift = Proxyshift::of_store(tmp.path().join("store"));
    for (name, to, playbook) in [
        ("docker-iptables-1.30", "ipvs", "iptables-to-ipvs"),
        ("docker-legacy-iptables-1.20-no-conntrack", "ipvs", "iptables-to-ipvs"),
        ("ipvs-with-keepalived-1.20", "iptables", "ipvs-to-iptables"),
    ] {
        let dir = captured(name);
        let plan =
            stable(&proxyshift, &format!("plan --to {to} -o json --snapshot {}", dir.display()));
        let fields = ["schema", "version", "from", "to", "playbook", "stages", "objects"];
        assert_eq!(keys(&plan), BTreeSet::from(fields), "{name}");
        assert_eq!((&plan["version"], &plan["playbook"]), (&1.into(), &playbook.into()), "{name}");
        let stage = |wanted: &str| {
            let mut stages = plan["stages"].as_array().expect("a list").iter();
            let stage = stages.find(|s| s["stage"] == wanted).expect(wanted);
            assert_eq!(keys(stage), BTreeSet::from(["stage", "changes", "does", "with", "stops"]));
            serde_json::to_string(stage).expect("JSON")
        };
        assert!(stage("switch").contains(&format!("+ mode: {to}")), "{name}: {}", stage("switch"));
        assert!(stage("converge").contains("10.96.0.10:53/udp"), "{name}: {}", stage("converge"));
        let removed = plan["objects"].as_array().expect("a list").iter();
        let removed: Vec<_> = removed.filter(|o| o["action"] == "remove").collect();
        assert!(removed.len() > 50 && removed.iter().all(|o| o["owner"] == "kube-proxy"), "{name}");
        let words = format!("plan --to {to} --snapshot {}", dir.display());
        let text = proxyshift.expect(0, &words).out;
        assert!(text.contains("* switch") && text.lines().count() < 60, "{text}");
        let listed = proxyshift.expect(0, &format!("{words} -v")).out;
        assert!(listed.contains("once the new mode serves") && listed.len() > text.len());
    }
    // If `--to` names the mode that runs already, only a clean-up is planned, as without `--to`.
    let dir = captured("docker-iptables-1.30");
    let same = format!("plan --to iptables -o json --snapshot {}", dir.display());
    let without = format!("plan -o json --snapshot {}", dir.display());
    assert_eq!(stable(&proxyshift, &same), stable(&proxyshift, &without));
}

#[test]
fn the_bridge_of_a_move_is_planned_with_how_long_it_serves() {
    let tmp = tempfile::tempdir().expect("a folder");
    let proxyshift = Proxyshift::of_store(tmp.path().join("store"));
    let bridge = |name: &str, to: &str| {
        let words = format!("plan --to {to} --snapshot {} -o json", captured(name).display());
        let plan = proxyshift.expect(0, &words).json();
        let stages = plan["stages"].as_array().expect("stages").iter();
        let names: Vec<&str> = stages.clone().filter_map(|s| s["stage"].as_str()).collect();
        let between = names.iter().skip_while(|name| **name != "bridge").take(4);
        let expected = ["bridge", "switch", "converge", "remove-bridge"];
        assert!(between.eq(expected.iter()), "{names:?}");
        let bridge = stages.clone().find(|s| s["stage"] == "bridge").expect("the bridge");
        bridge["does"].to_string()
    };
    let leaving = bridge("iptables-1.37", "nftables");
    assert!(
        leaving.contains("service ports of ipv4") && leaving.contains(" s; meanwhile"),
        "{leaving}"
    );
    let from_ipvs = bridge("ipvs-1.37", "nftables");
    assert!(from_ipvs.contains("connections through ipvs, 0 now"), "{from_ipvs}");
    for to in ["iptables", "ipvs"] {
        let back = bridge("nftables-1.37", to);
        assert!(back.contains("service ports of ipv4") && back.contains(" s; meanwhile"), "{back}");
    }
}

#[test]
fn verified_and_shown() {
    let tmp = tempfile::tempdir().expect("a folder");
    let proxyshift = Proxyshift::of_store(tmp.path().join("store"));
    for name in all_captured() {
        let dir = captured(&name);
        let verified = stable(&proxyshift, &format!("snapshot verify {} -o json", dir.display()));
        assert_eq!(verified["schema"], "proxyshift.verify", "{name}");
        assert!(verified["files"].as_u64().is_some_and(|n| n > 5), "{name}: {verified}");
        stable(&proxyshift, &format!("snapshot show {} -o json", dir.display()));
        let same = format!("snapshot diff {0} {0} -o json", dir.display());
        assert_eq!(stable(&proxyshift, &same)["differences"], Value::Array(Vec::new()), "{name}");
    }
}

/// Verifies the document that a rehearsal printed for the captured node `name`.
fn check_rehearsal(name: &str, ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{name}: {}{}", ended.out, ended.err);
    let document = ended.json();
    let fields = ["schema", "version", "partial", "left_out", "removed", "proofs"];
    assert!(keys(&document).is_superset(&BTreeSet::from(fields)), "{name}: {document}");
    assert_eq!(document["schema"], "proxyshift.rehearsal", "{name}");
    let proofs: Vec<&str> =
        document["proofs"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    // If there is nothing to remove, nothing is cleaned up or rolled back, so only loading is
    // verified.
    let moments: &[&str] = match document["removed"].as_u64() {
        Some(0) => &["loaded: "],
        _ => &["loaded: ", "after cleaning", "after rollback"],
    };
    for moment in moments {
        assert!(proofs.iter().any(|p| p.starts_with(moment)), "{name}: {proofs:?}");
    }
}

#[test]
fn rehearsed_by_root() {
    if !in_namespace("rehearsed_by_root") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    for name in all_captured() {
        let words = format!("rehearse -o json --snapshot {}", captured(&name).display());
        check_rehearsal(&name, &proxyshift.run(&words));
    }
}

#[test]
fn what_a_migration_will_remove_is_rehearsed_before_it() {
    if !in_namespace("what_a_migration_will_remove_is_rehearsed_before_it") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    for (name, to) in [
        ("docker-iptables-1.30", "ipvs"),
        ("docker-legacy-iptables-1.20-no-conntrack", "ipvs"),
        ("ipvs-with-keepalived-1.20", "iptables"),
    ] {
        let dir = captured(name);
        let words = format!("rehearse --to {to} -o json --snapshot {}", dir.display());
        let ended = proxyshift.run(&words);
        check_rehearsal(name, &ended);
        let document = ended.json();
        assert_eq!(document["to"], to, "{name}");
        assert!(document["removed"].as_u64().is_some_and(|n| n > 20), "{name}: {document}");
        let unproven = document["not_proven"].to_string();
        assert!(unproven.contains("starts and serves"), "{name}: {unproven}");
        let settings = |p: &Value| p.as_str().is_some_and(|p| p.contains(&format!("+ mode: {to}")));
        assert!(document["proofs"].as_array().expect("a list").iter().any(settings), "{document}");
    }
}

#[test]
fn rehearsed_by_nobody() {
    if !in_namespace("rehearsed_by_nobody") {
        return;
    }
    // Ordinary users may not be able to read the folders of the program and of the captured nodes,
    // so both are copied.
    let open = tempfile::tempdir().expect("a folder");
    let open = open.path().display();
    common::run(&format!("cp {} {open}/proxyshift", env!("CARGO_BIN_EXE_proxyshift")));
    common::run(&format!("cp -r {} {open}/nodes", captured("").display()));
    common::run(&format!("chmod -R a+rX {open}"));
    for name in all_captured() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        command.arg(format!("{open}/proxyshift")).args(["rehearse", "-o", "json", "--snapshot"]);
        command.arg(format!("{open}/nodes/{name}")).current_dir("/");
        check_rehearsal(&name, &Ended::of(command));
    }
}
