//! The Ansible collection: it can be packed, its documentation is complete, and it passes the
//! linter.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::site::{cached, collection};

/// Runs a program of the Ansible installation whose programs are in `bin`. Returns its output.
fn ansible(bin: &Path, program: &str, args: &[&str], folder: &Path, collections: &Path) -> String {
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new(bin.join(program))
        .args(args)
        .env("PATH", path)
        .env("HOME", collections)
        .env("ANSIBLE_COLLECTIONS_PATH", collections)
        .env("NO_COLOR", "1")
        .env("LC_ALL", "C.UTF-8")
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {out}{err}");
    out
}

/// Builds the collection and installs it into a folder below `folder`. Returns that folder.
fn installed(bin: &Path, folder: &Path) -> PathBuf {
    let from = collection();
    let from = from.to_str().expect("text");
    ansible(bin, "ansible-galaxy", &["collection", "build", from], folder, folder);
    let built = "proxyshift-node-1.0.0.tar.gz";
    let args = ["collection", "install", "--offline", "-p", ".", built];
    ansible(bin, "ansible-galaxy", &args, folder, folder);
    folder.join("ansible_collections/proxyshift/node")
}

#[test]
fn it_is_built_installed_and_documented() {
    for bin in [cached("newest/bin"), "/usr/bin".into()] {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        let node = installed(&bin, folder);
        assert!(node.join("plugins/modules/proxyshift").exists(), "the program is not in it");
        let args = ["-j", "proxyshift.node.proxyshift"];
        let page = ansible(&bin, "ansible-doc", &args, folder, folder);
        let page: Value = serde_json::from_str(&page).expect("JSON");
        let doc = &page["proxyshift.node.proxyshift"]["doc"];
        let mut options: Vec<&str> =
            doc["options"].as_object().expect("options").keys().map(String::as_str).collect();
        options.sort_unstable();
        let known = [
            "confirm_within",
            "for",
            "ignore",
            "lock_wait",
            "owners",
            "playbook",
            "snapshot",
            "state",
            "store",
            "to",
        ];
        assert_eq!(options, known, "as the module knows them");
    }
}

#[test]
fn ansible_lint_has_nothing_to_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let node = folder.join("ansible_collections/proxyshift/node");
    fs::create_dir_all(node.parent().expect("a parent")).expect("folders");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("playbooks/ansible");
    crate::common::run(&format!("cp -r {} {}", source.display(), node.display()));
    let args = ["--offline", "--profile", "production", "--strict"];
    ansible(&cached("newest/bin"), "ansible-lint", &args, &node, folder);
}
