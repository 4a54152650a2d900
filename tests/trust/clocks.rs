//! Neither the clock nor an identifier decides which run and which snapshot is the last, and what
//! else lies in the store stops nobody.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use proxyshift::state::Backend;
use serde_json::{Value, json};

use crate::common::node::{Case, Proxyshift, assert_same};
use crate::common::{in_namespace, poll, run};

fn case() -> Case {
    Case::of("half-migrated-ipvs-1.20", Backend::Nft)
}

/// Parses the JSON file, changes the document, and writes it back.
fn rewrite(path: &Path, change: impl Fn(&mut Value)) {
    let text = fs::read_to_string(path).expect("a document");
    let mut document = serde_json::from_str(&text).expect("JSON");
    change(&mut document);
    fs::write(path, document.to_string()).expect("written");
}

/// The identifier of the last run, by `status`.
fn last_run(proxyshift: &Proxyshift) -> String {
    let status = proxyshift.run("status -o json").json();
    status["runs"][0]["id"].as_str().expect("a run").to_owned()
}

/// The identifier of the snapshot of the run `id`.
fn snapshot_of(proxyshift: &Proxyshift, id: &str) -> String {
    let path = proxyshift.store.join("runs").join(id).join("run.json");
    let run: Value = serde_json::from_str(&fs::read_to_string(path).expect("a run")).expect("JSON");
    run["snapshot"].as_str().expect("an id").to_owned()
}

/// Copies the run `from` and its snapshot, as if a clock had said `to` when it began. Without a
/// number the copy is one of a version that gave none.
fn copy_run(proxyshift: &Proxyshift, from: &str, to: &str, seq: Option<u64>, state: &str) {
    let store = proxyshift.store.display();
    let snapshot = snapshot_of(proxyshift, from);
    run(&format!("cp -a {store}/runs/{from} {store}/runs/{to}"));
    run(&format!("cp -a {store}/snapshots/{snapshot} {store}/snapshots/{to}"));
    let number = |document: &mut Value, seq: Option<u64>| match seq {
        Some(seq) => document["seq"] = json!(seq),
        None => drop(document.as_object_mut().expect("an object").remove("seq")),
    };
    let folder = |name: &str| proxyshift.store.join(name).join(to);
    rewrite(&folder("snapshots").join("manifest.json"), |manifest| {
        manifest["id"] = json!(to);
        number(manifest, seq.map(|seq| seq - 1));
    });
    rewrite(&folder("runs").join("run.json"), |run| {
        (run["id"], run["snapshot"], run["state"]) = (json!(to), json!(to), json!(state));
        number(run, seq);
    });
}

#[test]
fn a_clock_that_was_years_ahead_costs_no_run_its_rollback() {
    if !in_namespace("clocks::a_clock_that_was_years_ahead_costs_no_run_its_rollback") {
        return;
    }
    let Case { node, proxyshift, before } = &case();
    proxyshift.expect(0, "cleanup --yes");
    let first = last_run(proxyshift);
    node.load_rules(before);
    for n in 0..10u64 {
        // The first five are of a version that gave no numbers.
        let seq = (n >= 5).then_some(10 + 2 * n);
        copy_run(proxyshift, &first, &format!("20361121T20150{n}Z-000000"), seq, "done");
    }
    let ended = proxyshift.expect(0, "cleanup --yes -o json").json();
    let id = last_run(proxyshift);
    assert!(!id.starts_with("2036"), "{id}");
    assert_eq!(ended["run"], json!(id));
    assert_eq!(proxyshift.expect(0, "report -o json").json()["run"], json!(id));
    let snapshot = snapshot_of(proxyshift, &id);
    let listed = proxyshift.expect(0, "snapshot list -o json").json();
    let last = listed["snapshots"].as_array().and_then(|all| all.last()).expect("snapshots");
    assert_eq!(last["id"], json!(snapshot), "{listed}");
    proxyshift.expect(0, "snapshot prune --keep 1");
    proxyshift.expect(0, &format!("snapshot verify {snapshot}"));
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), before, "rolled back");
}

#[test]
fn a_clock_that_is_set_back_by_a_day_leaves_the_order() {
    if !in_namespace("clocks::a_clock_that_is_set_back_by_a_day_leaves_the_order") {
        return;
    }
    let Case { node, proxyshift, before } = &case();
    proxyshift.expect(0, "cleanup --yes");
    let early = last_run(proxyshift);
    node.load_rules(before);
    // That run began tomorrow, by the clock of then.
    let status = proxyshift.run("status -o json").json();
    let began = status["runs"][0]["started"].as_str().expect("a time").to_owned();
    let year: u32 = began[..4].parse().expect("a year");
    let tomorrow = format!("{}{}", year + 1, &early[4..]);
    let seq = Some(2);
    copy_run(proxyshift, &early, &tomorrow, seq, "done");
    fs::remove_dir_all(proxyshift.store.join("runs").join(&early)).expect("removed");
    let taken = proxyshift.expect(0, "snapshot create -o json").json();
    let snapshot = taken["snapshot"].as_str().expect("an id").to_owned();
    let shown = proxyshift.expect(0, "snapshot show -o json").json();
    assert!(shown.to_string().contains(&snapshot), "latest: {shown}");
    proxyshift.expect(0, "cleanup --yes");
    assert_ne!(last_run(proxyshift), tomorrow);
    let ended = proxyshift.expect(0, &format!("rollback --to {snapshot} --yes"));
    assert!(!format!("{}{}", ended.out, ended.err).contains(&tomorrow), "{}", ended.err);
    assert_same(&node.rules(), before, "rolled back to the snapshot");
}

#[test]
fn the_last_done_run_of_this_boot_is_not_pruned() {
    if !in_namespace("clocks::the_last_done_run_of_this_boot_is_not_pruned") {
        return;
    }
    let Case { node, proxyshift, before } = &case();
    proxyshift.expect(0, "cleanup --yes");
    let done = last_run(proxyshift);
    let after = node.rules();
    for n in 0..12u64 {
        let id = format!("20361121T2015{n:02}Z-000000");
        copy_run(proxyshift, &done, &id, Some(10 + 2 * n), "rolled-back");
    }
    node.load_rules(before);
    // It prunes, and is undone.
    proxyshift.killed("cleanup --yes", "after:1");
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), before, "the second is undone");
    proxyshift.expect(0, "snapshot prune --keep 1");
    node.load_rules(&after);
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), before, "the first is undone");
}

/// Entries that are no run and no snapshot.
fn litter(store: &Path, id: &str) -> Vec<String> {
    let runs = store.join("runs");
    fs::create_dir(runs.join("tmp-backup")).expect("a folder");
    fs::write(runs.join("notes.txt"), "mind the gap").expect("a file");
    symlink("/run/nowhere", runs.join("dangling")).expect("a link");
    let snapshots = store.join("snapshots");
    fs::create_dir(snapshots.join("zzz-backup")).expect("a folder");
    fs::write(snapshots.join("zzz-notes"), "").expect("a file");
    fs::create_dir(snapshots.join("zzz-empty")).expect("a folder");
    fs::write(snapshots.join("zzz-empty/manifest.json"), "").expect("a file");
    fs::create_dir(snapshots.join("zzz-pipe")).expect("a folder");
    let (runs, snapshots) = (runs.display(), snapshots.display());
    run(&format!("mkfifo {snapshots}/zzz-pipe/manifest.json"));
    run(&format!("mkfifo {runs}/pipe"));
    run(&format!("cp -a {runs}/{id} {runs}/{id}.bak"));
    run(&format!("cp -a {snapshots}/{id} {snapshots}/zzz-copy"));
    ["tmp-backup", "notes.txt", "dangling", "runs/pipe", "zzz-backup", "zzz-notes", "zzz-empty"]
        .into_iter()
        .chain(["zzz-pipe", "zzz-copy", ".bak"])
        .map(str::to_owned)
        .collect()
}

/// Makes a `run.json` that cannot be read, in the folder `unread`.
fn unread(store: &Path, what: &str) {
    let folder = store.join("runs/unread");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).expect("a folder");
    let json = folder.join("run.json");
    match what {
        "a pipe" => run(&format!("mkfifo {}", json.display())).clear(),
        "a device" => symlink("/dev/zero", &json).expect("a link"),
        text => fs::write(&json, text).expect("a file"),
    }
}

const UNREAD: [&str; 6] = ["a pipe", "a device", "", "{", r#"{"v":2,"id":"unread"}"#, r#"{"v":1}"#];

#[test]
fn a_stray_entry_in_the_store_stops_nobody() {
    if !in_namespace("clocks::a_stray_entry_in_the_store_stops_nobody") {
        return;
    }
    let Case { node, proxyshift, before } = &case();
    proxyshift.expect(0, "cleanup --yes --confirm-within 10m");
    let id = last_run(proxyshift);
    let snapshot = snapshot_of(proxyshift, &id);
    // The copy of a snapshot needs the snapshot of this name.
    let names = {
        let store = proxyshift.store.display();
        run(&format!("cp -a {store}/snapshots/{snapshot} {store}/snapshots/{id}"));
        litter(&proxyshift.store, &id)
    };
    for what in UNREAD {
        unread(&proxyshift.store, what);
        for words in ["status", "extend 10m"] {
            let ended = proxyshift.expect(if words == "status" { 6 } else { 0 }, words);
            let named = names.iter().map(String::as_str).chain(["runs/unread/run.json"]);
            named.for_each(|name| assert!(ended.err.contains(name), "{name}: {}", ended.err));
        }
    }
    proxyshift.expect(0, "confirm");
    proxyshift.expect(0, "snapshot list");
    proxyshift.expect(0, "report");
    proxyshift.expect(3, "report unread");
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), before, "rolled back");
    // A run that cannot be read may be pending, so no other may begin.
    for what in UNREAD {
        unread(&proxyshift.store, what);
        let ended = proxyshift.expect(3, "cleanup --yes");
        ended.reports(&[
            "runs/unread/run.json",
            "another version of proxyshift may have it pending",
        ]);
        assert_same(&node.rules(), before, what);
    }
    fs::remove_dir_all(proxyshift.store.join("runs/unread")).expect("removed");
    proxyshift.killed("cleanup --yes", "after:2");
    proxyshift.expect(0, "resume");
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), before, "resumed, and rolled back");
    assert!(names.iter().all(|name| name.contains('/') || name == ".bak" || {
        let found = |folder: &str| proxyshift.store.join(folder).join(name);
        found("runs").symlink_metadata().or(found("snapshots").symlink_metadata()).is_ok()
    }));
}

#[test]
fn a_stray_entry_does_not_stop_the_watchdog() {
    if !in_namespace("clocks::a_stray_entry_does_not_stop_the_watchdog") {
        return;
    }
    let Case { node, proxyshift, before } = &case();
    proxyshift.expect(0, "cleanup --yes --confirm-within 15s");
    let id = last_run(proxyshift);
    let snapshot = snapshot_of(proxyshift, &id);
    let store = proxyshift.store.display();
    run(&format!("cp -a {store}/snapshots/{snapshot} {store}/snapshots/{id}"));
    litter(&proxyshift.store, &id);
    unread(&proxyshift.store, UNREAD[4]);
    let run_json = proxyshift.store.join("runs").join(&id).join("run.json");
    let is_undone =
        || fs::read_to_string(&run_json).is_ok_and(|text| text.contains("\"rolled-back\""));
    assert!(!is_undone(), "the litter came too late");
    poll("the run is undone", || {
        std::thread::sleep(Duration::from_millis(100));
        is_undone()
    });
    assert_same(&node.rules(), before, "undone by the watchdog");
}
