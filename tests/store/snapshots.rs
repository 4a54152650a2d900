//! Snapshots in the store: written, read back, refused, found and pruned.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use proxyshift::error::{Error, Kind};
use proxyshift::state::Files;
use proxyshift::store::manifest::Manifest;
use proxyshift::store::snapshots::Snapshot;

use super::{all_below, create, docker, fine, is_empty, sh, store};

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
fn a_bare_directory_is_read_only() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots/docker-iptables-1.30");
    let loaded = Snapshot::load(&dir).unwrap();
    assert!(loaded.manifest.is_none());
    assert!(loaded.files.contains_key("files/var/lib/kube-proxy/config.conf"));
    assert_eq!(loaded.for_rollback().unwrap_err().kind, Kind::SnapshotRefused);
    assert_eq!(Snapshot::load(Path::new("/no/such")).unwrap_err().kind, Kind::NotFound);
}

#[test]
fn nothing_is_left_of_a_snapshot_that_failed() {
    let (_tmp, store) = store();
    let manifest = || Manifest::for_this_node("test").unwrap();
    let bad = |_: &Files| Err(Error::new(Kind::LossyCapture, "iptables-nft.save", "no table"));
    let error = store.create(&docker(), manifest(), &bad).unwrap_err();
    assert_eq!(error.kind, Kind::LossyCapture);
    for path in ["../escaped", "/etc/passwd", "SHA256SUMS", "a\nb"] {
        let files = Files::from([(path.to_owned(), "x".into())]);
        let error = store.create(&files, manifest(), &fine).unwrap_err();
        assert!(error.object == path && error.cause.contains("cannot be kept"), "{error}");
    }
    assert!(is_empty(&store.snapshots_dir()));
}

/// The reason why a valid snapshot is refused after `change` was made to its folder.
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
fn any_file_cut_changed_or_removed_is_noticed() {
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

/// Computes the checksums of the files in `dir` again.
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
    assert_eq!(ids, [("0-empty", false), ("9-renamed", false), (second.id.as_str(), true)]);
    assert!(list[1].manifest.as_ref().unwrap_err().cause.contains("renamed"));
    assert_eq!(store.latest().unwrap().unwrap(), second);
    assert_eq!(store.strays().unwrap().len(), 2);
}

#[test]
fn pruning_leaves_the_newest_and_the_needed() {
    let (_tmp, store) = store();
    for n in 1..=5 {
        let manifest =
            Manifest { id: format!("2026-{n}"), ..Manifest::for_this_node("t").unwrap() };
        store.create(&docker(), manifest, &fine).unwrap();
    }
    let half_made = store.snapshots_dir().join(".new-in-hand");
    let abandoned = store.snapshots_dir().join(".new-abandoned");
    fs::create_dir(&half_made).unwrap();
    fs::create_dir(&abandoned).unwrap();
    sh(&format!("touch -d '2 days ago' {}", abandoned.display()));
    let needed = BTreeSet::from(["2026-2".to_owned()]);
    assert_eq!(store.prune(2, &needed).unwrap(), ["2026-1", "2026-3"]);
    let left: Vec<String> = store.list().unwrap().into_iter().map(|l| l.snapshot.id).collect();
    assert_eq!(left, ["2026-2", "2026-4", "2026-5"]);
    assert!(half_made.exists() && !abandoned.exists());
    assert!(store.prune(10, &needed).unwrap().is_empty());
}
