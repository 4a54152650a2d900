//! The signs of life of owners on a living node: a capture takes every one of the catalogue.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use proptest::strategy::{Strategy, ValueTree};
use proptest::string::string_regex;
use proptest::test_runner::TestRunner;
use proxyshift::event::Silent;
use proxyshift::node::capture::{Extent, capture_reporting};
use proxyshift::node::tools::Tools;
use proxyshift::owners::catalogue::Catalogue;
use proxyshift::owners::liveness::{Liveness, liveness};
use proxyshift::owners::signs::ProcessSign;
use proxyshift::state::NodeState;
use serde_json::Value;

use crate::case::Case;
use crate::common::{in_machine, in_namespace, poll, program, run_with};

/// Runs a script of the shell.
fn run(script: &str) {
    run_with(script, &["sh", "-e"]);
}

/// Case a01 on a living node, whose capture has to take the file first.
#[test]
fn calico_between_two_starts_keeps_its_rules_on_a_living_node() {
    if !in_namespace("signs::calico_between_two_starts_keeps_its_rules_on_a_living_node") {
        return;
    }
    let [case, _] = Case::both("a01-calico-restarting");
    let rules = case.files()["iptables-nft.save"].to_string();
    fs::write("/run/rules", rules).expect("a file");
    private_folders();
    run("ip link set lo up; ip link add eni1f2e3d4c5b6 type veth peer name p1");
    run("iptables-nft-restore < /run/rules");
    let _kubelet = Running::start("kubelet", &[]);
    let plan = || {
        let mut command = Command::new(program());
        let output = command.args(["--store", "/run/store", "-o", "json", "plan"]).output();
        let output = output.expect("the program runs");
        let plan: Value = serde_json::from_slice(&output.stdout).expect("a plan");
        let objects = plan["objects"].as_array().expect("objects").clone();
        let actions = objects.iter().filter(|o| o["owner"] == "calico");
        actions.map(|o| o["action"].as_str().expect("text").to_owned()).collect::<BTreeSet<_>>()
    };
    let only = |action: &str| BTreeSet::from([action.to_owned()]);
    assert_eq!(plan(), only("remove"), "nothing of Calico is there");
    run("mkdir -p /var/lib/calico; echo node1 > /var/lib/calico/nodename");
    assert_eq!(plan(), only("suspect"));
    run("mkdir -p /var/log/pods/kube-system_calico-node-x7k2p_0b5c");
    assert_eq!(plan(), only("keep"));
}

/// As in a pod that shares the node's network and not its processes.
#[test]
fn nobody_is_gone_where_the_nodes_processes_are_not_seen() {
    if !in_machine("signs::nobody_is_gone_where_the_nodes_processes_are_not_seen") {
        return;
    }
    private_folders();
    let captured = || {
        let tools = Tools::find();
        let files = capture_reporting(&tools, Extent::Whole, &Silent).expect("a capture");
        NodeState::parse(files).expect("a state").processes
    };
    assert_eq!(captured(), None);
    let _other = Running::start("flanneld", &[]);
    assert_eq!(captured(), None, "a sidecar is no node");
    let _kubelet = Running::start("kubelet", &[]);
    assert_eq!(captured().map(|all| all.len()), Some(2), "this namespace is a node's");
}

/// A process of root with the name of a program, that ends when this value is dropped.
struct Running(Child);

impl Running {
    fn start(name: &str, args: &[&str]) -> Running {
        let program = format!("/run/bin/{name}");
        fs::create_dir_all("/run/bin").expect("a folder");
        fs::copy("/usr/bin/tail", &program).expect("a program");
        // tail takes what it does not know for files, if told so.
        let mut command = Command::new(&program);
        command.args(["-f", "/dev/null", "--"]).args(args).stdin(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn().expect("it starts");
        let exe = format!("/proc/{}/exe", child.id());
        poll(name, || fs::read_link(&exe).is_ok_and(|found| found == Path::new(&program)));
        Running(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The state that a capture of this node gives.
fn captured() -> NodeState {
    let tools = Tools::find();
    let files = capture_reporting(&tools, Extent::Owners, &Silent).expect("a capture");
    NodeState::parse(files).expect("a state")
}

fn program_of(sign: &ProcessSign) -> (String, Vec<String>) {
    let words = sign.words.first().map_or("", String::as_str);
    (sign.names[0].clone(), words.split_whitespace().map(str::to_owned).collect())
}

/// Every sign of the catalogue is made in turn, and taken by a capture of the living node.
#[test]
fn a_capture_takes_every_sign_of_life() {
    if !in_namespace("signs::a_capture_takes_every_sign_of_life") {
        return;
    }
    private_folders();
    run("ip link set lo up");
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let mut signs = 0;
    let mut seen = |name: &str, sign: &str, expected: fn(&Liveness) -> bool| {
        signs += 1;
        let component = catalogue.component(name).expect("a component");
        let found = liveness(component, &captured());
        assert!(expected(&found), "{name}: {sign}: {found:?}");
    };
    for component in catalogue.components() {
        let (name, alive) = (&component.name, &component.alive);
        for sign in &alive.processes {
            let (program, args) = program_of(sign);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let _running = Running::start(&program, &args);
            seen(name, &program, Liveness::is_alive);
        }
        for (paths, expected) in [
            (&alive.files, (|life| life.is_alive()) as fn(&Liveness) -> bool),
            (&alive.outlived_by.files, |life| matches!(life, Liveness::SeemsGone(_))),
        ] {
            for path in paths {
                let was_there = Path::new(path).exists();
                let _socket = make(path);
                seen(name, path, expected);
                if !was_there {
                    run(&format!("rm -rf {path}"));
                }
            }
        }
        for plugin in &alive.plugins {
            let text = format!(r#"{{"name": "n", "plugins": [{{"type": "{plugin}"}}]}}"#);
            fs::write("/etc/cni/net.d/10-x.conflist", text).expect("a file");
            seen(name, plugin, Liveness::is_alive);
            fs::remove_file("/etc/cni/net.d/10-x.conflist").expect("it is there");
        }
        for pattern in &alive.pods {
            let _kubelet = Running::start("kubelet", &[]);
            let pod = example(pattern);
            let folder = format!("/var/log/pods/kube-system_{pod}_0b5c");
            fs::create_dir_all(&folder).expect("a folder");
            seen(name, &pod, Liveness::is_alive);
            fs::remove_dir(&folder).expect("it is there");
        }
        for (patterns, expected) in [
            (&alive.links, (|life| life.is_alive()) as fn(&Liveness) -> bool),
            (&alive.outlived_by.links, |life| matches!(life, Liveness::SeemsGone(_))),
        ] {
            for pattern in patterns {
                let mut link = example(pattern);
                link.truncate(15);
                run(&format!("ip link add name '{link}' type bridge"));
                seen(name, &link, expected);
                run(&format!("ip link del '{link}'"));
            }
        }
    }
    assert!(signs > 80, "{signs}");
}

/// Replaces the folders that hold signs of life by empty ones, and /etc by a copy without them.
fn private_folders() {
    run("cp -a /etc /run/etc && mount --bind /run/etc /etc && rm -rf /etc/cni /etc/rancher
         mkdir -p /var/snap /etc/cni/net.d
         for folder in /var/lib /var/log /var/snap; do mount -t tmpfs none $folder; done");
}

/// Makes a socket, a folder or a file, as the path says. Returns what keeps it there.
fn make(path: &str) -> Option<UnixListener> {
    let path = Path::new(path);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    match path.extension().and_then(|e| e.to_str()) {
        Some("sock") => UnixListener::bind(path).ok(),
        None if path.file_name() != Some("nodename".as_ref()) => {
            fs::create_dir_all(path).expect("a folder");
            None
        }
        _ => {
            fs::write(path, "").expect("a file");
            None
        }
    }
}

/// A name that the pattern matches.
fn example(pattern: &str) -> String {
    let bare = pattern.trim_start_matches('^').trim_end_matches('$').replace(".*", "[a-z]{3}");
    let value = string_regex(&bare).expect("a pattern").new_tree(&mut TestRunner::deterministic());
    let name = value.expect("a value").current();
    if name.ends_with('-') { name + "abcde" } else { name }
}
