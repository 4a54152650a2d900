//! Output for programs: each call prints one JSON document whatever happens, and events as JSON
//! lines; all are valid by the published schemas. No question is asked when there is no terminal.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};

use common::in_namespace;
use common::node::{Ended, Node, Proxyshift, all_captured, captured};
use common::schemas::{Schemas, folder, published};
use proxyshift::state::Backend;
use serde_json::Value;

fn elsewhere() -> (tempfile::TempDir, Proxyshift) {
    let tmp = tempfile::tempdir().expect("a folder");
    let store = tmp.path().join("store");
    (tmp, Proxyshift::of_store(store))
}

#[test]
fn captures_are_reported_in_documents_with_schemas() {
    let (tmp, proxyshift) = elsewhere();
    let mut schemas = Schemas::load();
    for name in all_captured() {
        let dir = captured(&name).display().to_string();
        schemas.expect(&proxyshift, 0, &format!("plan --snapshot {dir}"));
        for to in ["ipvs", "nftables"] {
            schemas.expect(&proxyshift, 0, &format!("plan --to {to} --snapshot {dir}"));
        }
        schemas.expect(&proxyshift, 0, &format!("snapshot show {dir}"));
        schemas.expect(&proxyshift, 0, &format!("snapshot verify {dir}"));
        let (code, _) = schemas.run(&proxyshift, &format!("check --to ipvs --snapshot {dir}"));
        assert!([0, 3].contains(&code), "{name}: {code}");
    }
    // A node whose kube-proxy has flags instead of a configuration file.
    let flags = tmp.path().join("flags");
    fs::create_dir(&flags).expect("a folder");
    for entry in fs::read_dir(captured("canal-stale-flannel-1.20")).expect("a node") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            fs::copy(&path, flags.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    let processes = fs::read_to_string(flags.join("processes.json")).expect("processes");
    let config = "--config=/var/lib/kube-proxy/config.conf";
    assert!(processes.contains(config), "{processes}");
    let processes = processes.replace(config, "--proxy-mode=iptables");
    fs::write(flags.join("processes.json"), processes).expect("written");
    let (flags, file) = (flags.display(), tmp.path().join("config.yaml"));
    let words = format!("check --snapshot {flags} --write-config {}", file.display());
    schemas.expect(&proxyshift, 0, &words);
    schemas.expect(&proxyshift, 2, &words);
    let (one, other) = (captured(&all_captured()[0]), captured(&all_captured()[1]));
    let (one, other) = (one.display(), other.display());
    let differences = schemas.expect(&proxyshift, 0, &format!("snapshot diff {one} {other}"));
    assert!(!differences["differences"].as_array().expect("a list").is_empty());
    schemas.expect(&proxyshift, 0, "check --list");
    schemas.expect(&proxyshift, 0, "status");
    schemas.expect(&proxyshift, 3, "report");
    schemas.expect(&proxyshift, 3, "plan --snapshot nowhere");
    for printed in ["check", "checks", "diff", "plan", "write-config", "error", "status"] {
        assert!(schemas.printed.contains(printed), "{printed}: {:?}", schemas.printed);
    }
}

#[test]
fn wrong_arguments_are_reported_in_the_requested_form() {
    if !in_namespace("wrong_arguments_are_reported_in_the_requested_form") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    let mut schemas = Schemas::load();
    let wrong = [
        "",
        "frob",
        "chek",
        "migrate",
        "migrate --to nowhere",
        "snapshot",
        "snapshot prune --keep 0",
        "snapshot prune --keep few",
        "extend",
        "extend soon",
        "extend 90d",
        "check --only no.such-check",
        "check --to",
        "check --watch 1 --snapshot x",
        "check --fix --snapshot x",
        "guard",
        "guard --for 0.0.0.0/0",
        "cleanup --owner",
        "report one two",
        "completions",
        "completions tcsh",
        "completions bash",
        "cleanup --frob",
        "status --output yaml",
    ];
    for words in wrong {
        let error = schemas.expect(&proxyshift, 2, words);
        assert_eq!(error["kind"], "usage", "{words}: {error}");
        assert!(error["hint"].is_string() || words.contains("--keep 0"), "{words}: {error}");
        // Without `-o json`, the same error is text on standard error.
        let ended = Ended::of(proxyshift.command(words));
        let is_script = words == "completions bash";
        assert!(
            is_script || (ended.code == Some(2) && ended.out.is_empty()),
            "{words}: {}",
            ended.out
        );
    }
    // With only the progress as JSON, the error is one of the JSON lines on standard error.
    let ended = proxyshift.expect(2, "frob --progress json");
    let line: Value = serde_json::from_str(ended.err.trim()).expect(&ended.err);
    schemas.hold(&line, "frob --progress json");
    // Help and version are printed as text even with `-o json`, and are no errors.
    assert!(proxyshift.expect(0, "--help -o json").out.contains("Commands:"));
    assert!(proxyshift.expect(0, "--version -o json").out.starts_with("proxyshift "));
}

/// Each verb that would ask a question, and the options that it must name when it refuses to ask.
const WOULD_ASK: [(&str, &[&str]); 6] = [
    ("cleanup", &["--yes", "--dry-run"]),
    ("cleanup --confirm-within 5m", &["--yes", "--dry-run"]),
    ("migrate --to ipvs", &["--yes", "check --to ipvs"]),
    ("check --fix", &["--yes", "--fix"]),
    ("rollback --to latest", &["--yes", "proxyshift status"]),
    ("cluster prepare --to nftables", &["--yes", "--dry-run"]),
];

#[test]
fn nothing_is_asked_off_a_terminal_and_the_refusal_names_the_flag() {
    if !in_namespace("nothing_is_asked_off_a_terminal_and_the_refusal_names_the_flag") {
        return;
    }
    let _node = Node::load("canal-stale-flannel-1.20", Backend::Nft);
    let proxyshift = Proxyshift::new("store");
    for (words, flags) in WOULD_ASK {
        // Not even a yes in a pipe is taken as an answer.
        for yes in [false, true] {
            let mut command = proxyshift.command(words);
            if yes {
                let (read, mut write) = std::io::pipe().expect("a pipe");
                std::io::Write::write_all(&mut write, b"y\ny\ny\n").expect("written");
                command.stdin(Stdio::from(read));
            }
            let ended = Ended::of(command);
            assert_eq!(ended.code, Some(2), "{words}: {}", ended.err);
            ended.reports(flags);
        }
        // On a terminal nothing is asked either, if a program reads the output.
        for form in ["-o json", "--progress json"] {
            let own = env!("CARGO_BIN_EXE_proxyshift");
            let store = proxyshift.store.display();
            let line = format!("{own} --store {store} {form} {words}");
            let output = Command::new("script")
                .args(["-qec", &line, "/dev/null"])
                .stdin(Stdio::null())
                .output()
                .expect("script, of util-linux, runs");
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(2), "{form} {words}: {said}");
            assert!(said.contains("--yes"), "{form} {words}: {said}");
        }
    }
    // All other verbs work without a question, or report why they cannot.
    for words in ["resume", "confirm", "extend 1m", "rollback"] {
        proxyshift.expect(3, words);
    }
    for words in ["status", "plan", "snapshot create", "snapshot prune --keep 1", "rehearse"] {
        proxyshift.expect(0, words);
    }
    let import = proxyshift.run("snapshot import /dev/null");
    assert!(import.code != Some(0) && import.err.contains("/dev/null"), "{}", import.err);
    assert!(proxyshift.run("status -o json").json()["runs"].as_array().expect("a list").is_empty());
}

#[test]
fn every_verb_on_a_node_gives_one_document_that_its_schema_knows() {
    if !in_namespace("every_verb_on_a_node_gives_one_document_that_its_schema_knows") {
        return;
    }
    let _node = Node::load("canal-stale-flannel-1.20", Backend::Nft);
    let proxyshift = Proxyshift::new("store");
    let mut schemas = Schemas::load();
    let mut expect = |code, words: &str| schemas.expect(&proxyshift, code, words);
    expect(0, "plan");
    expect(0, "rehearse");
    expect(0, "cleanup --dry-run");
    for words in ["rollback", "resume", "confirm", "extend 1m"] {
        expect(3, words);
    }
    // The documents about snapshots.
    expect(0, "snapshot list");
    let taken = expect(0, "snapshot create");
    let id = taken["snapshot"].as_str().expect("an id").to_owned();
    for words in ["list", "show", "verify", "diff latest"] {
        expect(0, &format!("snapshot {words}"));
    }
    expect(0, "snapshot export latest /run/one.tar.gz");
    fs::rename(proxyshift.store.join("snapshots").join(&id), "/run/aside").expect("moved");
    expect(0, "snapshot import /run/one.tar.gz");
    expect(0, "snapshot prune --keep 1");
    // The documents about a clean-up that waits, is confirmed, and is undone afterwards.
    expect(0, "cleanup --yes --confirm-within 5m");
    expect(6, "status");
    assert_eq!(expect(0, "report")["state"], "unconfirmed");
    expect(6, "cleanup --yes");
    expect(6, "resume");
    expect(0, "extend 10m");
    expect(0, "confirm");
    assert_eq!(expect(0, "confirm")["changed"], false);
    let kept = expect(0, "report");
    assert!(kept["confirmed"].is_string() && kept["ended"].is_string(), "{kept:#}");
    assert_eq!(expect(0, "cleanup --yes")["run"], Value::Null);
    expect(0, "rollback");
    assert_eq!(expect(0, "report")["state"], "rolled-back");
    // The documents about remedies that are applied.
    let (_, fixed) = schemas.run(&proxyshift, "check --fix --yes");
    assert!(fixed["fixed"]["run"].is_string(), "{fixed:#}");
    let report = schemas.expect(&proxyshift, 0, "report");
    assert!(!report["findings"].as_array().expect("a list").is_empty(), "{report:#}");
    schemas.expect(&proxyshift, 0, "rollback");
    schemas.expect(&proxyshift, 0, "cleanup --yes");
    let before = schemas.expect(&proxyshift, 0, "report")["snapshot"].clone();
    let words = format!("rollback --yes --to {}", before.as_str().expect("an id"));
    assert_eq!(schemas.expect(&proxyshift, 0, &words)["snapshot"], before);
    // The documents about an interrupted run.
    proxyshift.killed("cleanup --yes", "after:1");
    schemas.expect(&proxyshift, 6, "status");
    assert_eq!(schemas.expect(&proxyshift, 0, "report")["state"], "running");
    let bundle = schemas.expect(&proxyshift, 0, "report --bundle /run/bundle.tar.gz");
    assert_eq!(bundle["missing"], serde_json::json!([]));
    schemas.expect(&proxyshift, 0, "resume");
    assert_eq!(schemas.expect(&proxyshift, 0, "report")["state"], "done");
    schemas.expect(&proxyshift, 0, "status");
    // The document of a guard, with an exception in front of the rules of a running Calico.
    schemas.expect(&proxyshift, 0, "guard --for 10.9.0.0/24 --once --contest");
    // This migration fails, because only the virtual machine of tests/vm has a kube-proxy that can
    // be migrated.
    schemas.run(&proxyshift, "migrate --to ipvs --yes");
    // The last two want a cluster: tests/cluster.
    let elsewhere =
        ["check", "checks", "migrate", "write-config", "cluster-prepare", "cluster-status"]
            .map(str::to_owned);
    let mut known: BTreeSet<String> = schemas.validators.keys().cloned().collect();
    known.retain(|name| !schemas.printed.contains(name) && !elsewhere.contains(name));
    assert!(known.is_empty(), "no document of these was printed: {known:?}");
}

#[test]
fn each_schema_is_in_the_list_and_says_what_each_field_is() {
    let page = fs::read_to_string(folder().with_file_name("json.md")).expect("docs/json.md");
    for (name, schema) in published() {
        assert!(page.contains(&format!("| [proxyshift.{name}](schemas/{name}.json) |")), "{name}");
        assert_eq!(schema["properties"]["schema"]["const"], format!("proxyshift.{name}"));
        let closed = schema["additionalProperties"] == false;
        assert!(closed && schema["required"].as_array().is_some_and(|r| r.len() >= 3), "{name}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| [proxyshift.")).count();
    assert_eq!(rows, published().len());
}
