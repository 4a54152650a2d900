//! The controllers of kube-proxy, with processes that are named kube-proxy: what a controller waits
//! for, and what it reports when a process does not start.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use common::{in_machine, in_namespace, poll, run, run_with};
use proxyshift::apply::kube_proxy::Operate;
use proxyshift::error::Kind;
use proxyshift::node::kube_proxy_controller::ReadController;
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
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
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
    let still = format!("kube-proxy (pid {pid}) still runs 500ms later");
    assert_eq!(stubborn.stop(short).unwrap_err().cause, still);
    let error = stubborn.restart(short).unwrap_err();
    assert_eq!(error.cause, format!("{still}; it runs (pid {pid})"));
    let failing = commands(START, "echo no right >&2; exit 3", None).stop(WITHIN).unwrap_err();
    assert_eq!(failing.cause, "exit status: 3: no right");
    commands(START, STOP, None).stop(WITHIN).unwrap();

    let unit = SystemdUnit { unit: "kube-proxy-of-a-test.service".into() };
    let error = unit.restart(WITHIN).unwrap_err();
    assert_eq!(error.kind, Kind::Command);
    assert!(error.object.ends_with("restart -- kube-proxy-of-a-test.service"), "{error}");
    assert!(error.hint.unwrap().contains("journalctl -u kube-proxy-of-a-test"));
}

/// A stand-in for the kubelet, which watches one manifest. No cgroups can be made on every machine,
/// so a text is mounted over that of the process.
fn kubelet() -> Child {
    fs::write("/run/pod", "0::/kubepods.slice/kubepods-pod7.slice/a.scope\n").unwrap();
    let script = "pid=
        while sleep 0.05; do
            if [ -e /run/manifests/kp.yaml ]; then
                [ -n \"$pid\" ] || { /run/kube-proxy 100 & pid=$!
                    mount --bind /run/pod /proc/$pid/cgroup; }
            elif [ -n \"$pid\" ]; then
                sleep 0.3; kill $pid; wait $pid; pid=
            fi
        done";
    Command::new("sh").args(["-c", script]).spawn().unwrap()
}

#[test]
fn a_static_pod_is_stopped_by_its_manifest() {
    if !in_machine("a_static_pod_is_stopped_by_its_manifest") {
        return;
    }
    install();
    run("mkdir /run/manifests");
    let manifest = Path::new("/run/manifests/kp.yaml");
    let parked = Path::new("/run/manifests/.kp.yaml.stopped");
    fs::write(manifest, "kind: Pod\n").unwrap();
    let mut kubelet = kubelet();
    let controller = StaticPod { manifest: manifest.to_owned() };
    poll("the pod starts", || controller.processes().unwrap().len() == 1);
    let first = pids("kube-proxy").unwrap()[0];
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
    let (old, new, newer) = ("kind: Pod\n", "kind: Pod # 2\n", "kind: Pod # 3\n");
    let fourth = controller.configure(&source, old, new, WITHIN).unwrap();
    assert_eq!(pids("kube-proxy").unwrap(), [fourth]);
    controller.stop(WITHIN).unwrap();
    let fifth = controller.configure(&source, new, newer, WITHIN).unwrap();
    assert_eq!(pids("kube-proxy").unwrap(), [fifth]);
    assert_eq!(fs::read_to_string(manifest).unwrap(), newer);
    // A change that somebody else made to the manifest is kept, and the pod runs with it.
    let error = controller.configure(&source, old, new, WITHIN).unwrap_err();
    assert_eq!(error.kind, Kind::LostRace);
    assert_eq!(pids("kube-proxy").unwrap().len(), 1);
    assert_eq!(fs::read_to_string(manifest).unwrap(), newer);
    // At boot nothing waits for the kubelet, because it may not run yet.
    controller.stop(WITHIN).unwrap();
    controller.configure_stopped(&source, newer, old).unwrap();
    assert!(!parked.exists());
    assert_eq!(fs::read_to_string(manifest).unwrap(), old);

    let other = StaticPod { manifest: "/run/manifests/other.yaml".into() };
    assert_eq!(other.stop(WITHIN).unwrap_err().kind, Kind::NotFound);
    controller.stop(WITHIN).unwrap();
    poll("a pod that was just starting ends too", || pids("kube-proxy").unwrap().is_empty());
    kubelet.kill().unwrap();
    kubelet.wait().unwrap();
}

/// A shell command that starts another program named kube-proxy, which never ends by itself, as the
/// user with this id, and writes its PID to the file.
fn other(user: u32, file: &str) -> String {
    let run =
        if user == 0 { String::new() } else { format!("setpriv --reuid {user} --clear-groups ") };
    format!(
        "{run}/run/kube-proxy 101 >/dev/null 2>&1 & echo $! > {file}; \
         until grep -q kube-proxy /proc/$(cat {file})/comm; do sleep 0.01; done"
    )
}

fn pid_in(file: &str) -> u32 {
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

/// A process of any user that takes kube-proxy's name while kube-proxy is stopped is neither waited
/// for nor taken for the one that was started.
#[test]
fn another_that_appears_during_the_stop_does_not_count() {
    if !in_machine("another_that_appears_during_the_stop_does_not_count") {
        return;
    }
    install();
    for (number, user) in [0, 1000].into_iter().enumerate() {
        let file = format!("/run/other{number}");
        // It appears before kube-proxy is asked to end, after it has ended, and within a restart.
        for stop in
            [format!("{}; {STOP}", other(user, &file)), format!("{STOP}; {}", other(user, &file))]
        {
            let controller = commands(START, STOP, None);
            let first = controller.restart(WITHIN).unwrap();
            let second = commands(START, &stop, None).restart(WITHIN).unwrap();
            assert_eq!(second, pid_in("/run/pid"), "the new one is what the command started");
            assert!(second != first && second != pid_in(&file));
            run(&format!("kill {}", pid_in(&file)));
            poll("the other ends", || pids("kube-proxy").unwrap() == [second]);
            controller.stop(WITHIN).unwrap();
        }
    }
}

/// kube-proxy is never left stopped because its stop went wrong, and the error says what runs.
#[test]
fn a_stop_that_fails_does_not_prevent_the_start() {
    if !in_machine("a_stop_that_fails_does_not_prevent_the_start") {
        return;
    }
    install();
    let short = Duration::from_secs(2);
    let pid = || pid_in("/run/pid");
    let controller = commands(START, STOP, None);
    let config = ConfigSource::File("/run/config".into());
    let is_running = |restart: &str, error: &proxyshift::error::Error, parts: &[&str]| {
        assert_eq!(error.kind, Kind::Command, "{restart}");
        assert_eq!(pids("kube-proxy").unwrap(), [pid()], "{restart}: {error}");
        for part in parts {
            assert!(error.cause.contains(part), "{restart}: {part:?} is not in: {error}");
        }
    };
    // It outlives the group of a command that is killed.
    fs::write("/run/end", "sleep $1; kill $(cat /run/pid)").unwrap();
    let ends_after = |seconds| format!("setsid sh /run/end {seconds} >/dev/null 2>&1 &");
    for (stop, parts) in [
        // It reports a failure, and kube-proxy ends only then.
        (format!("{} echo no right >&2; exit 1", ends_after("0.5")), &["no right", "and runs"]),
        // It hangs until its deadline, and kube-proxy ends only then.
        (format!("{} sleep 100", ends_after("3")), &["did not finish within", "and runs"]),
        // kube-proxy takes longer to end than it has.
        (ends_after("3"), &["still runs 2s later", "and runs"]),
    ] {
        let first = controller.restart(WITHIN).unwrap();
        fs::write("/run/config", "old").unwrap();
        let failing = commands(START, &stop, None);
        let error = failing.configure(&config, "old", "new", short).unwrap_err();
        is_running(&stop, &error, parts);
        assert_ne!(pid(), first, "{stop}");
        assert_eq!(fs::read_to_string("/run/config").unwrap(), "new");
    }
    // A stop that fails and leaves kube-proxy as it was.
    let first = controller.restart(WITHIN).unwrap();
    let error = commands(START, "echo no right >&2; exit 1", None).restart(short).unwrap_err();
    is_running("nothing", &error, &["no right", &format!("it runs (pid {first})")]);
    assert_eq!(pid(), first, "no second one is started beside it");
    // A restart that fails after its first half, in both ways.
    for restart in [format!("{STOP}; exit 1"), format!("{STOP}; sleep 100"), STOP.to_owned()] {
        let first = controller.restart(WITHIN).unwrap();
        let error = commands(START, STOP, Some(&restart)).restart(short).unwrap_err();
        is_running(&restart, &error, &["it was started all the same"]);
        assert_ne!(pid(), first, "{restart}");
    }
    // A start that fails too.
    let neither = commands("exit 7", "exit 1", Some(&format!("{STOP}; exit 6")));
    let error = neither.restart(short).unwrap_err();
    assert!(error.cause.contains("exit status: 6; it does not run: exit status: 7"), "{error}");
    assert!(pids("kube-proxy").unwrap().is_empty());
}

/// A kube-proxy of another unit, or of no unit, is not systemd's to stop, and may run for ever.
#[test]
fn a_unit_waits_for_its_own_processes() {
    if !in_machine("a_unit_waits_for_its_own_processes") {
        return;
    }
    install();
    // A stand-in for systemd, which puts its process into the unit's cgroup.
    let systemctl = "#!/bin/sh
        case $1 in restart) set -- both;; esac
        case $1 in stop|both)
            [ -e /run/refused ] && { echo refused >&2; exit 1; }
            [ -e /run/pid ] && kill $(cat /run/pid); rm -f /run/pid;; esac
        case $1 in start|both)
            [ -e /run/pid ] && exit 0
            /run/kube-proxy 100 >/dev/null 2>&1 & echo $! > /run/pid
            mount --bind /run/unit /proc/$!/cgroup;; esac\n";
    fs::write("/run/systemctl", systemctl).unwrap();
    fs::write("/run/unit", "0::/system.slice/kp.service\n").unwrap();
    run("chmod 755 /run/systemctl");
    run(&format!("mount --bind /run/systemctl {}", run("which systemctl").trim()));
    for (number, cgroup) in ["0::/system.slice/kp2.service\n", "0::/\n", "0::/kubepods/pod7/9\n"]
        .into_iter()
        .enumerate()
    {
        let unit = SystemdUnit { unit: "kp.service".into() };
        fs::write("/run/cgroup", cgroup).unwrap();
        let file = format!("/run/other{number}");
        run_with(&other(0, &file), &["sh"]);
        let other = pid_in(&file);
        run(&format!("mount --bind /run/cgroup /proc/{other}/cgroup"));
        let pid = || pid_in("/run/pid");
        assert_eq!(unit.start(WITHIN).unwrap(), pid(), "{cgroup}: the other is none of the unit");
        let first = pid();
        assert_eq!(unit.restart(WITHIN).unwrap(), pid(), "{cgroup}");
        assert_ne!(pid(), first);
        let second = pid();
        fs::write("/run/refused", "").unwrap();
        let error = unit.restart(Duration::from_secs(1)).unwrap_err();
        let words = ["refused", &format!("it runs (pid {second})")];
        assert!(words.iter().all(|word| error.cause.contains(word)), "{cgroup}: {error}");
        fs::remove_file("/run/refused").unwrap();
        unit.stop(WITHIN).unwrap();
        assert_eq!(pids("kube-proxy").unwrap(), [other], "{cgroup}");
        run(&format!("kill {other}"));
        poll("the other ends", || pids("kube-proxy").unwrap().is_empty());
    }
}

/// A kube-proxy outside of pods is not the kubelet's. If the kubelet does not end the pod in time,
/// the manifest is changed and put back all the same.
#[test]
fn a_static_pod_waits_for_pods() {
    if !in_machine("a_static_pod_waits_for_pods") {
        return;
    }
    install();
    run("mkdir /run/manifests");
    let manifest = Path::new("/run/manifests/kp.yaml");
    fs::write(manifest, "kind: Pod\n").unwrap();
    run_with(&other(0, "/run/other"), &["sh"]);
    let other = pid_in("/run/other");
    let controller = StaticPod { manifest: manifest.to_owned() };
    let source = ConfigSource::Manifest(manifest.to_owned());
    let mut kubelet = kubelet();
    let own = || controller.processes().unwrap().first().map(|process| process.pid);
    poll("the pod starts", || own().is_some());
    let first = own().unwrap();
    let (old, new) = ("kind: Pod\n", "kind: Pod # 2\n");
    let second = controller.configure(&source, old, new, WITHIN).unwrap();
    assert!(![first, other].contains(&second));

    let stop = |signal: &str| run(&format!("kill -{signal} {}", kubelet.id()));
    stop("STOP");
    let short = Duration::from_millis(300);
    let error = controller.configure(&source, new, old, short).unwrap_err();
    let words = ["still runs 300ms later", &format!("it runs (pid {second})")];
    assert!(words.iter().all(|word| error.cause.contains(word)), "{error}");
    assert_eq!(fs::read_to_string(manifest).unwrap(), old);
    stop("CONT");
    controller.stop(WITHIN).unwrap();
    assert_eq!(pids("kube-proxy").unwrap(), [other]);
    kubelet.kill().unwrap();
    kubelet.wait().unwrap();
    run(&format!("kill {other}"));
}
