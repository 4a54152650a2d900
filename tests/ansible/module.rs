//! The module started in the way in which Ansible starts it: as a copy with another name, with one
//! argument.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::node::{Ended, Node, Proxyshift, assert_same, captured};
use crate::common::{in_namespace, poll};
use proxyshift::state::Backend;

/// A captured node in this namespace, and the folder to which Ansible would copy the module.
struct Case {
    node: Node,
    before: String,
    store: PathBuf,
}

const STALE: &str = "-A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.66.0/24 -j RETURN";

impl Case {
    fn new(name: &str) -> Case {
        // Without this setting, the kernel adds IPv6 addresses and routes to new links, seconds
        // later.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1");
        let node = Node::load(name, Backend::Nft);
        Case { before: node.rules(), node, store: "/run/store".into() }
    }

    /// Runs a task, and removes the task's folder at once. Returns the result, which must fit the
    /// exit code.
    fn task(&self, state: &str, more: Value) -> Value {
        let mut options = json!({
            "state": state, "store": self.store, "lock_wait": 30, "_ansible_check_mode": false,
            "_ansible_diff": false, "_ansible_no_log": false, "_ansible_verbosity": 0,
        });
        for (key, value) in more.as_object().expect("options") {
            options[key] = value.clone();
        }
        let folder = tempfile::tempdir_in("/run").expect("a folder");
        let ended = module(folder.path(), &options);
        assert_eq!(ended.err, "", "{options}: {}", ended.out);
        let answer = ended.json();
        let code = ended.code.expect("no signal");
        assert_eq!(answer["code"], code, "{options}: {answer}");
        assert_eq!(answer["failed"] == true, code != 0, "{options}: {answer}");
        assert!(answer["msg"].as_str().is_some_and(|m| !m.is_empty()), "{options}: {answer}");
        assert!(answer["findings"].is_array(), "{options}: {answer}");
        assert!(answer["ansible_facts"]["proxyshift"]["version"].is_string(), "{answer}");
        answer
    }

    /// As [`Self::task`], but returns only whether the task changed the node, or would change it.
    fn changes(&self, state: &str, more: Value) -> bool {
        let answer = self.task(state, more);
        assert_eq!(answer["code"], 0, "{answer}");
        answer["changed"].as_bool().expect("a boolean")
    }

    fn is_as_before(&self, what: &str) {
        assert_same(&self.node.rules(), &self.before, what);
    }
}

fn module(folder: &Path, options: &Value) -> Ended {
    let (program, args) = (folder.join("AnsiballZ_proxyshift"), folder.join("args"));
    fs::copy(env!("CARGO_BIN_EXE_proxyshift"), &program).expect("a copy");
    fs::write(&args, options.to_string()).expect("a file");
    let mut command = Command::new(program);
    command.arg(args).current_dir("/");
    Ended::of(command)
}

#[test]
fn only_a_file_of_ansibles_is_a_task() {
    let folder = tempfile::tempdir().expect("a folder");
    let ended = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proxyshift"));
        command.args(args).current_dir(folder.path());
        Ended::of(command)
    };
    let task = r#"{"state": "nonsense", "_ansible_diff": false}"#;
    fs::write(folder.path().join("task"), task).expect("a file");
    assert_eq!(ended(&["task"]).json()["failed"], true);
    assert!(ended(&["task", "task"]).err.contains("unrecognized subcommand"));
    // The argument `status` is taken as the verb, although a file with this name holds a task.
    fs::write(folder.path().join("status"), task).expect("a file");
    assert!(ended(&["status", "--help"]).out.contains("pending"));
    assert!(ended(&["help"]).out.contains("Commands:"));
    for other in [r#"{"state": "checked"}"#, r#"["_ansible_diff"]"#, "_ansible_diff", ""] {
        fs::write(folder.path().join("task"), other).expect("a file");
        let ended = ended(&["task"]);
        assert_eq!((ended.code, ended.out.as_str()), (Some(2), ""), "{other}");
    }
    assert!(ended(&["no-such-file"]).err.contains("unrecognized subcommand"));
}

#[test]
fn a_wrong_option_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases = [
        (json!({"state": "cleaned", "forks": 3}), "forks"),
        (json!({"state": "present"}), "present"),
        (json!({"state": "confirmed", "owners": ["docker"]}), "owners"),
    ];
    for (mut options, named) in cases {
        options["_ansible_check_mode"] = true.into();
        let ended = module(folder.path(), &options);
        let answer = ended.json();
        assert_eq!((ended.code, &answer["kind"]), (Some(2), &"usage".into()), "{answer}");
        assert!(answer["msg"].as_str().is_some_and(|m| m.contains(named)), "{answer}");
    }
}

/// Some firewall modules of Ansible changed rules under check mode in the past.
#[test]
fn check_mode_predicts_and_changes_nothing() {
    if !in_namespace("module::check_mode_predicts_and_changes_nothing") {
        return;
    }
    let case = Case::new("canal-stale-flannel-1.20");
    let check_mode = json!({"_ansible_check_mode": true, "_ansible_diff": true});
    for (state, more) in [("snapshotted", json!({})), ("cleaned", json!({"confirm_within": "9m"}))]
    {
        let mut options = check_mode.clone();
        options.as_object_mut().expect("options").extend(more.as_object().expect("more").clone());
        assert_eq!(case.task(state, options)["changed"], true, "{state}");
    }
    assert!(!case.changes("rolled_back", check_mode.clone()));
    assert_eq!(case.task("confirmed", check_mode.clone())["code"], 3);
    case.is_as_before("check mode");
    assert!(!case.store.exists(), "check mode made a store");
    assert!(!Path::new("/run/proxyshift").exists(), "check mode made a lock");

    let preview = case.task("cleaned", check_mode.clone())["diff"].clone();
    let done = case.task("cleaned", json!({"_ansible_diff": true}));
    assert_eq!(preview["before"], format!("iptables-nft nat {STALE}\n"), "{preview}");
    assert_eq!((&preview, &true.into()), (&done["diff"], &done["changed"]), "preview and result");
    let back = case.task("rolled_back", check_mode);
    assert_eq!((&back["diff"]["after"], &back["changed"]), (&preview["before"], &true.into()));
    let undone = case.task("rolled_back", json!({"_ansible_diff": true}));
    assert_eq!((&undone["diff"], &undone["changed"]), (&back["diff"], &true.into()));
    case.is_as_before("rolled back");
}

/// Some firewall modules of Ansible reported `changed: false` whatever they did, or `changed: true`
/// although they did nothing.
#[test]
fn changed_is_reported_when_the_node_changed_and_only_then() {
    if !in_namespace("module::changed_is_reported_when_the_node_changed_and_only_then") {
        return;
    }
    let case = Case::new("canal-stale-flannel-1.20");
    let none = || json!({});
    let checked = case.task("checked", json!({"snapshot": captured("docker-iptables-1.30")}));
    assert_eq!(checked["changed"], false, "{checked}");
    assert!(case.changes("snapshotted", none()));
    assert!(!case.changes("snapshotted", none()));
    assert!(case.changes("cleaned", none()));
    assert!(!case.node.rules().contains(STALE));
    assert!(!case.changes("cleaned", none()));
    assert!(case.changes("snapshotted", none()), "the node is another since");
    assert!(case.changes("rolled_back", none()));
    assert!(!case.changes("rolled_back", none()));
    case.is_as_before("rolled back");

    let wait = || json!({"confirm_within": "9m"});
    assert!(case.changes("cleaned", wait()));
    let again = case.task("cleaned", wait());
    assert_eq!(again["changed"], false, "its own run waits: {again}");
    assert_eq!(again["ansible_facts"]["proxyshift"]["pending"]["state"], "unconfirmed");
    assert_eq!(case.task("cleaned", json!({"owners": ["docker"]}))["code"], 6, "another waits");
    assert!(case.changes("confirmed", none()));
    assert!(!case.changes("confirmed", none()));
    assert!(case.changes("rolled_back", none()));
    case.is_as_before("rolled back after it was confirmed");

    let snapshot =
        case.task("snapshotted", none())["ansible_facts"]["proxyshift"]["snapshot"].clone();
    let to = || json!({"snapshot": snapshot});
    assert!(!case.changes("rolled_back", to()), "nothing was done since");
    assert!(case.changes("cleaned", none()));
    let preview =
        case.task("rolled_back", json!({"snapshot": snapshot, "_ansible_check_mode": true}));
    assert_eq!(preview["changed"], true, "{preview}");
    assert!(!case.node.rules().contains(STALE), "check mode");
    assert!(case.changes("rolled_back", to()));
    assert!(!case.changes("rolled_back", to()));
    case.is_as_before("back at the snapshot");
}

#[test]
fn the_exception_is_set_right_once() {
    if !in_namespace("module::the_exception_is_set_right_once") {
        return;
    }
    let case = Case::new("docker-iptables-1.30");
    let of = |network: &str| json!({"for": network, "_ansible_diff": true});
    let check_mode =
        json!({"for": "10.9.0.0/24", "_ansible_check_mode": true, "_ansible_diff": true});
    let preview = case.task("guarded", check_mode);
    assert_eq!(preview["changed"], true, "{preview}");
    case.is_as_before("check mode");
    let done = case.task("guarded", of("10.9.0.0/24"));
    assert_eq!((&done["changed"], &done["diff"]), (&true.into(), &preview["diff"]));
    assert!(done["diff"]["after"].as_str().is_some_and(|d| d.contains("-s 10.9.0.0/24")), "{done}");
    assert!(!case.changes("guarded", of("10.9.0.0/24")));
    assert!(case.changes("guarded", of("10.9.1.0/24")));
    assert!(!case.node.rules().contains("10.9.0.0/24"), "the earlier exception is still there");
}

#[test]
fn what_is_pending_needs_nothing_of_ansibles_folder() {
    if !in_namespace("module::what_is_pending_needs_nothing_of_ansibles_folder") {
        return;
    }
    let case = Case::new("canal-stale-flannel-1.20");
    let cleaned = case.task("cleaned", json!({"confirm_within": "5s"}));
    let run = case.store.join("runs").join(cleaned["run"].as_str().expect("a run"));
    let status: Value =
        serde_json::from_slice(&fs::read(run.join("run.json")).expect("run.json")).expect("JSON");
    let pid = status["pending"]["watchdog"]["pid"].as_u64().expect("one stands by");
    let program = fs::read_link(format!("/proc/{pid}/exe")).expect("it lives");
    assert!(program.to_string_lossy().starts_with("/memfd:"), "{program:?}");
    let program = run.join("proxyshift");
    assert!(program.exists(), "a watchdog that is started anew runs the copy");
    let proxyshift = Proxyshift { lock_wait: 30, ..Proxyshift::of_store(case.store.clone()) };
    poll("nobody confirmed", || proxyshift.run("status").code == Some(0));
    case.is_as_before("nobody confirmed");
    poll("the copy goes when nothing is pending", || !program.exists());
    let late = case.task("confirmed", json!({}));
    assert_eq!((&late["code"], &late["changed"]), (&3.into(), &false.into()));
    assert!(late["msg"].as_str().is_some_and(|m| m.contains("was rolled back")), "{late}");
    assert!(!case.changes("rolled_back", json!({})), "it is undone already");
}
