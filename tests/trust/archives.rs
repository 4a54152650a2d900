//! Archives and directories of snapshots that somebody else made.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use proxyshift::store::Store;
use proxyshift::store::archive;
use proxyshift::store::manifest::Manifest;
use proxyshift::store::snapshots::Snapshot;
use tar::{Builder, EntryType, Header};

use crate::common::node::{Ended, Proxyshift, captured};
use crate::common::run_with;

/// A snapshot in a store of somebody else's, and the program with a store of its own.
struct Sent {
    tmp: tempfile::TempDir,
    proxyshift: Proxyshift,
    id: String,
    dir: PathBuf,
}

impl Sent {
    fn new() -> Sent {
        Sent::of(Manifest::for_this_node("by somebody").expect("a manifest"))
    }

    fn of(manifest: Manifest) -> Sent {
        let tmp = tempfile::tempdir().expect("a folder");
        let store = Store::open(Some(&tmp.path().join("theirs"))).expect("a store");
        let Snapshot { id, dir } = snapshot(&store, manifest);
        let proxyshift = Proxyshift::of_store(tmp.path().join("ours"));
        Sent { tmp, proxyshift, id, dir }
    }

    fn path(&self, name: &str) -> String {
        self.tmp.path().join(name).display().to_string()
    }

    /// An archive of the snapshot, after the shell script `change` was run in its folder and the
    /// checksums were made anew.
    fn archive(&self, change: &str) -> String {
        let (dir, out) = (self.dir.display(), self.path("sent.tar.gz"));
        sh(&format!(
            "cd {dir}; {change}\n{SUM_AGAIN}; rm -f {out}; cd ..; tar czf {out} {}",
            self.id
        ));
        out
    }

    fn imported(&self) -> PathBuf {
        self.proxyshift.store.join("imported").join(&self.id)
    }

    /// Imports `archive`, which must be refused with the reason `why`, at once, in few words, and
    /// with little memory.
    fn is_refused(&self, archive: &str, why: &str) {
        let began = Instant::now();
        let ended = with_memory(&self.proxyshift, &format!("snapshot import {archive}"));
        let what = format!("{why}: {:?} {:.300}{:.300}", ended.code, ended.out, ended.err);
        assert_eq!(ended.code, Some(3), "{what}");
        assert!(ended.err.contains(why) && ended.err.contains("next:"), "{what}");
        assert!(ended.err.len() < 3000, "{why}: {} bytes of error", ended.err.len());
        assert!(began.elapsed() < Duration::from_secs(20), "{why}: {:?}", began.elapsed());
        for folder in ["snapshots", "imported"] {
            let left = fs::read_dir(self.proxyshift.store.join(folder)).into_iter().flatten();
            assert_eq!(left.count(), 0, "{why}: something is left in {folder}");
        }
    }
}

const SUM_AGAIN: &str = "find . -type f ! -name SHA256SUMS | sed s,^./,, | LC_ALL=C sort | \
                         xargs -d '\\n' sha256sum > SHA256SUMS";

fn sh(script: &str) -> String {
    run_with(script, &["sh", "-e"])
}

fn snapshot(store: &Store, manifest: Manifest) -> Snapshot {
    let files = Snapshot::load(&captured("docker-iptables-1.30")).expect("a capture").files;
    store.create(&files, manifest, &|_| Ok(())).expect("a snapshot")
}

/// Runs the program with 600 MB of address space, so that it cannot read a bomb into memory, and
/// ends it after 30 s, so that it cannot wait for a pipe.
fn with_memory(proxyshift: &Proxyshift, words: &str) -> Ended {
    let limited = ["timeout", "30", "prlimit", "--as=600000000", "--"].map(str::to_owned).to_vec();
    Proxyshift { within: limited, ..proxyshift.clone() }.run(words)
}

/// Writes an archive of entries with these kinds, names and sizes; each is filled with `n`.
fn write_archive(path: &str, entries: &[(EntryType, &str, u64)]) {
    let file = File::create(path).expect("a file");
    let mut builder = Builder::new(GzEncoder::new(file, Compression::best()));
    for (kind, name, size) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(*size);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, std::io::Read::take(std::io::repeat(b'n'), *size)).expect("one");
    }
    builder.into_inner().expect("an archive").finish().expect("compressed").flush().expect("all");
}

/// Writes an archive of one entry of this kind, with 300 MB of zeros.
fn write_bomb(path: &str, kind: EntryType) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(300 << 20);
    header.set_cksum();
    let file = File::create(path).expect("a file");
    (&file).write_all(header.as_bytes()).expect("written");
    file.set_len(301 << 20).expect("holes");
    sh(&format!("gzip -1 < {path} > {path}.gz; mv {path}.gz {path}"));
}

#[test]
fn root_runs_no_script_that_an_archive_brought() {
    let sent = Sent::new();
    let pwned = sent.path("PWNED");
    let ours = fs::read_to_string(sent.dir.join("restore.sh")).expect("a script");
    for script in [
        format!("id > {pwned}"),
        format!("{ours}\nid > {pwned}"),
        format!("#!/bin/sh\nid > {pwned}\n{}", ours.trim_start_matches("#!/bin/sh\n")),
    ] {
        fs::write(sent.dir.join("restore.sh"), script).expect("written");
        let out = sent.archive("chmod 4777 restore.sh rule.json");
        sent.proxyshift.expect(0, &format!("snapshot import {out}"));
        sent.proxyshift.expect(0, &format!("snapshot verify {}", sent.id));
        let script = sent.imported().join("snapshot/restore.sh");
        let run = format!("sh {} --dry-run || :", script.display());
        sh(&run);
        assert!(!Path::new(&pwned).exists());
        assert_eq!(fs::read_to_string(&script).expect("a script"), ours);
        for entry in sh(&format!("find {} -type f", sent.imported().display())).lines() {
            assert_eq!(fs::metadata(entry).expect("a file").mode() & 0o7777, 0o600, "{entry}");
        }
        // The same again is the snapshot that is there.
        let twice = sent.proxyshift.expect(0, &format!("snapshot import {out} -o json")).json();
        assert_eq!(twice["snapshot"], sent.id.as_str());
        fs::remove_dir_all(&sent.proxyshift.store).expect("removed");
    }
}

#[test]
fn a_script_that_is_not_ours_is_refused_where_it_lies() {
    let sent = Sent::new();
    let dir = sent.dir.display().to_string();
    sent.proxyshift.expect(0, &format!("snapshot verify {dir}"));
    for change in ["echo id > restore.sh", "sed -i '2i id' restore.sh", "echo id >> restore.sh"] {
        sh(&format!("cp -a {dir} {dir}.good; cd {dir}; {change}\n{SUM_AGAIN}"));
        for words in [
            format!("snapshot verify {dir}"),
            format!("snapshot show {dir}"),
            format!("plan --snapshot {dir}"),
            format!("snapshot export {dir} {}", sent.path("out.tar.gz")),
        ] {
            let ended = sent.proxyshift.expect(3, &words);
            ended.reports(&["restore.sh", "not the script", "do not run it"]);
        }
        sh(&format!("rm -r {dir}; mv {dir}.good {dir}"));
    }
}

#[test]
fn files_that_no_capture_makes_are_left_out() {
    let sent = Sent::new();
    let out = sent.archive(
        "echo id > fix.sh; echo id > ip_tables; echo {} > imported.json; echo {} > run.json
         mkdir snapshots; echo x > snapshots/y; echo x > .hidden; echo [] > lookalikes.json",
    );
    sent.proxyshift.expect(0, &format!("snapshot import {out}"));
    sent.proxyshift.expect(0, &format!("snapshot verify {}", sent.id));
    let listed = |dir: &Path| sh(&format!("cd {} && find . -type f | sort", dir.display()));
    let kept = listed(&sent.imported().join("snapshot"));
    for name in ["fix.sh", "ip_tables", "imported.json", "run.json", "snapshots", "hidden"] {
        assert!(!kept.contains(name), "{name}: {kept}");
    }
    assert!(kept.contains("./iptables-nft.save") && kept.contains("./files/"), "{kept}");
    assert!(kept.contains("./lookalikes.json"), "{kept}");
    // A directory in the place of the script is no way around it.
    let sent = Sent::new();
    let out = sent.archive("rm restore.sh; mkdir restore.sh; echo id > restore.sh/x");
    sent.proxyshift.expect(0, &format!("snapshot import {out}"));
    assert!(sent.imported().join("snapshot/restore.sh").is_file());
}

#[test]
fn a_rule_that_names_a_program_is_refused() {
    for rule in ["-M /run/evil -j ACCEPT", "--modprobe=/run/evil -j ACCEPT", "-nM/run/evil"] {
        let sent = Sent::new();
        let out = sent.archive(&format!("sed -i '/^COMMIT/i -A INPUT {rule}' iptables-nft.save"));
        sent.is_refused(&out, "iptables-nft.save");
        for words in ["snapshot verify", "plan --snapshot", "rehearse --snapshot"] {
            let words = format!("{words} {}", sent.dir.display());
            sent.proxyshift.expect(3, &words).reports(&["iptables-nft.save"]);
        }
    }
}

#[test]
fn a_manifest_must_have_the_form_of_ours() {
    for (field, value) in [
        ("id", "z0-20990101T000000Z"),
        ("id", "imported.json"),
        ("id", "2"),
        ("id", "../../x"),
        ("time", "yesterday"),
    ] {
        let sent = Sent::new();
        let out = sent.archive(&format!(
            "sed -i 's|^  \"{field}\": .*|  \"{field}\": \"{value}\",|' manifest.json"
        ));
        sent.is_refused(&out, "manifest.json");
    }
    let sent = Sent::new();
    let long = "n".repeat(100_000);
    let manifest = sent.dir.join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("a manifest");
    for (what, with) in [
        ("\"why\": \"", format!("\"why\": \"{long}")),
        ("\"id\": \"", format!("\"id\": \"{long}")),
        ("\"format\": 1", format!("\"format\": \"{long}\"")),
        ("\"format\": 1", format!("\"format\": 2, \"x\": \"{long}\"")),
    ] {
        assert!(text.contains(what), "{text}");
        fs::write(&manifest, text.replace(what, &with)).expect("written");
        sent.is_refused(&sent.archive(""), "manifest.json");
    }
}

#[test]
fn what_was_imported_stays_apart_and_marked() {
    let future = Manifest {
        id: "20990101T000000Z-ffffff".into(),
        time: "2099-01-01T00:00:00Z".into(),
        ..Manifest::for_this_node("by somebody").expect("a manifest")
    };
    let sent = Sent::of(future);
    // No field of the manifest takes the mark away or makes one.
    let out = sent.archive("sed -i '2i \"imported\": null, \"from\": \"here\",' manifest.json");
    let store = Store::open(Some(&sent.proxyshift.store)).expect("a store");
    let own: Vec<String> = (0..3)
        .map(|_| snapshot(&store, Manifest::for_this_node("own").expect("a manifest")).id)
        .collect();
    let run = |words: &str| sent.proxyshift.expect(0, words);
    run(&format!("snapshot import {out}"));

    let list = run("snapshot list -o json").json();
    let list = list["snapshots"].as_array().expect("a list");
    assert_eq!(list.len(), 4);
    for listed in list {
        let marked = listed["imported"]["from"] == out.as_str();
        assert_eq!(marked, listed["id"] == sent.id.as_str(), "{listed}");
        assert!(marked || listed["imported"].is_null(), "{listed}");
    }
    assert!(run("snapshot list").out.contains(&format!("; imported from {out}, 2")));
    let show = run(&format!("snapshot show {} -o json", sent.id)).json();
    assert_eq!(show["imported"]["from"], out.as_str());
    assert!(run("snapshot show 2099").out.contains("; imported from"), "by a prefix too");
    assert!(run("snapshot show").out.starts_with(&own[2]), "latest is our own");

    let pruned = run("snapshot prune --keep 1 -o json").json();
    assert_eq!(pruned["removed"].as_array().map(Vec::len), Some(2), "{pruned}");
    assert!(sent.imported().exists());
    assert!(run("snapshot show latest").out.starts_with(&own[2]));

    // What is exported again is the archive that its maker would have exported.
    let again = sent.path("again.tar.gz");
    run(&format!("snapshot export {} {again}", sent.id));
    assert!(!sh(&format!("tar tzf {again}")).contains("imported"));
    let third = Proxyshift::of_store(sent.tmp.path().join("third"));
    third.expect(0, &format!("snapshot import {again}"));
    let none = third.expect(3, "snapshot show");
    none.reports(&["no snapshot that was taken here", "snapshot list"]);
}

#[test]
fn an_export_is_the_same_after_an_import() {
    let sent = Sent::new();
    let (first, again) = (sent.path("first.tar.gz"), sent.path("again.tar.gz"));
    archive::export(&sent.dir, Path::new(&first)).expect("an archive");
    sent.proxyshift.expect(0, &format!("snapshot import {first}"));
    sent.proxyshift.expect(0, &format!("snapshot export {} {again}", sent.id));
    assert_eq!(fs::read(first).expect("read"), fs::read(again).expect("read"));
}

#[test]
fn no_import_stands_for_the_snapshot_of_a_run() {
    use proxyshift::store::run::{CleanupOptions, RunKind, RunState};
    let sent = Sent::new();
    let out = sent.archive("");
    let store = Store::open(Some(&sent.proxyshift.store)).expect("a store");
    let mut run =
        store.start(RunKind::Cleanup(CleanupOptions::default()), &sent.id).expect("a run");
    store.finish(&mut run, RunState::Done).expect("done");
    sent.proxyshift.expect(0, &format!("snapshot import {out}"));
    let report = sent.proxyshift.expect(0, "report -o json").json();
    assert!(report["node"].is_null(), "{}", report["node"]);
}

#[test]
fn a_long_name_takes_no_memory_and_no_room_on_the_terminal() {
    use EntryType::{GNULongLink, GNULongName, Regular, XGlobalHeader, XHeader};
    let sent = Sent::new();
    let out = sent.path("bomb.tar.gz");
    for kind in [GNULongName, GNULongLink, XHeader, XGlobalHeader] {
        write_bomb(&out, kind);
        assert!(fs::metadata(&out).expect("a file").len() < 2 << 20);
        sent.is_refused(&out, "bomb.tar.gz");
    }
    // Names within the limit, but not within those of a path; and many of them.
    write_archive(&out, &[(GNULongName, "././@LongLink", 60_000), (Regular, "s/a", 0)]);
    sent.is_refused(&out, "nnnn");
}

#[test]
fn a_long_name_within_the_limits_is_taken() {
    for format in ["gnu", "pax"] {
        let sent = Sent::new();
        let name = format!("files/{}/{}", "d".repeat(250), "n".repeat(250));
        let parent = name.rsplit_once('/').expect("a folder").0;
        sent.archive(&format!("mkdir -p {parent}; echo x > {name}"));
        let (out, theirs) = (sent.path("long.tar.gz"), sent.path("theirs/snapshots"));
        sh(&format!("tar czf {out} --format={format} -C {theirs} {}", sent.id));
        sent.proxyshift.expect(0, &format!("snapshot import {out}"));
        assert!(sent.imported().join("snapshot").join(name).is_file(), "{format}");
    }
}

#[test]
fn what_no_folder_can_hold_is_refused_and_leaves_nothing() {
    use EntryType::{Directory, GNULongName, Regular};
    let sent = Sent::new();
    let out = sent.path("clash.tar.gz");
    let clash = "a file and a directory of the same name";
    for (entries, why) in [
        (vec![(Regular, "s/a", 1), (Regular, "s/a/b", 1)], clash),
        (vec![(Regular, "s/a/b", 1), (Regular, "s/a", 1)], clash),
        (vec![(Directory, "s/a/", 0), (Regular, "s/a", 1)], clash),
        (vec![(Regular, "s/a", 1), (Directory, "s/a", 0)], clash),
        (vec![(Regular, "s/a/b/c", 1), (Regular, "s/a/b", 1)], clash),
        (vec![(GNULongName, "x", 256), (Regular, "s/a", 1)], "a name that is too long"),
        (vec![(GNULongName, "x", 5000), (Regular, "s/a", 1)], "too long"),
        (vec![(Regular, "s//a", 1)], "an empty part"),
        (vec![(Regular, "s/a/", 1)], "an empty part"),
        (vec![(Regular, "", 1)], "an empty part"),
        (vec![(GNULongName, "x", 0), (Regular, "s/a", 1)], "an empty part"),
        (vec![(Regular, "s", 1)], "a file outside of any directory"),
        (vec![(EntryType::Char, "s/null", 0)], "neither file nor directory"),
        (vec![(EntryType::Block, "s/sda", 0)], "neither file nor directory"),
        (vec![(EntryType::GNUSparse, "s/holes", 0)], "neither file nor directory"),
    ] {
        write_archive(&out, &entries);
        sent.is_refused(&out, why);
    }
    // A name with a NUL, a path deeper than a snapshot is, and names longer than a file system's.
    let deep = "d/".repeat(100);
    for (make, why) in [
        (format!("mkdir -p s/{deep}; touch s/{deep}/f; tar czf {out} s"), "without end"),
        (
            format!(
                "mkdir -p s; touch s/a; tar czf {out} --transform 's,a$,{},' s",
                "n".repeat(256)
            ),
            "too long",
        ),
        (
            format!(
                "mkdir -p s; touch s/a; tar czf {out} --format=pax --transform 's,a$,{},' s",
                "n/".repeat(2000) + "n"
            ),
            "too long",
        ),
        (
            format!("mkdir -p s; touch s/a; tar czf {out} --format=pax --pax-option='path:=s/' s"),
            "an empty part",
        ),
    ] {
        sh(&format!("cd {}; {make}; rm -r s", sent.tmp.path().display()));
        sent.is_refused(&out, why);
    }
}

#[test]
fn what_is_no_regular_file_is_refused_and_not_waited_for() {
    let sent = Sent::new();
    let dir = sent.dir.display().to_string();
    let pipe = sent.path("pipe");
    sh(&format!("mkfifo {pipe}"));
    for what in [pipe.as_str(), "/dev/zero", "/dev/tty", &dir, "/proc/self"] {
        sent.is_refused(what, "no regular file");
    }
    sent.is_refused(&format!("{pipe}/x"), "cannot be read");
    let listener = std::os::unix::net::UnixListener::bind(sent.path("socket")).expect("a socket");
    sent.is_refused(&sent.path("socket"), "no regular file");
    drop(listener);

    let socket = format!("python3 -c 'import socket; socket.socket(1).bind(\"{dir}/rule.json\")'");
    for make in [
        format!("mkfifo {dir}/rule.json"),
        format!("mknod {dir}/rule.json c 1 5"),
        format!("ln -s /etc/shadow {dir}/rule.json"),
        format!("truncate -s 4G {dir}/rule.json"),
        socket,
    ] {
        sh(&format!("mv {dir}/rule.json {dir}/../kept; {make}"));
        for words in ["snapshot verify", "snapshot show", "plan --snapshot", "check --snapshot"] {
            let ended = with_memory(&sent.proxyshift, &format!("{words} {dir}"));
            assert_eq!(ended.code, Some(3), "{make}: {words}: {}{}", ended.out, ended.err);
            ended.reports(&["rule.json", "next:"]);
        }
        sh(&format!("rm {dir}/rule.json; mv {dir}/../kept {dir}/rule.json"));
    }
    // A file may be an archive; this one is none.
    for (name, what, cause) in
        [("a-file", "touch", "cannot be read"), ("a-pipe", "mkfifo", "no directory")]
    {
        let path = sent.path(name);
        sh(&format!("{what} {path}"));
        sent.proxyshift.expect(3, &format!("snapshot verify {path}")).reports(&[cause]);
    }
    let deep = format!("{dir}/files/{}", "d/".repeat(100));
    sh(&format!("mkdir -p {deep}"));
    sent.proxyshift.expect(3, &format!("snapshot verify {dir}")).reports(&["without end"]);
}
