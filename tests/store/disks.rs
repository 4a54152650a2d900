//! The store on disks that are full or read-only.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use proxyshift::error::Kind;
use proxyshift::state::Files;
use proxyshift::store::Store;
use proxyshift::store::archive;
use proxyshift::store::journal::{self, Journal};
use proxyshift::store::manifest::Manifest;
use proxyshift::store::run::{CleanupOptions, RunKind, RunState};

use super::{create, docker, fine, folder, in_namespaces, is_empty, record, sh, store};

/// Fills up the disk on which `dir` is.
fn fill(dir: &Path) {
    let command = format!("cat /dev/zero > {}/filling", dir.display());
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"), "{output:?}");
}

#[test]
fn a_full_disk_stops_a_snapshot_but_no_run() {
    if !in_namespaces("disks::a_full_disk_stops_a_snapshot_but_no_run") {
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

    let mut run = store.start(RunKind::Cleanup(CleanupOptions::default()), "s").unwrap();
    let dir = store.run_dir(&run.id);
    let mut journal = Journal::create(&folder(&dir), 64 * 1024).unwrap();
    journal.append(record(0)).unwrap();
    fill(disk);
    assert_eq!(
        Journal::create(&folder(disk), 4096).unwrap_err().kind,
        Kind::Store,
        "the disk is not full"
    );

    // The space that was reserved for the journal is enough, even after a line that was written
    // only in part.
    for step in 1..40 {
        journal.append(record(step)).unwrap();
    }
    drop(journal);
    let path = dir.join(journal::JOURNAL);
    let length = fs::metadata(&path).unwrap().len();
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"v\":1,\"seq\":41,\"at\":\"20").unwrap();
    let (mut journal, entries) = Journal::open::<serde_json::Value>(&folder(&dir)).unwrap();
    assert_eq!(entries.len(), 40);
    for step in 40..60 {
        journal.append(record(step)).unwrap();
    }
    assert!(fs::metadata(&path).unwrap().len() > length);
    for state in [RunState::Unconfirmed, RunState::Running, RunState::UndonePartly] {
        store.finish(&mut run, state).unwrap();
        assert_eq!(store.runs().unwrap()[0].state, state);
    }

    // Beyond the reserved space appending fails, and the lines written before stay readable.
    let mut written = 60;
    let error = loop {
        match journal.append(record(written)) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 2000);
    };
    assert_eq!(error.kind, Kind::Store);
    assert_eq!(journal::read::<serde_json::Value>(&folder(&dir)).unwrap().len() as u32, written);
    fs::remove_file(disk.join("filling")).unwrap();
    journal.append(record(written)).unwrap();
    assert_eq!(
        journal::read::<serde_json::Value>(&folder(&dir)).unwrap().len() as u32,
        written + 1
    );
}

#[test]
fn a_disk_that_fills_up_half_way_keeps_nothing() {
    if !in_namespaces("disks::a_disk_that_fills_up_half_way_keeps_nothing") {
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
    assert!(!store.imported_dir().exists() || is_empty(&store.imported_dir()));

    sh("mount -o remount,ro /run/disk");
    let store = Store::open(Some(Path::new("/run/disk/store"))).unwrap();
    let manifest = Manifest::for_this_node("test").unwrap();
    let error = store.create(&docker(), manifest, &fine).unwrap_err();
    assert_eq!(error.kind, Kind::Store);
    assert!(error.hint.unwrap().contains("--store"));
    assert_eq!(
        store.start(RunKind::Cleanup(CleanupOptions::default()), "s").unwrap_err().kind,
        Kind::Store
    );
    let error = Store::open(Some(Path::new("/run/disk/other"))).unwrap_err();
    assert_eq!(error.kind, Kind::Store);
}
