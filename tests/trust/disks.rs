//! Disks that are full, and configuration that cannot be exchanged.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proxyshift::apply::kube_proxy::Operate;
use proxyshift::error::Kind;
use proxyshift::node::kube_proxy_controller::ReadController;
use proxyshift::state::Backend;
use proxyshift::state::argv::{Argv, Rerun};
use proxyshift::state::kube_proxy::ConfigSource;
use proxyshift::state::kube_proxy::controller::{Commands, StaticPod};

use crate::common::node::{Case, Proxyshift};
use crate::common::{in_machine, in_namespace, poll, run, run_with};
use crate::only_a_switch;

const WITHIN: Duration = Duration::from_secs(20);

const OLD: &str = "mode: iptables\n";
const NEW: &str = "mode: ipvs\n";

/// kube-proxy as the operator's commands start it: it only sleeps.
fn commands() -> Commands {
    fs::copy("/bin/sleep", "/run/kube-proxy").expect("a copy");
    let sh = |script: &str| {
        Argv::try_from(vec!["sh".to_owned(), "-c".into(), script.into()]).expect("a command")
    };
    Commands {
        stop: sh("kill $(cat /run/pid)"),
        start: sh("/run/kube-proxy 1000 & echo $! >/run/pid"),
        restart: None,
        again: Rerun::Ask,
        program: "kube-proxy".into(),
    }
}

/// A folder on a small file system of its own, which has a configuration of a certain owner.
fn small_disk() -> PathBuf {
    fs::create_dir_all("/run/small").expect("a folder");
    run("mount -t tmpfs -o size=64k,nr_inodes=8 small /run/small");
    let file = Path::new("/run/small/config.conf");
    fs::write(file, OLD).expect("written");
    std::os::unix::fs::chown(file, Some(12), Some(34)).expect("owned");
    fs::set_permissions(file, fs::Permissions::from_mode(0o640)).expect("mode");
    file.to_owned()
}

/// Takes the last block and the last inode.
fn fill(folder: &str) {
    let script = format!(
        "cd {folder}; head -c 64k /dev/zero >fill; for i in 1 2 3 4 5 6 7 8; do mkdir f$i; done; \
         ! touch one-more"
    );
    run_with(&script, &["sh"]);
}

fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry"));
    let names = entries.map(|entry| entry.file_name().into_string().expect("text"));
    names.filter(|name| !name.starts_with('f')).collect()
}

/// Fails unless the file is what [`small_disk`] made.
fn is_as_before(file: &Path) {
    assert_eq!(fs::read_to_string(file).expect("readable"), OLD);
    let meta = fs::metadata(file).expect("there");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (12, 34, 0o640));
}

#[test]
fn the_way_back_needs_no_room() {
    if !in_namespace("disks::the_way_back_needs_no_room") {
        return;
    }
    let (controller, file) = (commands(), small_disk());
    let source = ConfigSource::File(file.clone());
    let first = controller.start(WITHIN).expect("it starts");
    controller.can_configure(&source, "", "").expect("there is room");
    assert_eq!(names("/run/small"), ["config.conf"], "trying leaves nothing");
    is_as_before(&file);
    let second = controller.configure(&source, OLD, NEW, WITHIN).expect("there is room");
    assert_eq!(fs::read_to_string(&file).expect("readable"), NEW);
    fill("/run/small");
    let third = controller.configure(&source, NEW, OLD, WITHIN).expect("it needs no room");
    is_as_before(&file);
    assert_eq!(names("/run/small"), ["config.conf"], "nothing is kept");
    assert!(first != second && second != third);
    // Now there is no room for the way there, and that is found out.
    let error = controller.can_configure(&source, "", "").expect_err("the disk is full");
    assert_eq!(error.kind, Kind::Blocked);
    assert!(error.cause.contains("No space left"), "{error}");
    assert!(error.hint.expect("a next step").contains("/run/small"));
    is_as_before(&file);
    controller.stop(WITHIN).expect("it stops");
}

/// A run that is confirmed keeps nothing, nor does one that was killed at its end.
#[test]
fn what_is_kept_is_removed() {
    if !in_namespace("disks::what_is_kept_is_removed") {
        return;
    }
    let (controller, file) = (commands(), small_disk());
    let source = ConfigSource::File(file.clone());
    controller.configure(&source, OLD, NEW, WITHIN).expect("there is room");
    assert_eq!(names("/run/small").len(), 2);
    controller.forget(&source).expect("removed");
    assert_eq!(names("/run/small"), ["config.conf"]);
    controller.forget(&source).expect("nothing to remove");
    // Killed between the two names of the old file and the new one.
    fs::hard_link(&file, "/run/small/.config.conf.proxyshift-old").expect("linked");
    controller.configure(&source, NEW, OLD, WITHIN).expect("it goes on");
    controller.configure(&source, OLD, NEW, WITHIN).expect("and on");
    controller.can_configure(&source, "", "").expect("it is ours");
    assert_eq!(names("/run/small"), ["config.conf"]);
    controller.stop(WITHIN).expect("it stops");
}

/// The manifest is under another name while the pod is stopped.
#[test]
fn the_way_back_of_a_manifest_needs_no_room() {
    if !in_machine("disks::the_way_back_of_a_manifest_needs_no_room") {
        return;
    }
    let (commands, manifest) = (commands(), small_disk());
    let source = ConfigSource::Manifest(manifest.clone());
    let pod = StaticPod { manifest: manifest.clone() };
    // kubelet: it starts and stops what the manifest names.
    fs::write("/run/pod", "0::/kubepods.slice/kubepods-pod7.slice/a.scope\n").expect("written");
    let script = "while sleep 0.1; do
        if [ -e /run/small/config.conf ]; then
            [ \"$p\" ] || { /run/kube-proxy 1000 & p=$!; mount --bind /run/pod /proc/$p/cgroup; }
        elif [ \"$p\" ]; then kill $p; wait $p; p=; fi
    done";
    let _kubelet = crate::Stranger::root(script);
    poll("the pod starts", || !pod.processes().expect("processes").is_empty());
    pod.can_configure(&source, "", "").expect("there is room");
    pod.configure(&source, OLD, NEW, WITHIN).expect("there is room");
    fill("/run/small");
    pod.configure(&source, NEW, OLD, WITHIN).expect("it needs no room");
    is_as_before(&manifest);
    assert_eq!(names("/run/small"), ["config.conf"], "nothing is kept");
    // At the next boot, no kubelet runs, and the manifest is where it belongs.
    run_with("cd /run/small; rm -rf f*", &["sh"]);
    pod.configure(&source, OLD, NEW, WITHIN).expect("there is room");
    fill("/run/small");
    pod.configure_stopped(&source, NEW, OLD).expect("it needs no room");
    is_as_before(&manifest);
    assert_eq!(names("/run/small"), ["config.conf"], "nothing is kept");
    // A name that the stop needs.
    run_with("rm -rf /run/small/f*; mkdir /run/small/.config.conf.stopped", &["sh"]);
    let error = pod.can_configure(&source, "", "").expect_err("the name is taken");
    assert!(error.kind == Kind::Blocked && error.hint.is_some(), "{error}");
    assert!(error.object.ends_with(".stopped"), "{error}");
    drop(commands);
}

/// Each is found before anything is changed, with its name and a next step.
#[test]
fn what_cannot_be_exchanged_is_found_before() {
    if !in_namespace("disks::what_cannot_be_exchanged_is_found_before") {
        return;
    }
    let (controller, file) = (commands(), small_disk());
    let source = ConfigSource::File(file.clone());
    for (what, make, unmake, cause) in [
        ("a hard link", "ln config.conf other", "rm other", "2 names"),
        (
            "a bind mount",
            "mount --bind config.conf config.conf",
            "umount config.conf",
            "mounted there by itself",
        ),
        (
            "a read-only mount",
            "mount -o remount,ro /run/small",
            "mount -o remount,rw /run/small",
            "read-only",
        ),
        (
            "a read-only bind mount of the folder",
            "mount --bind /run/small /run/small; mount -o remount,bind,ro /run/small",
            "umount /run/small",
            "read-only",
        ),
        (
            "a name that is taken",
            "mkdir .config.conf.proxyshift",
            "rmdir .config.conf.proxyshift",
            "something else has the name",
        ),
        (
            "the other name that is taken",
            "mkdir .config.conf.proxyshift-old",
            "rmdir .config.conf.proxyshift-old",
            "something else has the name",
        ),
        ("the flag immutable", "chattr +i config.conf", "chattr -i config.conf", "immutable"),
        ("the flag of the folder", "chattr +i .", "chattr -i .", "immutable"),
        ("append-only", "chattr +a config.conf", "chattr -a config.conf", "append-only"),
    ] {
        let run_there = |script: &str| {
            // The folder may be mounted over, so it is entered anew.
            run_with(&format!("cd /run/small; {script}"), &["sh", "-e"])
        };
        if make.starts_with("chattr") && !flags_are_known() {
            continue;
        }
        run_there(make);
        let before = names("/run/small");
        let error = controller.can_configure(&source, "", "").expect_err(what);
        assert_eq!(error.kind.exit_code(), 3, "{what}: {error}");
        assert_eq!(error.object, file.display().to_string(), "{what}");
        assert!(error.cause.contains(cause), "{what}: {error}");
        assert!(error.hint.is_some_and(|hint| !hint.is_empty()), "{what}");
        assert_eq!(names("/run/small"), before, "{what}: trying leaves nothing");
        run_with(&format!("cd /run/small; {unmake} || {{ cd /; {unmake}; }}"), &["sh"]);
        is_as_before(&file);
        controller.can_configure(&source, "", "").unwrap_or_else(|e| panic!("after {what}: {e}"));
    }
}

/// A migration whose kube-proxy is never to be stopped.
fn playbook() -> String {
    only_a_switch("touch, /run/stopped", "touch, /run/started", "3s")
}

/// Before, this was found at the switch: exit 4, and kube-proxy was restarted to no end.
#[test]
fn a_migration_stops_before_it_begins() {
    if !in_namespace("disks::a_migration_stops_before_it_begins") {
        return;
    }
    let case = Case::of("docker-iptables-1.30", Backend::Nft);
    let proxyshift: &Proxyshift = &case.proxyshift;
    fs::write("/run/playbook.yaml", playbook()).expect("written");
    let migrate = "migrate --to ipvs --yes --no-confirm --playbook /run/playbook.yaml";
    let config = "/var/lib/kube-proxy/config.conf";
    fs::hard_link(config, "/var/lib/kube-proxy/other").expect("linked");
    proxyshift.expect(3, migrate).reports(&[config, "2 names", "symbolic links"]);
    assert!(!Path::new("/run/stopped").exists() && !Path::new("/run/started").exists());
    proxyshift.expect(0, "status");
    let kept = fs::read_dir("/var/lib/kube-proxy").expect("a folder").count();
    assert_eq!(kept, 2, "trying leaves nothing");
}

/// What comes up only at the switch is undone without a restart of what was never changed.
#[test]
fn what_was_never_switched_is_not_restarted() {
    if !in_namespace("disks::what_was_never_switched_is_not_restarted") {
        return;
    }
    let case = Case::of("docker-iptables-1.30", Backend::Nft);
    let hook = "hooks: {before_switch: [{run: [ln, /var/lib/kube-proxy/config.conf, /var/lib/kube-proxy/other], timeout: 10s, again: safe}]}\n";
    fs::write("/run/playbook.yaml", playbook() + hook).expect("written");
    let migrate = "migrate --to ipvs --yes --no-confirm --playbook /run/playbook.yaml";
    let ended = case.proxyshift.run(migrate);
    ended.reports(&["2 names"]);
    assert!(!Path::new("/run/stopped").exists() && !Path::new("/run/started").exists());
    assert_eq!(ended.code, Some(4), "{}{}", ended.out, ended.err);
}

/// Whether the kernel's tmpfs has the flags of chattr: since Linux 6.0.
fn flags_are_known() -> bool {
    let script = "touch /run/small/x && chattr +i /run/small/x; r=$?; chattr -i /run/small/x; \
                  rm -f /run/small/x; echo $r";
    run_with(script, &["sh"]).trim() == "0"
}
