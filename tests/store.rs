//! The store on real disks, between real processes, and `restore.sh` on real rules.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use proxyshift::error::{Kind, Result};
use proxyshift::state::Files;
use proxyshift::store::Store;
use proxyshift::store::archive;
use proxyshift::store::journal::{self, Journal, Mark, Record};
use proxyshift::store::lock::{NodeLock, XtablesLock};
use proxyshift::store::manifest::Manifest;
use proxyshift::store::runs::RunState;
use proxyshift::store::snapshots::Snapshot;
use serde_json::Value;

const CEILING: Duration = Duration::from_secs(30);

fn fine(_: &Files) -> Result<()> {
    Ok(())
}

fn captured(name: &str) -> Files {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots").join(name);
    let loaded = Snapshot::load(&dir).unwrap();
    assert!(loaded.manifest.is_none());
    loaded.files
}

fn docker() -> Files {
    captured("docker-iptables-1.30")
}

fn store() -> (tempfile::TempDir, Store) {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::open(Some(&tmp.path().join("store"))).unwrap();
    (tmp, store)
}

fn create(store: &Store, files: &Files) -> Snapshot {
    store.create(files, Manifest::for_this_node("test").unwrap(), &fine).unwrap()
}

/// Everything below `dir`, hidden or not.
fn all_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(all_below(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// Runs the test `name` of this file once more, in network and mount namespaces of its own with
/// an empty /run. True there, where the test is to go on; false, when it is over, here.
fn in_namespaces(name: &str) -> bool {
    if std::env::var_os("PROXYSHIFT_TEST_INSIDE").is_some() {
        sh("mount -t tmpfs tmpfs /run");
        return true;
    }
    let flags = if rustix::process::geteuid().is_root() { "-nm" } else { "-Urnm" };
    let status = Command::new("unshare")
        .arg(flags)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("PROXYSHIFT_TEST_INSIDE", "1")
        .status()
        .expect("unshare is needed");
    assert!(status.success(), "{name} failed in its namespaces");
    false
}

/// Runs the test `name` of this file as another process, with `role` to play in it.
fn another_process(name: &str, role: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command.env("PROXYSHIFT_TEST_ROLE", role).env("PROXYSHIFT_TEST_DIR", dir);
    command
}

/// The role of this process, and the directory to play it in, if it was given one.
fn role() -> Option<(String, PathBuf)> {
    let dir = std::env::var_os("PROXYSHIFT_TEST_DIR")?;
    Some((std::env::var("PROXYSHIFT_TEST_ROLE").ok()?, dir.into()))
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn poll(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + CEILING;
    while !done() {
        assert!(Instant::now() < until, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// Snapshots

#[test]
fn a_snapshot_reads_back_as_it_was_captured() {
    let (_tmp, store) = store();
    let files = docker();
    let snapshot = create(&store, &files);
    let loaded = Snapshot::load(&snapshot.dir).unwrap();
    assert_eq!(loaded.files, files);
    assert_eq!(loaded.for_rollback().unwrap().id, snapshot.id);
    for file in all_below(&snapshot.dir) {
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o600, "{}", file.display());
        let parent = fs::metadata(file.parent().unwrap()).unwrap();
        assert_eq!(parent.mode() & 0o7777, 0o700, "{}", file.display());
    }
    sh(&format!("cd {} && sha256sum --strict --quiet -c SHA256SUMS", snapshot.dir.display()));
}

#[test]
fn a_bare_directory_is_to_look_at_only() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots/docker-iptables-1.30");
    let loaded = Snapshot::load(&dir).unwrap();
    assert!(loaded.files.contains_key("files/var/lib/kube-proxy/config.conf"));
    assert_eq!(loaded.for_rollback().unwrap_err().kind, Kind::SnapshotRefused);
    assert_eq!(Snapshot::load(Path::new("/no/such")).unwrap_err().kind, Kind::NotFound);
}

#[test]
fn nothing_is_left_of_a_snapshot_that_failed() {
    let (_tmp, store) = store();
    let manifest = || Manifest::for_this_node("test").unwrap();
    let bad = |_: &Files| {
        Err(proxyshift::error::Error::new(Kind::LossyCapture, "iptables-nft.save", "no table"))
    };
    let error = store.create(&docker(), manifest(), &bad).unwrap_err();
    assert_eq!(error.kind, Kind::LossyCapture);
    for path in ["../escaped", "/etc/passwd", "SHA256SUMS", "a\nb"] {
        let files = Files::from([(path.to_owned(), "x".into())]);
        let error = store.create(&files, manifest(), &fine).unwrap_err();
        assert!(error.object == path && error.cause.contains("cannot be kept"), "{error}");
    }
    assert!(is_empty(&store.snapshots_dir()));
}

/// Changes a good snapshot with `change`, and returns why it is refused then.
fn refusal(change: impl FnOnce(&Path)) -> String {
    let (_tmp, store) = store();
    let snapshot = create(&store, &docker());
    change(&snapshot.dir);
    let error = Snapshot::load(&snapshot.dir).unwrap_err();
    assert_eq!(error.kind, Kind::SnapshotRefused, "{error}");
    assert!(error.hint.is_some(), "{error}");
    error.to_string()
}

#[test]
fn any_file_cut_changed_or_taken_away_is_noticed() {
    let (_tmp, store) = store();
    let snapshot = create(&store, &docker());
    let files = all_below(&snapshot.dir);
    assert!(files.len() > 10);
    for file in files {
        let refused = |what: &str| {
            let error = Snapshot::load(&snapshot.dir).expect_err(what);
            assert_eq!(error.kind, Kind::SnapshotRefused, "{what} {}: {error}", file.display());
        };
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
        refused("cut in half");
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        refused("cut by a byte");
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 1;
        fs::write(&file, &changed).unwrap();
        refused("changed in one bit");
        fs::remove_file(&file).unwrap();
        refused("removed");
        fs::write(&file, &bytes).unwrap();
    }
    Snapshot::load(&snapshot.dir).unwrap();
}

#[test]
fn what_does_not_belong_into_a_snapshot_is_refused() {
    let cause = refusal(|dir| fs::write(dir.join("extra"), "").unwrap());
    assert!(cause.ends_with("extra: not named in SHA256SUMS"), "{cause}");
    let cause = refusal(|dir| {
        let file = dir.join("iptables-nft.save");
        fs::rename(&file, dir.with_file_name("moved")).unwrap();
        symlink("../moved", &file).unwrap();
    });
    assert!(cause.ends_with("a symbolic link in place of a file"), "{cause}");
    let cause = refusal(|dir| symlink("/etc", dir.join("files/etc2")).unwrap());
    assert!(cause.ends_with("a symbolic link in place of a file"), "{cause}");
    let cause = refusal(|dir| {
        fs::remove_file(dir.join("rule.json")).unwrap();
        sh(&format!("mkfifo {}/rule.json", dir.display()));
    });
    assert!(cause.ends_with("a special file in place of a file"), "{cause}");
    let cause = refusal(|dir| {
        fs::remove_file(dir.join("rule.json")).unwrap();
        fs::create_dir(dir.join("rule.json")).unwrap();
    });
    assert!(cause.ends_with("rule.json: named in SHA256SUMS, but missing"), "{cause}");
}

/// Makes the checksums of `dir` those of what is there.
fn sum_again(dir: &Path) {
    sh(&format!(
        "cd {} && find . -type f ! -name SHA256SUMS | sed 's,^./,,' | LC_ALL=C sort | \
         xargs sha256sum > SHA256SUMS",
        dir.display()
    ));
}

#[test]
fn what_has_the_right_checksum_can_still_be_wrong() {
    let cause = refusal(|dir| {
        fs::write(dir.join("sysctl.txt"), b"a = \xff\n").unwrap();
        sum_again(dir);
    });
    assert!(cause.ends_with("sysctl.txt: it is not UTF-8"), "{cause}");
    let cause = refusal(|dir| {
        let manifest = dir.join("manifest.json");
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
        sum_again(dir);
    });
    assert!(cause.contains("written by a newer proxyshift"), "{cause}");
    let cause = refusal(|dir| {
        let text = fs::read_to_string(dir.join("SHA256SUMS")).unwrap();
        let climbing = text.replace("  rule.json", "  ../rule.json");
        fs::write(dir.join("SHA256SUMS"), climbing).unwrap();
    });
    assert!(cause.contains("climbs out"), "{cause}");
}

#[test]
fn snapshots_are_found_by_name() {
    let (tmp, store) = store();
    assert_eq!(store.find("latest").unwrap_err().kind, Kind::NotFound);
    for id in ["20260101T000000Z-aaaaaa", "20260101T000000Z-bbbbbb", "20260202T000000Z-cccccc"] {
        let manifest = Manifest { id: id.into(), ..Manifest::for_this_node("test").unwrap() };
        store.create(&docker(), manifest, &fine).unwrap();
    }
    let id = |name: &str| store.find(name).unwrap().id;
    assert_eq!(id("latest"), "20260202T000000Z-cccccc");
    assert_eq!(id("202602"), "20260202T000000Z-cccccc");
    assert_eq!(id("20260101T000000Z-aaaaaa"), "20260101T000000Z-aaaaaa");
    let error = store.find("202601").unwrap_err();
    assert_eq!(error.kind, Kind::Usage);
    assert!(error.cause.contains("-aaaaaa, 20260101T000000Z-bbbbbb"), "{error}");
    for none in ["2025", "", "/no/such/directory", ".new"] {
        assert_eq!(store.find(none).unwrap_err().kind, Kind::NotFound, "{none}");
    }
    let dir = tmp.path().join("a copy");
    fs::create_dir(&dir).unwrap();
    assert_eq!(store.find(&format!("{}/", dir.display())).unwrap().id, "a copy");
}

#[test]
fn a_broken_snapshot_hides_no_other() {
    let (_tmp, store) = store();
    let first = create(&store, &docker());
    fs::create_dir(store.snapshots_dir().join("0-empty")).unwrap();
    fs::create_dir(store.snapshots_dir().join(".new-half")).unwrap();
    fs::rename(&first.dir, store.snapshots_dir().join("9-renamed")).unwrap();
    let second = create(&store, &docker());
    let list = store.list().unwrap();
    let ids: Vec<_> = list.iter().map(|l| (l.snapshot.id.as_str(), l.manifest.is_ok())).collect();
    assert_eq!(ids, [("0-empty", false), (second.id.as_str(), true), ("9-renamed", false)]);
    assert!(list[2].manifest.as_ref().unwrap_err().cause.contains("renamed"));
}

#[test]
fn pruning_leaves_the_newest_and_the_needed() {
    let (_tmp, store) = store();
    for n in 1..=5 {
        let manifest =
            Manifest { id: format!("2026-{n}"), ..Manifest::for_this_node("t").unwrap() };
        store.create(&docker(), manifest, &fine).unwrap();
    }
    let in_hand = store.snapshots_dir().join(".new-in-hand");
    let abandoned = store.snapshots_dir().join(".new-abandoned");
    fs::create_dir(&in_hand).unwrap();
    fs::create_dir(&abandoned).unwrap();
    sh(&format!("touch -d '2 days ago' {}", abandoned.display()));
    let needed = BTreeSet::from(["2026-2".to_owned()]);
    assert_eq!(store.prune(2, &needed).unwrap(), ["2026-1", "2026-3"]);
    let left: Vec<String> = store.list().unwrap().into_iter().map(|l| l.snapshot.id).collect();
    assert_eq!(left, ["2026-2", "2026-4", "2026-5"]);
    assert!(in_hand.exists() && !abandoned.exists());
    assert!(store.prune(10, &needed).unwrap().is_empty());
}

// Archives

#[test]
fn an_archive_brings_the_same_snapshot_to_another_store() {
    let (tmp, here) = store();
    let snapshot = create(&here, &docker());
    let [one, two] = ["one.tar.gz", "two.tar.gz"].map(|name| tmp.path().join(name));
    archive::export(&snapshot.dir, &one).unwrap();
    archive::export(&snapshot.dir, &two).unwrap();
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(archive::export(&snapshot.dir, &one).unwrap_err().kind, Kind::Usage);
    assert!(!sh(&format!("tar tvzf {}", one.display())).contains("root"));

    let there = Store::open(Some(&tmp.path().join("there"))).unwrap();
    let imported = there.import(&one, &fine).unwrap();
    assert_eq!(imported.id, snapshot.id);
    assert_eq!(Snapshot::load(&imported.dir).unwrap().files, docker());
    assert_eq!(there.import(&two, &fine).unwrap(), imported, "the same again is no error");

    fs::write(imported.dir.join("rule.json"), "[]").unwrap();
    let error = there.import(&one, &fine).unwrap_err();
    assert!(error.cause.contains("another snapshot of this name"), "{error}");
    assert_eq!(fs::read_dir(there.snapshots_dir()).unwrap().count(), 1);
    let error = archive::export(&imported.dir, &tmp.path().join("three")).unwrap_err();
    assert_eq!(error.kind, Kind::SnapshotRefused);
    assert!(!tmp.path().join("three").exists());
}

#[test]
fn an_archive_that_tar_made_is_as_good() {
    let (tmp, here) = store();
    let snapshot = create(&here, &docker());
    let to = tmp.path().join("by-hand.tar.gz");
    let snapshots = here.snapshots_dir();
    sh(&format!("tar czf {} -C {} {}", to.display(), snapshots.display(), snapshot.id));
    let there = Store::open(Some(&tmp.path().join("there"))).unwrap();
    assert_eq!(there.import(&to, &fine).unwrap().id, snapshot.id);
}

/// Why an archive is refused that `make`, a shell script, made as `$out`; in its directory are
/// a good snapshot `s` and one `t` of another name.
fn import_refusal(make: &str) -> String {
    let (tmp, here) = store();
    for name in ["s", "t"] {
        let manifest = Manifest { id: name.into(), ..Manifest::for_this_node("test").unwrap() };
        here.create(&docker(), manifest, &fine).unwrap();
    }
    let out = tmp.path().join("hostile.tar.gz");
    let dir = here.snapshots_dir();
    sh(&format!("cd {}; out={}; {make}", dir.display(), out.display()));
    let there = Store::open(Some(&tmp.path().join("there"))).unwrap();
    let error = there.import(&out, &fine).unwrap_err();
    assert_eq!(error.kind, Kind::SnapshotRefused, "{make}: {error}");
    assert!(is_empty(&there.snapshots_dir()), "{make} leaves something behind");
    assert!(!tmp.path().join("escaped").exists());
    error.to_string()
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing_behind() {
    let cases = [
        ("ln -s /etc s/link; tar czf $out s", "neither file nor directory: Symlink"),
        ("ln s/rule.json s/z.json; tar czf $out s", "neither file nor directory: Link"),
        ("mkfifo s/pipe; tar czf $out s", "neither file nor directory: Fifo"),
        ("tar czf $out --transform 's,^s/rule,s/../../../escaped,' -P s", "climbs out"),
        ("tar czf $out --transform 's,^s/rule.json,/escaped,' -P s", "an absolute path"),
        ("tar czf $out --hard-dereference s s/rule.json", "it is in the archive twice"),
        ("tar czf $out s t", "not in the directory of the first entry"),
        ("tar czf $out -C s rule.json", "a file outside of any directory"),
        ("tar czf $out --exclude manifest.json s", "manifest.json: missing"),
        ("tar czf $out s/rule.json", "it holds no manifest.json"),
        ("tar czf $out --exclude rule.json s", "rule.json: named in SHA256SUMS, but missing"),
        ("echo >> s/rule.json; tar czf $out s", "its checksum is not the one"),
        ("tar czf $out s; truncate -s 3000 $out", "cannot be read"),
        ("echo no archive > $out", "cannot be read"),
        (": > $out", "cannot be read"),
        ("mkdir s/many; (cd s/many; seq 10001 | xargs touch); tar czf $out s", "more than 10000"),
    ];
    for (make, expected) in cases {
        let cause = import_refusal(make);
        assert!(cause.contains(expected), "{make}: {cause}");
    }
}

// Full and read-only disks

fn record(step: u32) -> Record {
    let edit = serde_json::json!({"remove": "-A POSTROUTING -j KUBE-POSTROUTING", "step": step});
    Record { stage: "clean".into(), step, kind: Mark::Intent, edit, undo: Value::Null }
}

/// Writes to a file in `dir` until there is no room at all.
fn fill(dir: &Path) {
    let command = format!("cat /dev/zero > {}/filling", dir.display());
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"), "{output:?}");
}

#[test]
fn a_full_disk_stops_a_snapshot_but_no_run() {
    if !in_namespaces("a_full_disk_stops_a_snapshot_but_no_run") {
        return;
    }
    let disk = Path::new("/run/disk");
    sh("mkdir /run/disk; mount -t tmpfs -o size=2m,mode=0700 tmpfs /run/disk");
    let store = Store::open(Some(&disk.join("store"))).unwrap();
    let manifest = || Manifest::for_this_node("test").unwrap();
    let large = Files::from([("sysctl.txt".to_owned(), "x".repeat(3 << 20).into())]);
    let error = store.create(&large, manifest(), &fine).unwrap_err();
    assert_eq!(error.kind, Kind::Store);
    assert!(error.cause.contains("KiB are missing"), "{error}");

    let mut run = store.start("cleanup", "s", serde_json::json!({"edits": 40})).unwrap();
    let dir = store.run_dir(&run.id);
    let mut journal = Journal::create(&dir, 64 * 1024).unwrap();
    journal.append(record(0)).unwrap();
    fill(disk);
    assert_eq!(Journal::create(disk, 4096).unwrap_err().kind, Kind::Store, "the disk is not full");

    // The room set aside holds, even after a torn line.
    for step in 1..40 {
        journal.append(record(step)).unwrap();
    }
    drop(journal);
    let path = dir.join(journal::JOURNAL);
    let length = fs::metadata(&path).unwrap().len();
    let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut &file, b"{\"v\":1,\"seq\":41,\"at\":\"20").unwrap();
    let (mut journal, entries) = Journal::open(&dir).unwrap();
    assert_eq!(entries.len(), 40);
    for step in 40..60 {
        journal.append(record(step)).unwrap();
    }
    assert!(fs::metadata(&path).unwrap().len() > length);
    for state in [RunState::Unconfirmed, RunState::Running, RunState::UndonePartly] {
        store.finish(&mut run, state).unwrap();
        assert_eq!(store.runs().unwrap()[0].state, state);
    }

    // Beyond it there is an error, and what was written stays readable.
    let mut written = 60;
    let error = loop {
        match journal.append(record(written)) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 2000);
    };
    assert_eq!(error.kind, Kind::Store);
    assert_eq!(journal::read(&dir).unwrap().len() as u32, written);
    fs::remove_file(disk.join("filling")).unwrap();
    journal.append(record(written)).unwrap();
    assert_eq!(journal::read(&dir).unwrap().len() as u32, written + 1);
}

#[test]
fn a_disk_that_fills_up_half_way_keeps_nothing() {
    if !in_namespaces("a_disk_that_fills_up_half_way_keeps_nothing") {
        return;
    }
    sh("mkdir /run/disk; mount -t tmpfs -o size=64m,mode=0700,nr_inodes=12 tmpfs /run/disk");
    let (tmp, roomy) = store();
    let archive = tmp.path().join("s.tar.gz");
    archive::export(&create(&roomy, &docker()).dir, &archive).unwrap();

    let store = Store::open(Some(Path::new("/run/disk/store"))).unwrap();
    let manifest = Manifest::for_this_node("test").unwrap();
    assert_eq!(store.create(&docker(), manifest, &fine).unwrap_err().kind, Kind::Store);
    assert_eq!(store.import(&archive, &fine).unwrap_err().kind, Kind::Store);
    assert!(is_empty(&store.snapshots_dir()));

    sh("mount -o remount,ro /run/disk");
    let store = Store::open(Some(Path::new("/run/disk/store"))).unwrap();
    let manifest = Manifest::for_this_node("test").unwrap();
    let error = store.create(&docker(), manifest, &fine).unwrap_err();
    assert_eq!(error.kind, Kind::Store);
    assert!(error.hint.unwrap().contains("--store"));
    assert_eq!(store.start("cleanup", "s", Value::Null).unwrap_err().kind, Kind::Store);
    let error = Store::open(Some(Path::new("/run/disk/other"))).unwrap_err();
    assert_eq!(error.kind, Kind::Store);
}

// Journals and locks, between processes

#[test]
fn a_run_can_be_killed_on_either_side_of_a_line() {
    const NAME: &str = "a_run_can_be_killed_on_either_side_of_a_line";
    if let Some((_, dir)) = role() {
        let mut journal = Journal::create(&dir, 4096).unwrap();
        for step in 0..5 {
            journal.append(record(step)).unwrap();
        }
        return;
    }
    for (crash, lines) in [("before:1", 0), ("before:3", 2), ("after:3", 3), ("after:9", 5)] {
        let tmp = tempfile::tempdir().unwrap();
        let mut child = another_process(NAME, "writer", tmp.path());
        let status = child.env("PROXYSHIFT_CRASH", crash).stdout(Stdio::null()).status().unwrap();
        assert_eq!(status.signal(), (lines < 5).then_some(9), "{crash}: {status}");
        assert_eq!(journal::read(tmp.path()).unwrap().len(), lines, "{crash}");
    }
}

#[test]
fn one_process_holds_the_node_and_the_next_waits_for_it() {
    const NAME: &str = "one_process_holds_the_node_and_the_next_waits_for_it";
    if let Some((_, dir)) = role() {
        let _lock = NodeLock::acquire(&dir.join("locks"), "migrate", Duration::ZERO).unwrap();
        fs::write(dir.join("held"), "").unwrap();
        std::thread::sleep(CEILING);
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let mut command = another_process(NAME, "holder", tmp.path());
    let mut child = Killed(command.stdout(Stdio::null()).spawn().unwrap());
    poll("the lock to be held", || tmp.path().join("held").exists());

    let locks = tmp.path().join("locks");
    let error = NodeLock::acquire(&locks, "cleanup", Duration::from_millis(100)).unwrap_err();
    assert_eq!(error.kind, Kind::Lock);
    let holder = format!("`proxyshift migrate`, pid {}", child.0.id());
    assert!(error.cause.contains(&holder), "{error}");
    assert!(error.hint.is_some());

    let waiting = std::thread::spawn(move || NodeLock::acquire(&locks, "cleanup", CEILING));
    child.0.kill().unwrap();
    waiting.join().unwrap().expect("a dead process holds nothing");
}

#[test]
fn the_xtables_lock_is_the_one_that_iptables_takes() {
    if !in_namespaces("the_xtables_lock_is_the_one_that_iptables_takes") {
        return;
    }
    let path = Path::new("/run/xtables.lock");
    let lock = XtablesLock::acquire(path, Duration::ZERO).unwrap();
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o600);
    let iptables = |args: &str| {
        Command::new("sh")
            .args(["-c", &format!("iptables-legacy {args} -N TEST")])
            .output()
            .unwrap()
    };
    assert_eq!(iptables("-w 1").status.code(), Some(4), "iptables does not see the lock");
    let inode = fs::metadata(path).unwrap().ino();
    drop(lock);
    assert!(iptables("-w 1").status.success());
    assert_eq!(fs::metadata(path).unwrap().ino(), inode);

    let script = "exec 9>/run/xtables.lock; flock 9; echo held > /run/held; exec sleep 30";
    let holder = Killed(Command::new("sh").args(["-c", script]).spawn().unwrap());
    poll("the lock to be held", || Path::new("/run/held").exists());
    let error = XtablesLock::acquire(path, Duration::from_millis(50)).unwrap_err();
    assert_eq!(error.kind, Kind::Lock);
    // /proc/locks knows who took it: flock, a child that is gone, or the shell.
    assert!(error.cause.starts_with("held by"), "{error}");
    drop(holder);
    XtablesLock::acquire(path, CEILING).unwrap();
}

// restore.sh

fn restore(snapshot: &Snapshot, args: &str) -> Output {
    let script = format!("TMPDIR=/run sh {}/restore.sh {args}", snapshot.dir.display());
    Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap()
}

/// What a restore says, and its exit code.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// A save with the parts that move taken out.
fn rules(program: &str) -> String {
    sh(&format!("{program} | sed -e '/^#/d' -e '/^:/s/ \\[.*//' -e 's/^\\[[0-9:]*\\] //'"))
}

/// Loads a captured node, flushes it, and lets restore.sh bring it back.
fn flush_and_restore(files: &Files, backend: &str) {
    let (_tmp, store) = store();
    let snapshot = create(&store, files);
    let dir = snapshot.dir.display();
    let tools: Vec<String> = ["iptables", "ip6tables"]
        .iter()
        .map(|tool| format!("{tool}-{backend}"))
        .filter(|tool| files.contains_key(&format!("{tool}.save")))
        .collect();
    for tool in &tools {
        sh(&format!("{tool}-restore -c < {dir}/{tool}.save"));
    }
    let saved = || {
        let of = |tool: &String| {
            ["nat", "filter", "mangle"].map(|t| rules(&format!("{tool}-save -t {t}")))
        };
        tools.iter().map(of).collect::<Vec<_>>()
    };
    let before = saved();
    assert!(before[0][0].contains("-j MASQUERADE") && before[0][0].contains("KUBE-SEP-"));
    let (code, text) = said(&restore(&snapshot, "--yes"));
    assert!(code == Some(0) && text.contains("nothing to restore"), "{text}");

    for tool in &tools {
        sh(&format!("for t in nat filter mangle; do {tool} -t $t -F; {tool} -t $t -X; done"));
    }
    sh(&format!("{} -t nat -A POSTROUTING -s 10.9.9.0/24 -j RETURN", tools[0]));
    let flushed = saved();
    assert!(flushed != before);

    let (code, text) = said(&restore(&snapshot, "--dry-run"));
    assert!(code == Some(0) && text.contains("Dry run"), "{text}");
    assert!(text.contains("\n--A POSTROUTING -s 10.9.9.0/24 -j RETURN\n"), "{text}");
    let (code, text) = said(&restore(&snapshot, ""));
    assert!(code == Some(3) && text.contains("add --yes"), "{text}");
    assert!(saved() == flushed, "neither may change anything");
    assert!(!sh("ls /run").contains("proxyshift-restore"));

    let (code, text) = said(&restore(&snapshot, "--yes"));
    assert!(code == Some(0) && text.contains("DONE"), "{text}");
    assert!(saved() == before, "the tables are not as they were");
    assert!(sh("cat /run/proxyshift-restore.*/before/ip*").contains("10.9.9.0/24"));
}

#[test]
fn restore_sh_brings_flushed_nft_tables_back() {
    if in_namespaces("restore_sh_brings_flushed_nft_tables_back") {
        flush_and_restore(&docker(), "nft");
    }
}

#[test]
fn restore_sh_brings_flushed_legacy_tables_back() {
    if in_namespaces("restore_sh_brings_flushed_legacy_tables_back") {
        flush_and_restore(&captured("docker-legacy-iptables-1.20-no-conntrack"), "legacy");
    }
}

#[test]
fn restore_sh_makes_missing_sets_and_leaves_the_others() {
    if !in_namespaces("restore_sh_makes_missing_sets_and_leaves_the_others") {
        return;
    }
    let (_tmp, store) = store();
    sh("ipset create KEPT hash:ip; ipset add KEPT 10.0.0.1; ipset create GONE hash:ip,port
        ipset add GONE 10.0.0.2,tcp:80; ipset create LIST list:set; ipset add LIST GONE
        iptables-nft -A INPUT -m set --match-set GONE dst,dst -j ACCEPT");
    let files = Files::from([
        ("ipset.save".to_owned(), sh("ipset save").into()),
        ("iptables-nft.save".to_owned(), sh("iptables-nft-save -c").into()),
    ]);
    let snapshot = create(&store, &files);
    let before = rules("iptables-nft-save");
    sh("iptables-nft -F; ipset flush LIST; ipset destroy LIST; ipset destroy GONE
        ipset add KEPT 10.0.0.9");
    let (code, text) = said(&restore(&snapshot, "--yes"));
    assert!(code == Some(0) && text.contains("set GONE is missing"), "{text}");
    assert!(!text.contains("set KEPT is missing"), "{text}");
    assert_eq!(rules("iptables-nft-save"), before);
    let sets = sh("ipset save");
    for line in ["add GONE 10.0.0.2,tcp:80", "add LIST GONE", "add KEPT 10.0.0.9"] {
        assert!(sets.contains(line), "{line} is not in {sets}");
    }
}

#[test]
fn restore_sh_refuses_another_place_and_a_damaged_snapshot() {
    if !in_namespaces("restore_sh_refuses_another_place_and_a_damaged_snapshot") {
        return;
    }
    let (_tmp, store) = store();
    let here = || Manifest::for_this_node("test").unwrap();
    let elsewhere = [
        (Manifest { machine_id: "0123".into(), ..here() }, "another machine"),
        (Manifest { boot_id: "0123".into(), ..here() }, "another boot"),
        (Manifest { netns: 1, ..here() }, "another network namespace"),
    ];
    for (manifest, reason) in elsewhere {
        let snapshot = store.create(&docker(), manifest, &fine).unwrap();
        let (code, text) = said(&restore(&snapshot, "--yes"));
        assert!(code == Some(3) && text.contains(reason), "{text}");
        assert!(text.contains("--force") && text.contains("Nothing was changed"), "{text}");
        let (code, text) = said(&restore(&snapshot, "--dry-run --force"));
        assert!(code == Some(0) && text.contains("WARNING"), "{text}");
    }
    let snapshot = create(&store, &docker());
    let (code, text) = said(&restore(&snapshot, "--nonsense"));
    assert!(code == Some(2) && text.contains("usage"), "{text}");
    let save = snapshot.dir.join("iptables-nft.save");
    let text = fs::read_to_string(&save).unwrap();
    fs::write(&save, text.replace("MASQUERADE", "ACCEPT")).unwrap();
    let (code, text) = said(&restore(&snapshot, "--yes"));
    assert!(code == Some(3) && text.contains("iptables-nft.save: FAILED"), "{text}");
    assert_eq!(rules("iptables-nft-save"), "");
}

#[test]
fn restore_sh_says_so_when_it_fails_half_way() {
    if !in_namespaces("restore_sh_says_so_when_it_fails_half_way") {
        return;
    }
    let (_tmp, store) = store();
    let mut files = docker();
    files.insert("ip6tables-nft.save".into(), "*filter\n-A INPUT -j NO-SUCH\nCOMMIT\n".into());
    let snapshot = create(&store, &files);
    let (code, text) = said(&restore(&snapshot, "--yes"));
    assert!(code == Some(5) && text.contains("did not take ip6tables-nft.save"), "{text}");
    assert!(text.contains("/before"), "{text}");
}
