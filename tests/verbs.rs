//! Every captured node through the command line: read, judged and rehearsed, as root and as nobody.

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::in_namespace;
use common::node::{Ended, Proxyshift, all_captured, captured};
use serde_json::Value;

/// The keys of a document, and of each object in one of its lists.
fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// Runs `words` twice with the store `store`; the document, which must be the same both times.
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
    let proxyshift = Proxyshift { store: tmp.path().join("store"), lock_wait: 0 };
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
            assert!(is_one_of(&object["action"], &["remove", "keep"]), "{name}: {object}");
            assert!(is_one_of(&object["kind"], &kinds), "{name}: {object}");
            for field in ["backend", "name", "text", "owner", "reason"] {
                assert!(object[field].is_string(), "{name}: {object}");
            }
            assert!(object["reason"].as_str().is_some_and(|r| r.len() > 10), "{name}: {object}");
        }
    }
}

#[test]
fn verified_and_shown() {
    let tmp = tempfile::tempdir().expect("a folder");
    let proxyshift = Proxyshift { store: tmp.path().join("store"), lock_wait: 0 };
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

/// What a rehearsal must say, whoever runs it.
fn check_rehearsal(name: &str, ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{name}: {}{}", ended.out, ended.err);
    let document = ended.json();
    let fields = ["schema", "version", "partial", "left_out", "removed", "proofs"];
    assert!(keys(&document).is_superset(&BTreeSet::from(fields)), "{name}: {document}");
    assert_eq!(document["schema"], "proxyshift.rehearsal", "{name}");
    let proofs: Vec<&str> =
        document["proofs"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    // With nothing to remove, there is nothing to clean and to roll back.
    let moments: &[&str] = match document["removed"].as_u64() {
        Some(0) => &["a snapshot of it restores"],
        _ => &["a snapshot of it restores", "after cleaning", "after rollback"],
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
fn rehearsed_by_nobody() {
    if !in_namespace("rehearsed_by_nobody") {
        return;
    }
    // Nobody can look into the folders that the program and the nodes may lie in.
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
