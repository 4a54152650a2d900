//! Stores, locks and names that somebody else prepared, and verbs that only look.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use proxyshift::store::Store;
use proxyshift::store::manifest::Manifest;
use proxyshift::store::snapshots::Snapshot;

use crate::common::node::{Ended, Proxyshift, captured};
use crate::common::{in_namespace, program, run};

/// Every verb that only looks at the store or the node, with its exit code where there is neither a
/// store nor a run.
fn looking(tmp: &Path) -> Vec<(String, i32)> {
    let node = captured("docker-iptables-1.30").display().to_string();
    let words = |words: &str, code| (words.to_owned(), code);
    vec![
        words("status", 0),
        words("snapshot list", 0),
        words("snapshot show", 3),
        words("snapshot verify", 3),
        words("snapshot diff latest", 3),
        words("snapshot prune", 0),
        (format!("snapshot export latest {}", tmp.join("out").display()), 3),
        words("report", 3),
        words("report 2026", 3),
        words("plan --snapshot latest", 3),
        words("check --snapshot latest", 3),
        words("check --list", 0),
        words("rehearse --snapshot latest", 3),
        words("rollback --to latest --yes", 3),
        (format!("snapshot show {node}"), 0),
        (format!("snapshot verify {node}"), 0),
        (format!("snapshot diff {node} {node}"), 0),
        (format!("plan --snapshot {node}"), 0),
        (format!("plan --to ipvs --snapshot {node}"), 0),
        (format!("rehearse --snapshot {node}"), 0),
    ]
}

/// The paths of all that is below `dir`, with modes and times of change.
fn listing(dir: &str) -> String {
    let arguments = ["-xdev", "-printf", "%p %m %C@\n"];
    let output = Command::new("find").arg(dir).args(arguments).output().expect("find");
    let mut lines: Vec<String> =
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    assert!(output.status.success() && !lines.is_empty(), "{output:?}");
    lines.sort();
    lines.join("\n")
}

#[test]
fn looking_makes_no_store_and_nothing_else() {
    if !in_namespace("store::looking_makes_no_store_and_nothing_else") {
        return;
    }
    let tmp = Path::new("/run/tmp");
    fs::create_dir(tmp).expect("a folder");
    let proxyshift = Proxyshift::of_store("/run/none/store".into());
    let live = ["check", "plan", "rehearse", "snapshot diff /run/none/store", "cleanup --dry-run"];
    let before = listing("/run");
    let live = live.map(|words| (words.to_owned(), -1));
    for (words, code) in looking(tmp).into_iter().chain(live) {
        let ended = proxyshift.run(&words);
        let shown = format!("{words}: {:?} {}{}", ended.code, ended.out, ended.err);
        assert!(code == -1 || ended.code == Some(code), "{shown}");
        assert!(ended.code.is_some_and(|code| code != 1), "{shown}");
        assert_eq!(listing("/run"), before, "{shown}");
    }
}

#[test]
fn looking_changes_nothing_in_a_store_that_is_there() {
    if !in_namespace("store::looking_changes_nothing_in_a_store_that_is_there") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    let store = Store::open(Some(&proxyshift.store)).expect("a store");
    let files = Snapshot::load(&captured("docker-iptables-1.30")).expect("a capture").files;
    let manifest = Manifest::for_this_node("own").expect("a manifest");
    store.create(&files, manifest, &|_| Ok(())).expect("a snapshot");
    for dir in [store.dir().to_owned(), store.snapshots_dir()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("readable");
    }
    fs::remove_dir(store.runs_dir()).expect("removed");
    let before = listing("/run");
    for words in ["status", "snapshot list", "snapshot show", "snapshot verify", "report"] {
        let code = if words == "report" { 3 } else { 0 };
        proxyshift.expect(code, words);
        assert_eq!(listing("/run"), before, "{words}");
    }
}

/// Runs verbs that read and that write the store; each must end with exit code 3, a reason that has
/// `why`, and a next step.
fn is_refused(proxyshift: &Proxyshift, what: &str, why: &str) {
    for words in ["status", "snapshot list", "report", "snapshot create", "rollback", "confirm"] {
        let ended = proxyshift.run(words);
        let shown = format!("{what}: {words}: {:?} {}{}", ended.code, ended.out, ended.err);
        assert_eq!(ended.code, Some(3), "{shown}");
        assert!(ended.err.contains(why) && ended.err.contains("next:"), "{shown}");
    }
}

#[test]
fn a_store_that_is_none_is_refused_with_the_reason() {
    if !in_namespace("store::a_store_that_is_none_is_refused_with_the_reason") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    let store = proxyshift.store.as_path();
    symlink("/run/nowhere", store).expect("a link");
    is_refused(&proxyshift, "a dangling link", "a link to /run/nowhere, which is not there");
    assert!(!Path::new("/run/nowhere").exists());
    fs::remove_file(store).expect("removed");
    symlink("/run/store", store).expect("a link");
    is_refused(&proxyshift, "a link to itself", "/run/store");
    fs::remove_file(store).expect("removed");
    fs::write(store, "x").expect("a file");
    is_refused(&proxyshift, "a file", "it is not a directory");
    let below = Proxyshift::new("store/below");
    is_refused(&below, "below a file", "/run/store/below");
    fs::remove_file(store).expect("removed");
    run(&format!("mkfifo {}", store.display()));
    is_refused(&proxyshift, "a pipe", "it is not a directory");
    fs::remove_file(store).expect("removed");
    is_refused(&Proxyshift::new(&"n".repeat(300)), "a long name", "nnnn");

    for folder in ["snapshots", "runs"] {
        Store::open(Some(store)).expect("a store");
        let folder = store.join(folder);
        fs::remove_dir(&folder).expect("removed");
        fs::write(&folder, "x").expect("a file");
        is_refused(&proxyshift, "a file as a folder", "it is not a directory");
        fs::remove_file(&folder).expect("removed");
        symlink("/run/nowhere", &folder).expect("a link");
        is_refused(&proxyshift, "a link as a folder", "which is not there");
        fs::remove_file(&folder).expect("removed");
    }
    let empty = Proxyshift::of_store("".into());
    let ended = empty.run("snapshot create");
    assert_eq!(ended.code, Some(2), "{}{}", ended.out, ended.err);
    assert!(!Path::new("snapshots/.").join("../runs").exists());
}

#[test]
fn a_store_of_somebody_else_is_refused() {
    if !in_namespace("store::a_store_of_somebody_else_is_refused") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    let store = Store::open(Some(&proxyshift.store)).expect("a store");
    for dir in [store.dir().to_owned(), store.snapshots_dir(), store.runs_dir()] {
        for mode in [0o777, 0o1777, 0o770, 0o703] {
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("open");
            is_refused(&proxyshift, &format!("mode {mode:o}"), "others may write to it");
            assert_eq!(fs::metadata(&dir).expect("there").mode() & 0o7777, mode);
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).expect("closed");
        chown(&dir, Some(1000), None).expect("another owner");
        is_refused(&proxyshift, "of user 1000", "it belongs to user 1000");
        chown(&dir, Some(0), None).expect("ours again");
    }
    proxyshift.expect(0, "status");
}

/// Runs verbs that take the node's lock, which must be refused with the reason `why`.
fn lock_is_refused(what: &str, why: &str) {
    let proxyshift = Proxyshift::new("store");
    for words in ["snapshot create", "cleanup --yes", "rollback", "resume"] {
        let ended = proxyshift.run(words);
        let shown = format!("{what}: {words}: {:?} {}{}", ended.code, ended.out, ended.err);
        assert_eq!(ended.code, Some(3), "{shown}");
        assert!(ended.err.contains(why) && ended.err.contains("/run/proxyshift"), "{shown}");
        assert!(ended.err.contains("next:") && ended.err.contains("rm -r"), "{shown}");
    }
}

#[test]
fn a_lock_that_somebody_else_made_is_refused() {
    if !in_namespace("store::a_lock_that_somebody_else_made_is_refused") {
        return;
    }
    let dir = Path::new("/run/proxyshift");
    fs::create_dir(dir).expect("a folder");
    for mode in [0o777, 0o1777, 0o770, 0o703] {
        fs::set_permissions(dir, fs::Permissions::from_mode(mode)).expect("open");
        lock_is_refused(&format!("mode {mode:o}"), "but others may write to it");
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).expect("closed");
    chown(dir, Some(1000), None).expect("another owner");
    lock_is_refused("of user 1000", "it belongs to user 1000");
    fs::remove_dir(dir).expect("removed");
    fs::create_dir("/run/theirs").expect("a folder");
    for target in ["/run/theirs", "/run/nowhere"] {
        symlink(target, dir).expect("a link");
        lock_is_refused("a link", "a symbolic link of user 0");
        fs::remove_file(dir).expect("removed");
    }
    assert_eq!(fs::read_dir("/run/theirs").expect("there").count(), 0);
    fs::write(dir, "").expect("a file");
    lock_is_refused("a file", "in place of a directory");
    fs::remove_file(dir).expect("removed");

    fs::create_dir(dir).expect("a folder");
    let inode = fs::metadata("/proc/self/ns/net").expect("a namespace").ino();
    let lock = dir.join(format!("{inode}.lock"));
    for target in ["/run/victim", "/etc/hostname"] {
        symlink(target, &lock).expect("a link");
        lock_is_refused("a link as lock", "a symbolic link in place of a lock file");
        fs::remove_file(&lock).expect("removed");
    }
    assert!(!Path::new("/run/victim").exists(), "never made through a link");
    run(&format!("mkfifo {}", lock.display()));
    lock_is_refused("a pipe as lock", "a special file in place of a lock file");
    fs::remove_file(&lock).expect("removed");
    fs::write(&lock, "").expect("a file");
    chown(&lock, Some(1000), None).expect("another owner");
    lock_is_refused("of user 1000", "it belongs to user 1000");
    fs::remove_dir_all(dir).expect("removed");

    let ended = Proxyshift::new("store").run("rollback");
    assert_eq!(ended.code, Some(3));
    ended.reports(&["no run of this node can be undone"]);
    assert_eq!(fs::metadata(dir).expect("made anew").mode() & 0o7777, 0o700);
}

#[test]
fn the_lock_of_xtables_is_not_reached_through_a_link() {
    if !in_namespace("store::the_lock_of_xtables_is_not_reached_through_a_link") {
        return;
    }
    let node = crate::common::node::Node::load(
        "half-migrated-ipvs-1.20",
        proxyshift::state::Backend::Legacy,
    );
    let rules = node.rules();
    let _ = fs::remove_file("/run/xtables.lock");
    symlink("/run/victim", "/run/xtables.lock").expect("a link");
    let proxyshift = Proxyshift::new("store");
    let ended = proxyshift.run("cleanup --yes");
    assert!(matches!(ended.code, Some(3 | 4)), "{:?}: {}{}", ended.code, ended.out, ended.err);
    ended.reports(&["/run/xtables.lock"]);
    assert!(!Path::new("/run/victim").exists(), "never made through the link");
    fs::remove_file("/run/xtables.lock").expect("removed");
    crate::common::node::assert_same(&node.rules(), &rules, "the lock was a link");
}

/// Runs the program with the arguments `words` in the working directory `dir`.
fn run_in(dir: &Path, store: &Path, words: &str) -> Ended {
    let mut command = Command::new(program());
    command.current_dir(dir).arg("--store").arg(store).args(words.split_whitespace());
    Ended::of(command)
}

#[test]
fn no_directory_here_stands_for_a_snapshot_of_the_store() {
    let tmp = tempfile::tempdir().expect("a folder");
    let (dir, store) = (tmp.path().join("here"), tmp.path().join("store"));
    fs::create_dir(&dir).expect("a folder");
    let files = Snapshot::load(&captured("docker-iptables-1.30")).expect("a capture").files;
    let manifest = Manifest::for_this_node("own").expect("a manifest");
    let opened = Store::open(Some(&store)).expect("a store");
    let id = opened.create(&files, manifest, &|_| Ok(())).expect("a snapshot").id;
    let theirs = captured("ipvs-with-keepalived-1.20");
    for name in ["latest", id.as_str(), "2026", "20", "other"] {
        run(&format!("cp -r {} {}", theirs.display(), dir.join(name).display()));
    }
    for name in ["latest", &id] {
        let shown = run_in(&dir, &store, &format!("snapshot show {name}"));
        assert!(shown.out.starts_with(&format!("{id} of ")), "{name}: {}{}", shown.out, shown.err);
        let verified = run_in(&dir, &store, &format!("snapshot verify {name}"));
        assert!(verified.out.contains(&store.display().to_string()), "{}", verified.out);
        let of_store = run_in(tmp.path(), &store, &format!("plan --snapshot {name} -o json"));
        let here = run_in(&dir, &store, &format!("plan --snapshot {name} -o json"));
        assert_eq!(here.out, of_store.out, "{name}");
    }
    for words in [
        "snapshot show other",
        "snapshot verify other",
        "snapshot diff other other",
        "snapshot export other out.tar.gz",
        "plan --snapshot other",
        "check --snapshot other",
        "rehearse --snapshot other",
        "rollback --yes --to other",
    ] {
        let ended = run_in(&dir, &store, words);
        assert_eq!(ended.code, Some(3), "{words}: {}{}", ended.out, ended.err);
        ended.reports(&["no snapshot of this name", "say `./other`"]);
    }
    assert!(run_in(&dir, &store, "report other").code == Some(3));
    let shown = run_in(&dir, &store, "snapshot show ./latest");
    assert!(shown.code == Some(0) && shown.out.contains("without a manifest"), "{}", shown.err);
    let empty = run_in(&dir, &tmp.path().join("none"), "snapshot show");
    assert_eq!(empty.code, Some(3));
    empty.reports(&["no snapshot that was taken here", "say `./latest`"]);
    let help = run_in(&dir, &store, "plan --help").out;
    assert!(help.contains("./DIR"), "{help}");
}
