//! What kube-proxy is told, and remedies that work where it is told.

use std::process::Command;

use proxyshift::state::Files;
use serde_json::{Value, json};

use crate::case::Case;
use crate::common::program;
use crate::report::{finding, has, outcome, texts};

const CONFIG: &str = "files/var/lib/kube-proxy/config.conf";

/// Both forms of a case, with changed files.
fn both(name: &str, change: impl Fn(&mut Files)) -> [Case; 2] {
    Case::both(name).map(|case| {
        let mut files = case.files();
        change(&mut files);
        Case::of(&case.name, files)
    })
}

/// Adds arguments to kube-proxy's, in place of those that begin with `drop`.
fn args(files: &mut Files, drop: &str, more: &[&str]) {
    let mut all: Value = serde_json::from_str(&files["processes.json"]).expect("processes");
    let all_processes = all.as_array_mut().expect("processes");
    let proxy = all_processes.iter_mut().find(|p| p["name"] == "kube-proxy").expect("kube-proxy");
    let list = proxy["args"].as_array_mut().expect("arguments");
    list.retain(|arg| drop.is_empty() || !arg.as_str().expect("text").starts_with(drop));
    list.extend(more.iter().map(|arg| json!(arg)));
    files.insert("processes.json".into(), all.to_string().into());
}

/// Sets kube-proxy's version.
fn version(files: &mut Files, version: &str) {
    let mut all: Value = serde_json::from_str(&files["processes.json"]).expect("processes");
    let all_processes = all.as_array_mut().expect("processes");
    let proxy = all_processes.iter_mut().find(|p| p["name"] == "kube-proxy").expect("kube-proxy");
    proxy["version"] = json!(version);
    files.insert("processes.json".into(), all.to_string().into());
}

#[test]
fn a_min_that_kube_proxy_ignores_is_no_remedy() {
    let remedy = |case: &Case| {
        let found = finding(&case.json("check"), "conntrack.table-full");
        assert_eq!(found["outcome"], "found", "{}", case.name);
        texts(&found, "remedy")
    };
    let name = "b11-table-full-no-op";
    for case in Case::both(name) {
        let remedy = remedy(&case);
        has(&remedy, &["/etc/sysctl.d/", "--conntrack-max-per-core=32768 --conntrack-min=131072"]);
        assert!(!remedy.contains("conntrack: {"), "{}: {remedy}", case.name);
    }
    let flag = "--conntrack-max-per-core";
    for case in both(name, |files| args(files, flag, &[])) {
        let remedy = remedy(&case);
        has(&remedy, &["--conntrack-min=131072"]);
        assert!(!remedy.contains("sysctl.d"), "{}: {remedy}", case.name);
    }
    for case in both(name, |files| {
        args(files, "--", &["--config=/var/lib/kube-proxy/config.conf"]);
        files.insert(CONFIG.into(), "conntrack: {maxPerCore: 0, min: 1}\nmode: iptables\n".into());
    }) {
        has(&remedy(&case), &["/etc/sysctl.d/", "conntrack: {maxPerCore: 32768, min: 131072}"]);
    }
    for case in both(name, |files| version(files, "v1.34.2+rke2r1")) {
        let each = "[\"conntrack-max-per-core=32768\", \"conntrack-min=131072\"]";
        has(&remedy(&case), &[&format!("kube-proxy-arg: {each}")]);
    }
}

#[test]
fn ipvs_forgets_a_quiet_connection() {
    let name = "b12-ipvs-tcp-900";
    for case in Case::both(name) {
        let report = case.json("check --to ipvs");
        let tcp = finding(&report, "ipvs.tcp-timeout");
        assert_eq!((&tcp["outcome"], &tcp["severity"]), (&json!("found"), &json!("warn")));
        has(&texts(&tcp, "remedy"), &["ipvs: {tcpTimeout: 24h}", "tcp_keepalive_time"]);
        assert_eq!(outcome(&report, "ipvs.udp-timeout"), "found", "{}", case.name);
        let plain = case.json("check");
        let ids = plain["findings"].as_array().expect("findings");
        assert!(!ids.iter().any(|f| f["id"] == "ipvs.tcp-timeout"), "no ipvs here");
    }
    for (time, expected) in [("2h", "ok"), ("900s", "found"), ("0s", "found")] {
        for case in both(name, |files| {
            let text = format!("{}ipvs: {{tcpTimeout: {time}}}\n", files[CONFIG]);
            files.insert(CONFIG.into(), text.into());
        }) {
            assert_eq!(outcome(&case.json("check --to ipvs"), "ipvs.tcp-timeout"), expected);
        }
    }
}

#[test]
fn gates_that_go_are_named_with_their_line() {
    let name = "b13-feature-gates";
    for case in Case::both(name) {
        let gates = finding(&case.json("check"), "kube-proxy.feature-gates");
        assert_eq!(gates["outcome"], "found", "{}", case.name);
        has(
            &texts(&gates, "evidence"),
            &["IPv6DualStack=true (/var/lib/kube-proxy/config.conf:6)"],
        );
        has(&texts(&gates, "evidence"), &["from 1.25 on does not know it"]);
        has(&texts(&gates, "remedy"), &["take IPv6DualStack out before the upgrade"]);
    }
    // As a flag, and the gate that our own remedy for 1.29 and 1.30 plants.
    for case in both(name, |files| {
        args(files, "--config", &["--feature-gates=NFTablesProxyMode=true,MountPropagation=true"]);
        version(files, "v1.34.4");
    }) {
        let gates = finding(&case.json("check"), "kube-proxy.feature-gates");
        has(&texts(&gates, "evidence"), &["NFTablesProxyMode", "MountPropagation"]);
    }
}

#[test]
fn flags_of_long_ago_are_named() {
    for case in Case::both("b14-removed-flags") {
        let flags = finding(&case.json("check"), "kube-proxy.deprecated-flags");
        assert_eq!(flags["outcome"], "found", "{}", case.name);
        has(
            &texts(&flags, "evidence"),
            &["--resource-container", "--conntrack-max", "from 1.16 on"],
        );
        let (said, code) = write_config(&case);
        assert_eq!(code, 2, "{said}");
        has(&said, &["leave --resource-container out", "leave --conntrack-max out, or give"]);
    }
}

/// What `check --write-config` prints about a case, and its exit code; the file at the end.
fn write_config(case: &Case) -> (String, i32) {
    let folder = tempfile::tempdir().expect("a folder");
    for (path, text) in case.files() {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text.as_bytes()).expect("a file");
    }
    let file = folder.path().join("written");
    let mut command = Command::new(program());
    command.arg("--store").arg(folder.path().join("store")).arg("check");
    command.arg("--write-config").arg(&file).arg("--snapshot").arg(folder.path());
    let output = command.output().expect("the program runs");
    let text = [output.stdout, output.stderr, std::fs::read(&file).unwrap_or_default()].concat();
    (String::from_utf8(text).expect("text"), output.status.code().expect("a code"))
}

#[test]
fn what_says_the_default_is_written_as_nothing() {
    let name = "b15-write-config-aks";
    for case in Case::both(name) {
        let (said, code) = write_config(&case);
        assert_eq!(code, 0, "{said}");
        has(&said, &["kind: KubeProxyConfiguration", "maxPerCore: 0", "--v=3", "mount "]);
        assert!(!said.contains("nterfaceNamePrefix"), "{said}");
        // AKS writes the DaemonSet, so the remedy is AKS'.
        let mode = finding(&case.json("check"), "kube-proxy.mode-empty");
        has(&texts(&mode, "remedy"), &["az aks update --kube-proxy-config"]);
    }
    let more = ["--cleanup=false", "--cluster-cidr=", "--feature-gates=", "--version=false"];
    for case in both(name, |files| args(files, "--cluster-cidr", &more)) {
        let (said, code) = write_config(&case);
        assert_eq!(code, 0, "{said}");
        assert!(!said.contains("clusterCIDR") && !said.contains("featureGates"), "{said}");
    }
    for flag in ["--cleanup-ipvs", "--write-config-to=/x", "--healthz-bind-address="] {
        for case in both(name, |files| args(files, "", &[flag])) {
            assert_eq!(write_config(&case).1, 2, "{flag}");
        }
    }
}

/// What `check` calls ok, a migration can do.
#[test]
fn only_the_schedulers_that_kube_proxy_asks_for_are_loaded() {
    let name = "b16-prepare-needs-ip_vs_sh";
    let loads = |case: &Case| {
        let plan = case.json("plan --to ipvs");
        let stages = plan["stages"].as_array().expect("stages");
        let prepare = stages.iter().find(|stage| stage["stage"] == "prepare").expect("prepare");
        texts(prepare, "does")
    };
    for case in Case::both(name) {
        assert_eq!(outcome(&case.json("check --to ipvs"), "kernel.schedulers"), "ok");
        let loads = loads(&case);
        has(&loads, &["module ip_vs: ", "module ip_vs_rr: "]);
        assert!(!loads.contains("ip_vs_sh") && !loads.contains("ip_vs_wrr"), "{loads}");
    }
    for case in both(name, |files| version(files, "v1.26.9")) {
        assert_ne!(outcome(&case.json("check --to ipvs"), "kernel.schedulers"), "ok");
        has(&loads(&case), &["module ip_vs_sh: ", "module ip_vs_wrr: "]);
    }
    for case in both(name, |files| {
        let text = format!("{}ipvs: {{scheduler: lc}}\n", files[CONFIG]);
        files.insert(CONFIG.into(), text.into());
    }) {
        has(&loads(&case), &["module ip_vs_lc: "]);
        assert!(!loads(&case).contains("ip_vs_rr"), "{}", case.name);
    }
}
