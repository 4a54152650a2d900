//! Refusals: each gives the reason and the next step, exits with code 3, and changes no rule.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::node::{Ended, Node, Proxyshift, assert_same, captured};
use common::{in_namespace, run, run_with};
use proxyshift::state::Backend;
use rustix::fs::{FlockOperation, flock};

const NODE: &str = "half-migrated-ipvs-1.20";

/// A node after a clean-up, and the snapshot to which it can roll back.
struct Cleaned {
    node: Node,
    proxyshift: Proxyshift,
    snapshot: PathBuf,
    rules: String,
}

impl Cleaned {
    fn new() -> Cleaned {
        let node = Node::load(NODE, Backend::Nft);
        let proxyshift = Proxyshift::new("store");
        proxyshift.expect(0, "cleanup --yes");
        let mut dirs = fs::read_dir(proxyshift.store.join("snapshots")).expect("snapshots");
        let snapshot = dirs.next().expect("one").expect("readable").path();
        let rules = node.rules();
        Cleaned { node, proxyshift, snapshot, rules }
    }

    /// Verifies that every verb that reads the snapshot, in its present condition, refuses it with
    /// the reason `why`.
    fn is_refused(&self, what: &str, why: &str) {
        for words in ["snapshot verify", "rollback", "plan --snapshot latest"] {
            let ended = self.proxyshift.run(words);
            assert_eq!(ended.code, Some(3), "{what}, {words}: {}{}", ended.out, ended.err);
            ended.reports(&[why, "error:", "next:"]);
        }
        assert_same(&self.node.rules(), &self.rules, what);
    }
}

/// Runs a shell script that ends at the first error.
fn sh(script: &str) -> String {
    run_with(script, &["sh", "-e"])
}

/// The files below `dir`, as paths relative to it.
fn files_below(dir: &Path) -> Vec<String> {
    sh(&format!("cd {} && find . -type f", dir.display())).lines().map(str::to_owned).collect()
}

#[test]
fn a_broken_snapshot() {
    if !in_namespace("a_broken_snapshot") {
        return;
    }
    let cleaned = Cleaned::new();
    let dir = &cleaned.snapshot;
    let good = Path::new("/run/good");
    run(&format!("cp -a {} {}", dir.display(), good.display()));
    let repair = || sh(&format!("rm -r {0}; cp -a {1} {0}", dir.display(), good.display()));

    let files = files_below(dir);
    assert!(files.len() > 12, "{files:?}");
    for file in files {
        let bytes = fs::read(dir.join(&file)).expect("a file");
        fs::write(dir.join(&file), &bytes[..bytes.len() / 2]).expect("cut");
        let ended = cleaned.proxyshift.run("snapshot verify");
        assert_eq!(ended.code, Some(3), "{file} cut in half: {}{}", ended.out, ended.err);
        ended.reports(&[dir.to_str().expect("text"), "next:"]);
        fs::write(dir.join(&file), &bytes).expect("whole");
    }
    cleaned.proxyshift.expect(0, "snapshot verify");

    let sums = "find . -type f ! -name SHA256SUMS | sed s,^./,, | LC_ALL=C sort | xargs sha256sum";
    let again = format!("{sums} > SHA256SUMS");
    for (damage, why) in [
        ("truncate -s -1 iptables-nft.save", "iptables-nft.save"),
        ("sed -i 's/MASQUERADE/ACCEPT/' iptables-nft.save", "checksum"),
        ("sed -i '1s/^0/1/; t; 1s/^./0/' SHA256SUMS", "checksum"),
        (&format!("sed -i 's/\"format\": 1/\"format\": 2/' manifest.json; {again}"), "newer"),
        ("mv addr.json ../addr; ln -s ../addr addr.json", "a symbolic link"),
        ("ln -s /etc files/link", "a symbolic link"),
        ("touch extra", "extra: not named in SHA256SUMS"),
        ("rm rule.json", "rule.json: named in SHA256SUMS, but missing"),
        ("rm manifest.json", "manifest.json: "),
        (&format!("sed -i '/^COMMIT/d' iptables-nft.save; {again}"), "iptables-nft.save"),
    ] {
        sh(&format!("cd {} && {damage}", dir.display()));
        cleaned.is_refused(damage, why);
        repair();
    }
    // Asked for by its name, it is the error itself and no warning beside another.
    sh(&format!("rm {}/manifest.json", dir.display()));
    let id = dir.file_name().expect("a name").to_str().expect("text");
    let ended = cleaned.proxyshift.expect(3, &format!("snapshot verify {id}"));
    ended.reports(&["error: ", "manifest.json: "]);
    repair();
    cleaned.proxyshift.expect(0, "rollback");
}

#[test]
fn a_hostile_archive() {
    if !in_namespace("a_hostile_archive") {
        return;
    }
    let cleaned = Cleaned::new();
    let id = cleaned.snapshot.file_name().and_then(|n| n.to_str()).expect("text");
    sh("mkdir /run/work");
    sh(&format!("cp -a {} /run/work", cleaned.snapshot.display()));
    let elsewhere = Proxyshift::new("elsewhere");
    let good = Path::new("/run/good.tar.gz");
    cleaned.proxyshift.expect(0, &format!("snapshot export {id} {}", good.display()));
    for (make, why) in [
        (format!("head -c 4000 {} > $out", good.display()), "cannot be read"),
        ("echo nothing of the kind > $out".into(), "cannot be read"),
        (format!("tar czPf $out --transform 's,rule.json,../../rule.json,' {id}"), "climbs out"),
        (format!("tar czPf $out --transform 's,.*rule.json,/tmp/rule.json,' {id}"), "absolute"),
        (format!("ln -s /etc {id}/files/link; tar czf $out {id}; rm {id}/files/link"), "link"),
        (format!("touch {id}/extra; tar czf $out {id}; rm {id}/extra"), "not named in SHA256SUMS"),
        (format!("sed s/ACCEPT/DROP/ {id}/iptables-nft.save > {id}/x; mv {id}/x {id}/iptables-nft.save
                  tar czf $out {id}"), "checksum"),
        // More files than any snapshot has. Too many bytes are a case in the tests of
        // `store::archive`.
        ("mkdir n; (cd n; seq 10001 | xargs touch); tar czf $out n".into(), "more than 10000"),
    ] {
        let out = "/run/hostile.tar.gz";
        sh(&format!("cd /run/work; out={out}; {make}"));
        let ended = elsewhere.run(&format!("snapshot import {out}"));
        assert_eq!(ended.code, Some(3), "{make}: {}{}", ended.out, ended.err);
        ended.reports(&[why, out, "next:"]);
        let kept = fs::read_dir(elsewhere.store.join("snapshots")).expect("snapshots").count();
        assert_eq!(kept, 0, "{make}: something of it is kept");
    }
    assert!(!Path::new("/tmp/rule.json").exists());
    assert_same(&cleaned.node.rules(), &cleaned.rules, "archives");
    elsewhere.expect(0, &format!("snapshot import {}", good.display()));
    elsewhere.expect(0, &format!("snapshot verify {id}"));
    elsewhere.expect(3, "snapshot verify");
}

/// Runs a rehearsal in a process that lacks some rights. The command `setup` removes these rights;
/// the last argument of `setup` is `--`.
fn rehearse_without_rights(setup: &str) -> Ended {
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec"]);
    let script = "mkdir -p /run/root && mount --rbind / /run/root && exec \"$@\"";
    command.args([script, "sh"]).args(setup.split(' '));
    command.arg(env!("CARGO_BIN_EXE_proxyshift")).args(["rehearse", "--snapshot"]);
    command.arg(captured("docker-iptables-1.30"));
    Ended::of(command)
}

#[test]
fn a_rehearsal_without_namespaces() {
    if !in_namespace("a_rehearsal_without_namespaces") {
        return;
    }
    // In a chroot, the kernel refuses user namespaces. Root without CAP_SYS_ADMIN has no use for a
    // user namespace.
    for setup in [
        "chroot --userspec=65534:65534 --groups= /run/root",
        "setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin --",
    ] {
        let ended = rehearse_without_rights(setup);
        assert_eq!(ended.code, Some(3), "{setup}: {}{}", ended.out, ended.err);
        ended.reports(&["a private namespace", "Operation not permitted", "next:"]);
    }
}

#[test]
fn no_rights_to_change_the_node() {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    command.args([env!("CARGO_BIN_EXE_proxyshift"), "cleanup", "--yes"]);
    let ended = Ended::of(command);
    assert_eq!(ended.code, Some(3), "{}{}", ended.out, ended.err);
    ended.reports(&["only root may change it", "next:", "run as root"]);
}

#[test]
fn a_missing_iptables() {
    if !in_namespace("a_missing_iptables") {
        return;
    }
    let node = Node::load(NODE, Backend::Nft);
    let proxyshift = Proxyshift::new("store");
    let rules = node.rules();
    // A search for a program finds only executable files, so the program seems not to exist.
    run("cp -a /usr/sbin/xtables-nft-multi /run/xtables");
    run("mount --bind /dev/null /usr/sbin/xtables-nft-multi");
    for words in ["cleanup --yes", "plan", "snapshot create"] {
        let ended = proxyshift.expect(3, words);
        ended.reports(&["iptables-nft-save", "not found in", "next:", "apt install iptables"]);
    }
    let rehearse = format!("rehearse --snapshot {}", captured(NODE).display());
    proxyshift.expect(3, &rehearse).reports(&["iptables-nft-restore", "not found in", "next:"]);
    run("umount /usr/sbin/xtables-nft-multi");
    assert_same(&node.rules(), &rules, "without iptables");
    proxyshift.expect(0, "status");
}

#[test]
fn a_held_xtables_lock() {
    if !in_namespace("a_held_xtables_lock") {
        return;
    }
    let node = Node::load(NODE, Backend::Legacy);
    let proxyshift = Proxyshift { lock_wait: 1, ..Proxyshift::new("store") };
    let rules = node.rules();
    let lock = fs::File::create("/run/xtables.lock").expect("the lock file");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock");
    let held_by = format!("(pid {}) for over 1s", std::process::id());
    let ended = proxyshift.expect(3, "cleanup --yes");
    ended.reports(&["/run/xtables.lock", "held by", &held_by, "next:"]);
    assert_same(&node.rules(), &rules, "the lock was held");
    proxyshift.expect(0, "status");
    drop(lock);
    proxyshift.expect(0, "cleanup --yes");

    // The run cannot be undone while another process holds the xtables lock; afterwards it can.
    let clean = node.rules();
    let lock = fs::File::open("/run/xtables.lock").expect("the lock file");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock");
    let ended = proxyshift.run("rollback");
    assert!(matches!(ended.code, Some(3 | 5)), "{:?}: {}", ended.code, ended.err);
    ended.reports(&["/run/xtables.lock", &held_by, "next:"]);
    assert_same(&node.rules(), &clean, "the lock was held");
    drop(lock);
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), &rules, "rolled back");
}

#[test]
fn a_held_node_lock() {
    if !in_namespace("a_held_node_lock") {
        return;
    }
    let node = Node::load(NODE, Backend::Nft);
    let proxyshift = Proxyshift { lock_wait: 0, ..Proxyshift::new("store") };
    let rules = node.rules();
    let inode = fs::metadata("/proc/self/ns/net").expect("a namespace").ino();
    sh("mkdir -m 700 /run/proxyshift");
    let path = format!("/run/proxyshift/{inode}.lock");
    let lock = fs::File::create(&path).expect("the lock file");
    lock.lock().expect("the lock");
    for words in ["cleanup --yes", "rollback", "resume", "snapshot create"] {
        let ended = proxyshift.expect(3, words);
        ended.reports(&[&path, "another proxyshift holds it", "next:", "proxyshift status"]);
    }
    assert_same(&node.rules(), &rules, "the lock was held");
    drop(lock);
    proxyshift.expect(0, "cleanup --yes");
}

#[test]
fn a_full_disk() {
    if !in_namespace("a_full_disk") {
        return;
    }
    let node = Node::load(NODE, Backend::Nft);
    let rules = node.rules();
    sh("mkdir -m 700 /run/disk; mount -t tmpfs -o mode=700,size=64k none /run/disk");
    let proxyshift = Proxyshift::new("disk/store");
    for words in ["cleanup --yes", "snapshot create"] {
        let ended = proxyshift.expect(3, words);
        ended.reports(&["/run/disk/store", "KiB are missing", "next:", "--store DIR"]);
    }
    // With these sizes there is room for the snapshot, but not for the journal as well.
    for size in ["256k", "320k", "384k", "448k"] {
        sh(&format!("mount -o remount,size={size} /run/disk"));
        let ended = proxyshift.run("cleanup --yes");
        match ended.code {
            Some(3) => ended.reports(&["/run/disk/store", "next:", "--store DIR"]),
            code => assert_eq!(code, Some(0), "{size}: {}", ended.err),
        }
        if ended.code == Some(0) {
            proxyshift.expect(0, "rollback");
        }
        assert_same(&node.rules(), &rules, size);
        proxyshift.expect(0, "status");
    }
}
