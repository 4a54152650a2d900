//! The caller's environment must not decide what root's programs load, lock or read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use proxyshift::node::command::TRUSTED_PATH;
use proxyshift::state::Backend;
use proxyshift::state::argv::Argv;

use crate::common::node::{Ended, Node, Proxyshift};
use crate::common::{in_namespace, run};

/// What a caller may set to make a program do something else.
const EVIL: [&str; 24] = [
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "LD_AUDIT",
    "GLIBC_TUNABLES",
    "GCONV_PATH",
    "LOCPATH",
    "MALLOC_CHECK_",
    "TMPDIR",
    "XTABLES_LIBDIR",
    "XTABLES_LOCKFILE",
    "IPTABLES_LIB_DIR",
    "IP6TABLES_LIB_DIR",
    "NFT_CONFIG",
    "MODPROBE_OPTIONS",
    "SYSTEMD_UNIT_PATH",
    "SYSTEMD_PAGER",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PERL5LIB",
    "BASH_ENV",
    "ENV",
    "IFS",
    "SHELLOPTS",
    "OPENSSL_CONF",
];

/// What an operator's command needs.
const NEEDED: [&str; 4] = ["HOME", "KUBECONFIG", "HTTPS_PROXY", "AWS_PROFILE"];

/// The folder where each tool writes its environment, in a file with its name and its PID. It is
/// not below /run, because a rehearsal has a /run of its own.
const LOG: &str = "/mnt";

fn set_all(command: &mut Command) {
    // A value that no program takes for a file or library of its own.
    command.envs(EVIL.map(|name| (name, "/nonexistent/evil")));
    command.envs(NEEDED.map(|name| (name, "/nonexistent/needed")));
}

fn variables(environ: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8(environ.to_vec()).expect("text");
    let pairs = text.split('\0').filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn assert_operators(what: &str, environ: &[u8]) {
    let variables = variables(environ);
    for name in EVIL {
        assert!(!variables.contains_key(name), "{what}: {name}");
    }
    for name in NEEDED {
        assert_eq!(variables.get(name).map(String::as_str), Some("/nonexistent/needed"), "{what}");
    }
}

/// Puts a program in front of each tool that writes its environment down, and runs the tool.
fn record_tools() {
    run("mount -t tmpfs tools /usr/local/sbin");
    run(&format!("mount -t tmpfs environments {LOG}"));
    let names = "iptables-nft-save iptables-nft-restore ip6tables-nft-save iptables-legacy-save \
                 ip6tables-legacy-save ipset nft ip ipvsadm unshare modprobe";
    for name in names.split_whitespace() {
        let Ok(tool) = which::which_in(name, Some("/usr/sbin:/usr/bin:/sbin:/bin"), "/") else {
            continue;
        };
        let path = format!("/usr/local/sbin/{name}");
        let script = format!(
            "#!/bin/sh\ncat /proc/$$/environ >{LOG}/{name}.$$\nexec {} \"$@\"\n",
            tool.display()
        );
        fs::write(&path, script).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }
}

#[test]
fn of_tools_and_the_watchdog() {
    if !in_namespace("environment::of_tools_and_the_watchdog") {
        return;
    }
    let _node = Node::load("half-migrated-ipvs-1.20", Backend::Nft);
    record_tools();
    let proxyshift = Proxyshift::new("store");
    let mut command = proxyshift.command("cleanup --yes --confirm-within 10m");
    set_all(&mut command);
    let ended = Ended::of(command);
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);

    let mut tools = Vec::new();
    for file in fs::read_dir(LOG).expect("the tools have run") {
        let path = file.expect("a file").path();
        let mut found = variables(&fs::read(&path).expect("readable"));
        let tool = path.file_stem().and_then(|name| name.to_str()).expect("text").to_owned();
        assert_eq!(found.remove("PATH").as_deref(), Some(TRUSTED_PATH), "{tool}");
        assert_eq!(found.remove("LC_ALL").as_deref(), Some("C"), "{tool}");
        assert!(found.is_empty(), "{tool}: {found:?}");
        tools.push(tool);
    }
    // `ip` runs only in the sandbox, so the program that `unshare` starts has been seen through.
    for tool in ["iptables-nft-save", "iptables-nft-restore", "ipset", "unshare", "ip"] {
        assert!(tools.iter().any(|t| t == tool), "{tool} is not among {tools:?}");
    }

    let runs = fs::read_dir(proxyshift.store.join("runs")).expect("runs");
    let dir = runs.map(|run| run.expect("a run").path()).next().expect("one run");
    let json = fs::read(dir.join("run.json")).expect("run.json");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let pid = json["pending"]["watchdog"]["pid"].as_u64().expect("it stands by");
    let environ = fs::read(format!("/proc/{pid}/environ")).expect("it lives");
    assert_operators("the watchdog", &environ);
    proxyshift.expect(0, "rollback");
}

/// The copy of the next test that runs the operator's command.
const ROLE: &str = "PROXYSHIFT_TEST_ENVIRON";

#[test]
fn of_an_operators_command() {
    if let Some(file) = std::env::var_os(ROLE) {
        let script = format!("cat /proc/$$/environ > {}", file.to_str().expect("text"));
        let argv = Argv::try_from(vec!["sh".into(), "-c".into(), script]).expect("a command");
        return proxyshift::apply::argv::run(&argv, Duration::from_secs(30)).expect("it runs");
    }
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("environ");
    let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
    command.args(["--exact", "environment::of_an_operators_command"]).env(ROLE, &file);
    set_all(&mut command);
    // The output of the command goes to a file there.
    command.env("TMPDIR", dir.path());
    assert!(command.output().expect("it starts").status.success());
    let environ = fs::read(&file).expect("it has run");
    assert_operators("the command", &environ);
    let found = variables(&environ);
    assert_eq!(found.get("PATH").map(String::as_str), Some(TRUSTED_PATH));
    assert_eq!(found.get("LC_ALL").map(String::as_str), Some("C"));
}
