//! A clean-up and its rollback on nodes in a live kernel, in both backends.

mod common;

use common::in_namespace;
use common::node::{Node, Proxyshift, assert_same, captured};
use proxyshift::state::Backend;
use serde_json::Value;

const NODE: &str = "half-migrated-ipvs-1.20";

/// The objects that a plan removes, as texts without the backend.
fn removals(plan: &Value) -> Vec<String> {
    let objects = plan["objects"].as_array().expect("objects");
    let mut rows: Vec<String> = objects
        .iter()
        .filter(|o| o["action"] == "remove")
        .map(|o| format!("{} {} {} {}", o["kind"], o["table"], o["name"], o["text"]))
        .collect();
    rows.sort();
    rows
}

fn there_and_back(backend: Backend) {
    let node = Node::load(NODE, backend);
    let proxyshift = Proxyshift::new("store");
    let plan = proxyshift.expect(0, "plan -o json").json();
    let from_capture = format!("plan -o json --snapshot {}", captured(NODE).display());
    let expected = removals(&proxyshift.expect(0, &from_capture).json());
    assert_eq!(removals(&plan), expected, "the live node is not seen as its capture");
    assert!(!expected.is_empty());

    let before = node.rules();
    assert_eq!(proxyshift.expect(0, "cleanup --dry-run -o json").json(), plan);
    assert_same(&node.rules(), &before, "a dry run");
    let report = proxyshift.expect(0, "cleanup --yes -o json").json();
    assert_eq!(report["removed"].as_u64(), Some(expected.len() as u64));
    assert_eq!(report["others"], Value::Array(Vec::new()));
    let clean = node.rules();
    let gone: Vec<&str> = before.lines().filter(|l| !clean.contains(l)).collect();
    assert!(gone.len() > 100, "{gone:?}");
    assert!(clean.lines().all(|l| before.contains(l)), "something was added");
    assert!(clean.contains("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"));

    let again = proxyshift.expect(0, "cleanup --yes");
    assert!(again.out.contains("Nothing to do"), "{}", again.out);
    proxyshift.expect(0, "status");
    proxyshift.expect(0, "snapshot verify");

    let back = proxyshift.expect(0, "rollback -o json").json();
    assert_eq!(back["restored"], report["removed"]);
    assert_same(&node.rules(), &before, "rolled back");
    proxyshift.expect(0, "status");
    proxyshift.expect(3, "rollback").reports(&["no run of this node can be undone", "next:"]);
    proxyshift.expect(3, "resume").reports(&["no run is pending"]);
    proxyshift.expect(0, "cleanup --yes");
    assert_same(&node.rules(), &clean, "cleaned again");
}

#[test]
fn cleaned_and_rolled_back_in_nft() {
    if in_namespace("cleaned_and_rolled_back_in_nft") {
        there_and_back(Backend::Nft);
    }
}

#[test]
fn cleaned_and_rolled_back_in_legacy() {
    if in_namespace("cleaned_and_rolled_back_in_legacy") {
        there_and_back(Backend::Legacy);
    }
}
