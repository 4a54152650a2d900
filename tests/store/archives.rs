//! Archives of snapshots: moved from one store to another, and malicious ones.

use std::fs;
use std::os::unix::fs::MetadataExt;

use proxyshift::error::Kind;
use proxyshift::store::Store;
use proxyshift::store::archive;
use proxyshift::store::manifest::Manifest;
use proxyshift::store::snapshots::Snapshot;

use super::{create, docker, fine, is_empty, sh, store};

#[test]
fn an_archive_brings_the_same_snapshot_to_another_store() {
    let (tmp, local) = store();
    let snapshot = create(&local, &docker());
    let [one, two] = ["one.tar.gz", "two.tar.gz"].map(|name| tmp.path().join(name));
    archive::export(&snapshot.dir, &one).unwrap();
    archive::export(&snapshot.dir, &two).unwrap();
    assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
    assert_eq!(fs::metadata(&one).unwrap().mode() & 0o7777, 0o600);
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
    assert!(is_empty(&there.snapshots_dir()));
    assert_eq!(fs::read_dir(there.imported_dir()).unwrap().count(), 1);
    let error = archive::export(&imported.dir, &tmp.path().join("three")).unwrap_err();
    assert_eq!(error.kind, Kind::SnapshotRefused);
    assert!(!tmp.path().join("three").exists());
}

#[test]
fn an_archive_that_tar_made_is_as_good() {
    let (tmp, local) = store();
    let snapshot = create(&local, &docker());
    let to = tmp.path().join("by-hand.tar.gz");
    let snapshots = local.snapshots_dir();
    sh(&format!("tar czf {} -C {} {}", to.display(), snapshots.display(), snapshot.id));
    let there = Store::open(Some(&tmp.path().join("there"))).unwrap();
    assert_eq!(there.import(&to, &fine).unwrap().id, snapshot.id);
}

/// The reason why an archive is refused. The shell script `make` writes the archive to `$out`, in a
/// folder that has a valid snapshot `s`, and `t`, the same snapshot with another name.
fn import_refusal(make: &str) -> String {
    let (tmp, local) = store();
    for name in ["s", "t"] {
        let manifest = Manifest { id: name.into(), ..Manifest::for_this_node("test").unwrap() };
        local.create(&docker(), manifest, &fine).unwrap();
    }
    let out = tmp.path().join("hostile.tar.gz");
    let dir = local.snapshots_dir();
    sh(&format!("cd {}; out={}; {make}", dir.display(), out.display()));
    let there = Store::open(Some(&tmp.path().join("there"))).unwrap();
    let error = there.import(&out, &fine).unwrap_err();
    assert_eq!(error.kind, Kind::SnapshotRefused, "{make}: {error}");
    assert!(is_empty(&there.snapshots_dir()), "{make} leaves something behind");
    assert!(!there.imported_dir().exists(), "{make} leaves something behind");
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
