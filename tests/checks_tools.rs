//! Facts that only a live node has: the root directory of kube-proxy's container, and the lock of
//! iptables.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::in_namespace;
use serde_json::Value;

/// A process that is killed when this value is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the check `id` finds on the node that is this namespace.
fn finding(id: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_proxyshift"))
        .args(["check", "--only", id, "-o", "json", "--progress", "none"])
        .output()
        .expect("proxyshift runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let document: Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(document["findings"].as_array().map(Vec::len), Some(1), "{text}");
    let expected = if document["findings"][0]["outcome"] == "found"
        && document["findings"][0]["severity"] == "block"
    {
        3
    } else {
        0
    };
    assert_eq!(output.status.code(), Some(expected), "{text}");
    document["findings"][0].clone()
}

/// Waits until a condition holds.
fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_holder_of_the_lock_is_named_and_no_file_is_made() {
    if !in_namespace("the_holder_of_the_lock_is_named_and_no_file_is_made") {
        return;
    }
    let lock = Path::new("/run/xtables.lock");
    assert_eq!(finding("writers.lock")["outcome"], "ok");
    assert!(!lock.exists(), "looking made the lock file");
    let holder =
        Command::new("flock").args(["--no-fork", "/run/xtables.lock", "sleep", "60"]).spawn();
    let holder = Running(holder.expect("flock runs"));
    let locks = || fs::read_to_string("/proc/locks").unwrap_or_default();
    until("the lock is held", || locks().contains(&format!(" {} ", holder.0.id())));
    let found = finding("writers.lock");
    assert_eq!(found["outcome"], "found", "{found}");
    let named = format!("(pid {})", holder.0.id());
    assert!(found["evidence"][0].as_str().unwrap().contains(&named), "{found}");
}

/// Makes a root directory with only `sleep`, named kube-proxy, and an iptables that must not be
/// run.
fn container(root: &Path) {
    let copy = |from: &str, to: &str| {
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    copy("/bin/sleep", "/usr/local/bin/kube-proxy");
    for word in common::run("ldd /bin/sleep").split_whitespace().filter(|w| w.starts_with('/')) {
        copy(word, word);
    }
    // If proxyshift ran this iptables, in the container's root or in ours, a file would show it.
    let iptables = root.join("ran");
    fs::write(&iptables, format!("#!/bin/sh\ntouch /ran2 {}/ran2\n", root.display())).unwrap();
    copy(iptables.to_str().unwrap(), "/usr/sbin/iptables");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root.join("usr/sbin/iptables"), executable).unwrap();
    let list = root.join("var/lib/dpkg/status.d");
    fs::create_dir_all(&list).unwrap();
    fs::write(list.join("iptables"), "Package: iptables\nVersion: 1.8.7-1\n").unwrap();
}

#[test]
fn the_tools_of_a_container_are_found_in_its_own_root_and_not_run() {
    if !in_namespace("the_tools_of_a_container_are_found_in_its_own_root_and_not_run") {
        return;
    }
    assert_eq!(finding("tools.conntrack")["outcome"], "ok", "this host has conntrack");
    let root = tempfile::tempdir().unwrap();
    container(root.path());
    let child =
        Command::new("chroot").arg(root.path()).args(["/usr/local/bin/kube-proxy", "60"]).spawn();
    let child = Running(child.expect("chroot runs"));
    let exe = || fs::read_link(format!("/proc/{}/exe", child.0.id())).unwrap_or_default();
    until("kube-proxy runs", || exe().ends_with("usr/local/bin/kube-proxy"));

    let found = finding("tools.conntrack");
    assert_eq!(found["outcome"], "found", "{found}");
    let own = format!("kube-proxy's own root, /proc/{}/root", child.0.id());
    assert!(found["evidence"][0].as_str().unwrap().ends_with(&own), "{found}");
    let found = finding("tools.iptables");
    assert_eq!(found["outcome"], "ok", "{found}");
    assert!(
        found["evidence"][0].as_str().unwrap().ends_with("package iptables 1.8.7-1"),
        "{found}"
    );
    assert!(!root.path().join("ran2").exists(), "a program of the container was run");
}
