//! The controllers of kube-proxy, with processes that are named kube-proxy: what a controller waits
//! for, and what it reports when a process does not start.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use common::{in_namespace, poll, run};
use proxyshift::apply::kube_proxy::Operate;
use proxyshift::error::Kind;
use proxyshift::node::processes::pids;
use proxyshift::state::argv::{Argv, Rerun};
use proxyshift::state::kube_proxy::ConfigSource;
use proxyshift::state::kube_proxy::controller::{Commands, StaticPod, SystemdUnit};

const WITHIN: Duration = Duration::from_secs(20);

/// Installs a program named kube-proxy, which only sleeps, and ends by itself after a while.
fn install() {
    fs::copy("/bin/sleep", "/run/kube-proxy").unwrap();
}

fn sh(script: &str) -> Argv {
    Argv::try_from(vec!["sh".to_owned(), "-c".into(), script.into()]).unwrap()
}

fn commands(start: &str, stop: &str, restart: Option<&str>) -> Commands {
    let (stop, start, restart) = (sh(stop), sh(start), restart.map(sh));
    Commands { stop, start, restart, again: Rerun::Ask, program: "kube-proxy".into() }
}

const START: &str = "/run/kube-proxy 100 & echo $! > /run/pid";
const STOP: &str = "kill $(cat /run/pid)";

#[test]
fn commands_stop_and_start_it() {
    if !in_namespace("commands_stop_and_start_it") {
        return;
    }
    install();
    let controller = commands(START, STOP, None);
    assert!(pids("kube-proxy").unwrap().is_empty(), "another namespace's is none of ours");
    let first = controller.start(WITHIN).unwrap();
    assert_eq!(pids("kube-proxy").unwrap(), [first]);
    assert_eq!(controller.start(WITHIN).unwrap(), first, "no second one is started");
    let second = controller.restart(WITHIN).unwrap();
    assert_ne!(first, second);
    assert_eq!(pids("kube-proxy").unwrap(), [second]);
    controller.stop(WITHIN).unwrap();
    assert!(pids("kube-proxy").unwrap().is_empty());
    controller.stop(WITHIN).expect("it is stopped already, whatever the command says");
    // A restart also starts a stopped kube-proxy, which the rollback of a failed migration needs.
    let third = controller.restart(WITHIN).unwrap();
    assert_eq!(pids("kube-proxy").unwrap(), [third]);
    let both = commands(START, STOP, Some(&format!("{STOP}; {START}")));
    assert_ne!(both.restart(WITHIN).unwrap(), third);
    both.stop(WITHIN).unwrap();
}

#[test]
fn a_clean_up_is_not_waited_for() {
    if !in_namespace("a_clean_up_is_not_waited_for") {
        return;
    }
    install();
    std::fs::create_dir("/run/other").unwrap();
    std::fs::copy("/bin/sh", "/run/other/kube-proxy").unwrap();
    let mut cleaning = std::process::Command::new("/run/other/kube-proxy")
        .args(["-c", "sleep 100; :", "kube-proxy", "--cleanup"])
        .spawn()
        .unwrap();
    let controller = commands(START, STOP, None);
    let first = controller.start(WITHIN).unwrap();
    assert_ne!(first, cleaning.id());
    assert_eq!(pids("kube-proxy").unwrap(), [first]);
    controller.stop(WITHIN).unwrap();
    assert!(cleaning.try_wait().unwrap().is_none(), "it still cleans up");
    cleaning.kill().unwrap();
    cleaning.wait().unwrap();
}

#[test]
fn a_timeout_names_what_it_waited_for() {
    if !in_namespace("a_timeout_names_what_it_waited_for") {
        return;
    }
    install();
    let short = Duration::from_millis(500);
    let never = commands("echo done", "true", None).start(short).unwrap_err();
    assert_eq!(never.kind, Kind::Command);
    assert_eq!(never.object, "command `sh -c echo done`");
    assert_eq!(never.cause, "no kube-proxy runs 500ms later");

    let stubborn = commands(START, "true", Some("true"));
    let pid = stubborn.start(WITHIN).unwrap();
    for error in [stubborn.stop(short).unwrap_err(), stubborn.restart(short).unwrap_err()] {
        assert_eq!(error.cause, format!("kube-proxy (pid {pid}) still runs 500ms later"));
    }
    let failing = commands(START, "echo no right >&2; exit 3", None).stop(WITHIN).unwrap_err();
    assert_eq!(failing.cause, "exit status: 3: no right");
    commands(START, STOP, None).stop(WITHIN).unwrap();

    let unit = SystemdUnit { unit: "kube-proxy-of-a-test.service".into() };
    let error = unit.restart(WITHIN).unwrap_err();
    assert_eq!(error.kind, Kind::Command);
    assert!(error.object.ends_with("restart -- kube-proxy-of-a-test.service"), "{error}");
    assert!(error.hint.unwrap().contains("journalctl -u kube-proxy-of-a-test"));
}

/// A stand-in for the kubelet, which watches one manifest.
fn kubelet() -> Child {
    let script = "pid=
        while sleep 0.05; do
            if [ -e /run/manifests/kp.yaml ]; then
                [ -n \"$pid\" ] || { /run/kube-proxy 100 & pid=$!; }
            elif [ -n \"$pid\" ]; then
                sleep 0.3; kill $pid; wait $pid; pid=
            fi
        done";
    Command::new("sh").args(["-c", script]).spawn().unwrap()
}

#[test]
fn a_static_pod_is_stopped_by_its_manifest() {
    if !in_namespace("a_static_pod_is_stopped_by_its_manifest") {
        return;
    }
    install();
    run("mkdir /run/manifests");
    let manifest = Path::new("/run/manifests/kp.yaml");
    let parked = Path::new("/run/manifests/.kp.yaml.stopped");
    fs::write(manifest, "kind: Pod\n").unwrap();
    let mut kubelet = kubelet();
    poll("the pod starts", || pids("kube-proxy").unwrap().len() == 1);
    let first = pids("kube-proxy").unwrap()[0];
    let controller = StaticPod { manifest: manifest.to_owned() };
    let source = ConfigSource::Manifest(manifest.to_owned());

    assert_eq!(controller.start(WITHIN).unwrap(), first);
    let second = controller.restart(WITHIN).unwrap();
    assert_ne!(first, second);
    assert_eq!(fs::read_to_string(manifest).unwrap(), "kind: Pod\n");
    for _ in 0..2 {
        controller.stop(WITHIN).unwrap();
        assert!(parked.exists() && !manifest.exists());
        assert!(pids("kube-proxy").unwrap().is_empty());
    }
    // If the program is killed while the manifest is parked (moved away to stop the pod), the next
    // run puts the manifest back, and the pod starts.
    let third = controller.start(WITHIN).unwrap();
    assert!(!parked.exists());
    assert_eq!(pids("kube-proxy").unwrap(), [third]);

    // The configuration of a stopped kube-proxy can be changed, even after a run that was killed
    // midway.
    let (old, new, newer) = (Some("kind: Pod\n"), Some("kind: Pod # 2\n"), "kind: Pod # 3\n");
    let fourth = controller.configure(&source, old, new, WITHIN).unwrap();
    assert_eq!(pids("kube-proxy").unwrap(), [fourth]);
    controller.stop(WITHIN).unwrap();
    let fifth = controller.configure(&source, new, Some(newer), WITHIN).unwrap();
    assert_eq!(pids("kube-proxy").unwrap(), [fifth]);
    assert_eq!(fs::read_to_string(manifest).unwrap(), newer);
    // A change that somebody else made to the manifest is kept, and the pod runs with it.
    let error = controller.configure(&source, old, new, WITHIN).unwrap_err();
    assert_eq!(error.kind, Kind::LostRace);
    assert_eq!(pids("kube-proxy").unwrap().len(), 1);
    assert_eq!(fs::read_to_string(manifest).unwrap(), newer);
    // At boot nothing waits for the kubelet, because it may not run yet.
    controller.stop(WITHIN).unwrap();
    controller.configure_stopped(&source, Some(newer), old).unwrap();
    assert!(!parked.exists());
    assert_eq!(fs::read_to_string(manifest).ok().as_deref(), old);

    let other = StaticPod { manifest: "/run/manifests/other.yaml".into() };
    assert_eq!(other.stop(WITHIN).unwrap_err().kind, Kind::NotFound);
    controller.stop(WITHIN).unwrap();
    kubelet.kill().unwrap();
    kubelet.wait().unwrap();
}
