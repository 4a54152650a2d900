//! `report --bundle`: one archive about a node for a report of a bug. That whoever sends or opens one is
//! safe, `tests/trust/bundles.rs` shows.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::disk::{FULL, new_disk};
use common::node::{Case, Ended, Proxyshift, captured};
use common::schemas::Schemas;
use common::{in_namespace, poll, run, run_with};
use proxyshift::state::Backend;
use serde_json::{Value, json};

const FILE: &str = "/run/node1.tar.gz";

/// A captured node with leftovers in iptables-nft.
const NODE: &str = "canal-stale-flannel-1.20";

fn sh(script: &str) -> String {
    run_with(script, &["sh", "-e"])
}

/// The text of one file of a bundle.
fn part(file: &str, name: &str) -> String {
    sh(&format!("tar xOzf {file} --wildcards '*/{name}'"))
}

fn json_part(file: &str, name: &str) -> Value {
    serde_json::from_str(&part(file, name)).expect("JSON")
}

/// What `-o json` prints for these words.
fn document(proxyshift: &Proxyshift, code: i32, words: &str) -> Value {
    proxyshift.expect(code, &format!("{words} -o json")).json()
}

#[test]
fn a_bundle_stands_for_the_node() {
    if !in_namespace("a_bundle_stands_for_the_node") {
        return;
    }
    let Case { node, proxyshift, before } = Case::of(NODE, Backend::Nft);
    let proxyshift = Proxyshift { store: "/proc/no-store".into(), ..proxyshift };
    // The routes of links that have just come up are not there yet.
    poll("IPv6 addresses", || run("ip -6 addr show tentative").is_empty());
    let ended = proxyshift.expect(0, &format!("report --bundle {FILE}"));
    for part in [FILE, "Secrets are masked", "look through"] {
        assert!(ended.out.contains(part), "{}", ended.out);
    }
    assert!(!ended.out.contains("Missing") && ended.err.contains("making the bundle"));
    assert_eq!(fs::metadata(FILE).expect("the bundle").permissions().mode() & 0o7777, 0o600);
    assert_eq!(node.rules(), before, "nothing was changed");
    let files: Vec<_> = fs::read_dir("/run").expect("/run").flatten().collect();
    assert!(files.iter().all(|f| !f.file_name().to_string_lossy().starts_with('.')), "{files:?}");

    let mut schemas = Schemas::load();
    let about = json_part(FILE, "bundle.json");
    schemas.hold(&about, "bundle.json");
    assert_eq!(about["missing"], json!([]));
    assert_eq!(about["versions"]["proxyshift"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["versions"]["kernel"], run("uname -r").trim());
    assert!(about["versions"]["tools"]["nft"].as_str().expect("text").contains("nftables v"));
    schemas.hold(&json_part(FILE, "check.json"), "check.json");
    schemas.hold(&json_part(FILE, "plan.json"), "plan.json");
    assert!(part(FILE, "check.txt").contains("blocking"));

    // Whoever opens it sees what the node's own verbs say.
    let live = document(&proxyshift, 0, "plan");
    assert!(live["objects"].as_array().is_some_and(|objects| objects.len() > 3), "{live}");
    assert_eq!(live, json_part(FILE, "plan.json"));
    assert_eq!(live, document(&proxyshift, 0, &format!("plan --snapshot {FILE}")));
    let same = proxyshift.expect(0, &format!("snapshot diff {FILE}"));
    assert_eq!(same.out, "They mean the same.\n");
    // The checks that only a living node can answer are in the bundle alone.
    let seen = proxyshift.run(&format!("check --snapshot {FILE} -o json")).json();
    let found = |report: &Value, id: &str| {
        let findings = report["findings"].as_array().expect("findings");
        findings.iter().any(|f| f["id"] == id && f["outcome"] == "found")
    };
    let kept = json_part(FILE, "check.json");
    assert!(found(&seen, "cni.flannel-rules") && found(&kept, "cni.flannel-rules"), "{seen}");
    assert!(part(FILE, "check.txt").contains("ok tools.privileges"), "asked live");
    let shown = proxyshift.expect(0, &format!("snapshot show {FILE}"));
    assert!(shown.out.contains("without a manifest") && shown.out.contains("kube-proxy"));
    proxyshift.expect(0, &format!("snapshot verify {FILE}"));
    let rehearsed = proxyshift.expect(0, &format!("rehearse --snapshot {FILE}"));
    assert!(rehearsed.out.starts_with("Proven: "), "{}", rehearsed.out);
    // Unpacked, it is the same, and a bundle of a bundle too.
    sh(&format!("mkdir /run/x && tar xzf {FILE} -C /run/x && mv /run/x/* /run/unpacked"));
    for dir in ["/run/unpacked", "/run/unpacked/snapshot"] {
        assert_eq!(live, document(&proxyshift, 0, &format!("plan --snapshot {dir}")), "{dir}");
    }
    proxyshift.expect(0, "rehearse --snapshot /run/unpacked");
    let words = format!("report --bundle /run/again.tar.gz --snapshot {FILE} -o json");
    let (code, again) = schemas.run(&proxyshift, &words.replace(" -o json", ""));
    assert_eq!((code, &again["snapshot"], &again["missing"]), (0, &json!(FILE), &json!([])));
    assert_eq!(live, json_part("/run/again.tar.gz", "plan.json"));

    // It is read, and nothing more. What is there stays.
    let proxyshift = Proxyshift::new("store");
    for (code, words, cause) in [
        (2, format!("report --bundle {FILE}"), "it exists already"),
        (3, format!("snapshot import {FILE}"), "it holds no manifest.json"),
        (3, format!("rollback --to {FILE} --yes"), "an archive is for reading"),
        (3, "rollback --to /run/unpacked/snapshot --yes".into(), "where and when"),
        (3, format!("snapshot export {FILE} /run/exported"), "it is no directory"),
        (3, "plan --snapshot node1.tar.gz".into(), "no snapshot of this name"),
    ] {
        proxyshift.expect(code, &words).reports(&[cause]);
    }
    assert_eq!(node.rules(), before);
}

#[test]
fn an_exported_snapshot_is_read_where_it_is() {
    let tmp = tempfile::tempdir().expect("a folder");
    let proxyshift = Proxyshift::of_store(tmp.path().join("none"));
    let dir = captured(NODE);
    let archive = tmp.path().join("node.tar.gz").display().to_string();
    let (parent, name) = (dir.parent().expect("a folder"), dir.file_name().expect("a name"));
    sh(&format!("tar czf {archive} -C {} {}", parent.display(), name.display()));
    for words in ["plan", "plan --to ipvs", "check --to ipvs"] {
        let [plain, packed] = [dir.display().to_string(), archive.clone()].map(|snapshot| {
            let mut found =
                proxyshift.run(&format!("{words} --snapshot {snapshot} -o json")).json();
            found.as_object_mut().expect("an object").remove("node");
            found
        });
        assert_eq!(plain, packed, "{words}");
    }
    let error = Ended::of({
        let mut command = proxyshift.command("plan --snapshot node.tar.gz");
        command.current_dir(tmp.path());
        command
    });
    error.reports(&["for the file of this name here, say `./node.tar.gz`"]);
}

#[test]
fn a_pending_run_is_in_the_bundle_and_stays_pending() {
    if !in_namespace("a_pending_run_is_in_the_bundle_and_stays_pending") {
        return;
    }
    let Case { node, proxyshift, .. } = Case::of(NODE, Backend::Nft);
    proxyshift.expect(0, "cleanup --yes --confirm-within 10m");
    let rules = node.rules();
    let status = proxyshift.expect(6, "status -o json").json();
    let said = proxyshift.expect(0, &format!("report --bundle {FILE} -o json")).json();
    assert_eq!(said["missing"], json!([]));
    let run = said["run"].as_str().expect("a run");
    let report = json_part(FILE, "run/report.json");
    Schemas::load().hold(&report, "report.json");
    assert_eq!(report, proxyshift.expect(0, "report -o json").json());
    assert!(part(FILE, "run/report.md").contains(run));
    let journal = part(FILE, "run/journal.jsonl");
    let lines: Vec<Value> =
        journal.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.iter().any(|line| line["kind"] == "intent"), "{journal}");
    assert!(lines.iter().all(|line| line["seq"].is_u64()) && journal.contains("192.168."));
    assert!(part(FILE, "run/events.jsonl").contains("\"finished\""));
    let now = proxyshift.expect(6, "status -o json").json();
    assert_eq!(now["pending"]["id"], status["pending"]["id"]);
    assert_eq!(node.rules(), rules);
    proxyshift.expect(0, "rollback");
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_there() {
    if !in_namespace("what_cannot_be_read_is_named_and_the_rest_is_there") {
        return;
    }
    let proxyshift = Proxyshift::of_store("/run/a-file".into());
    fs::write("/run/a-file", "no store").expect("written");
    sh("printf '*filter\\n:FORWARD ACCEPT [0:0]\\n-A FORWARD -j ACCEPT\\nCOMMIT\\n' | iptables-nft-restore
        nft add table ip other; nft add chain ip other mine; nft add chain ip filter ts-forward");
    let broken = [
        ("native", "nft 'add rule ip filter ts-forward meta mark set 5'", "ts-forward"),
        (
            "native2",
            "nft 'add rule ip filter ts-forward ct state invalid counter drop'",
            "ts-forward",
        ),
        ("ip", "mount --bind /bin/false $(readlink -f $(which ip))", "/ip"),
        (
            "ipset",
            "ipset create s hash:ip; mount --bind /bin/false $(readlink -f $(which ipset))",
            "ipset",
        ),
        (
            "save",
            "nft delete chain ip filter ts-forward; mount --bind /bin/false $(readlink -f $(which iptables-nft-save))",
            "iptables-nft-save",
        ),
    ];
    for (name, how, named) in broken {
        sh(how);
        let file = format!("/run/{name}.tar.gz");
        let said = document(&proxyshift, 0, &format!("report --bundle {file}"));
        Schemas::load().hold(&said, name);
        let missing = said["missing"].to_string();
        assert!(missing.contains(named) && missing.contains("/run/a-file"), "{name}: {missing}");
        let errors = part(&file, "errors.txt");
        assert!(errors.contains("/run/a-file"), "{name}: {errors}");
        let parts = said["parts"].to_string();
        assert!(parts.contains("check.json") && !parts.contains("plan.json"), "{name}: {parts}");
        assert!(part(&file, "snapshot/nft.json").contains("other"), "{name}");
        assert!(part(&file, "snapshot/sysctl.txt").len() > 100, "{name}");
        // Nobody takes it for the whole node.
        let error = document(&proxyshift, 3, &format!("plan --snapshot {file}"));
        assert!(
            error["cause"].as_str().expect("text").contains("not captured on that node"),
            "{error}"
        );
        proxyshift.expect(3, &format!("rehearse --snapshot {file}"));
        let check = proxyshift.run(&format!("check --snapshot {file} -o json")).json();
        let judged = check["findings"].as_array().expect("findings");
        let outcome = |id: &str| {
            let finding = judged.iter().find(|f| f["id"] == id).expect("a finding");
            finding["outcome"].as_str().expect("text").to_owned()
        };
        assert_eq!(outcome("kube-proxy.mode"), "unknown", "{name}");
        assert_eq!(outcome("backends.garbled"), "found", "{name}");
        assert_eq!(outcome("tools.conntrack"), "ok", "{name}");
        let shown = proxyshift.expect(0, &format!("snapshot show {file}"));
        shown.reports(&["a part of the node"]);
        if name.starts_with("native") {
            assert!(part(&file, "refused/ip.messages").contains("ip filter rule "), "{name}");
        }
    }
}

#[test]
fn a_disk_that_takes_no_bundle_is_named_and_has_nothing_of_it() {
    let name = "a_disk_that_takes_no_bundle_is_named_and_has_nothing_of_it";
    if !in_namespace(name) {
        return;
    }
    new_disk();
    let proxyshift = Proxyshift::of_store("/run/none".into());
    sh("cd /run/disk && mkdir full");
    sh(FULL);
    let before = sh("ls -aR /run/disk | sha256sum");
    let words = "report --bundle /run/disk/full/b.tar.gz";
    proxyshift.expect(3, words).reports(&["No space left", "name a file on another disk"]);
    assert_eq!(sh("ls -aR /run/disk | sha256sum"), before);
    // With an inode, but without a block.
    sh("cd /run/disk; rmdir f0; : > full/inode; rm full/inode");
    proxyshift.expect(3, words).reports(&["No space left"]);
    assert_eq!(sh("ls -A /run/disk/full"), "");
    proxyshift.expect(3, "report --bundle /run/nowhere/b.tar.gz").reports(&["No such file"]);
    sh("mount -o remount,ro /run/disk");
    proxyshift.expect(3, words).reports(&["Read-only file system"]);
    assert!(!Path::new("/run/none").exists(), "no store is made");
}
