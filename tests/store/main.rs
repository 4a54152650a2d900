//! The store on real disks and between real processes, and `restore.sh` on real rules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use proxyshift::error::Result;
use proxyshift::state::Files;
use proxyshift::store::Store;
use proxyshift::store::journal::{Mark, Record};
use proxyshift::store::manifest::Manifest;
use proxyshift::store::run_folder::RunFolder;
use proxyshift::store::snapshots::Snapshot;
use serde_json::Value;

mod archives;
mod disks;
mod journals;
#[path = "../nodes/mod.rs"]
mod nodes;
mod processes;
mod restore_sh;
mod snapshots;

const CEILING: Duration = Duration::from_secs(30);

fn fine(_: &Files) -> Result<()> {
    Ok(())
}

fn docker() -> Files {
    nodes::files("docker-iptables-1.30")
}

fn store() -> (tempfile::TempDir, Store) {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::open(Some(&tmp.path().join("store"))).unwrap();
    (tmp, store)
}

fn create(store: &Store, files: &Files) -> Snapshot {
    store.create(files, Manifest::for_this_node("test").unwrap(), &fine).unwrap()
}

/// The paths of all files and folders below `dir`, even hidden ones.
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

/// Runs the test `name` (with its module) again in new network and mount namespaces with an empty
/// /run. Returns true in that copy, and false in the original after the copy has passed.
fn in_namespaces(name: &str) -> bool {
    if std::env::var_os("PROXYSHIFT_TEST_INSIDE").is_some() {
        sh("mount -t tmpfs tmpfs /run");
        return true;
    }
    let flags = if rustix::process::geteuid().is_root() { "-nm" } else { "-Urnm" };
    let output = Command::new("unshare")
        .arg(flags)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("PROXYSHIFT_TEST_INSIDE", "1")
        .output()
        .expect("unshare is needed");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && stdout.contains("1 passed");
    assert!(passed, "{name} failed in its namespaces: {errors}{stdout}");
    false
}

/// A command that runs the test `name` (with its module) as another process with the given `role`.
fn another_process(name: &str, role: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command.env("PROXYSHIFT_TEST_ROLE", role).env("PROXYSHIFT_TEST_DIR", dir);
    command
}

/// The role that this process was started for, and its folder; none in the original.
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

/// The folder of a run without a copy in memory.
fn folder(dir: &Path) -> RunFolder {
    RunFolder::new(dir.to_owned(), None)
}

fn record(step: u32) -> Record<Value> {
    let payload = serde_json::json!({"remove": "-A POSTROUTING -j KUBE-POSTROUTING", "step": step});
    Record { stage: "clean".into(), step, kind: Mark::Intent, payload }
}
