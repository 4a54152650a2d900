//! The captured nodes, as files that a test can read and change. Unit and integration tests use
//! this loader.

// Allowed because each test program uses only a part of this module.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

use proxyshift::state::{Files, NodeState};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots")
}

/// The names of the captured nodes, sorted.
pub fn names() -> Vec<String> {
    let nodes = fs::read_dir(folder()).expect("snapshots/");
    let directories = nodes.map(|e| e.expect("an entry")).filter(|e| e.path().is_dir());
    let mut names: Vec<String> =
        directories.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names.len(), 16, "{names:?}");
    names
}

/// The files of the captured node `name`, keyed by their path in its folder.
pub fn files(name: &str) -> Files {
    files_below(&folder().join(name))
}

/// The files below `root`, keyed by their path there.
pub fn files_below(root: &Path) -> Files {
    let mut files = Files::new();
    collect(root, root, &mut files);
    assert!(!files.is_empty(), "{}", root.display());
    files
}

/// The node state that these files describe.
pub fn state(files: &Files) -> NodeState {
    NodeState::parse(files.clone()).expect("a node's state")
}

fn collect(root: &Path, at: &Path, files: &mut Files) {
    for entry in fs::read_dir(at).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).expect("below it").to_string_lossy().into_owned();
            files.insert(name, fs::read_to_string(&path).expect("text").into());
        }
    }
}

/// A captured node whose files a test may change before they are parsed.
#[derive(Clone)]
pub struct Node(Files);

impl Node {
    /// The node `name`, unchanged since its capture.
    pub fn captured(name: &str) -> Node {
        Node(files(name))
    }

    /// Replaces or adds a file of the capture, such as `addr.json`.
    pub fn put(mut self, file: &str, text: &str) -> Node {
        self.0.insert(file.into(), text.into());
        self
    }

    /// Replaces or adds a file that the capture has of the node's file system, such as
    /// `/etc/resolv.conf`.
    pub fn put_file(self, path: &str, text: &str) -> Node {
        self.put(&format!("files{path}"), text)
    }

    /// Replaces a part of a file of the capture. The part must exist.
    pub fn replace(mut self, file: &str, from: &str, to: &str) -> Node {
        replace(&mut self.0, file, from, to);
        self
    }

    /// Appends to a file of the capture.
    pub fn append(self, file: &str, text: &str) -> Node {
        let whole = format!("{}{text}", self.0[file]);
        self.put(file, &whole)
    }

    /// Removes a file of the capture, or all files of a folder. At least one must exist.
    pub fn remove(mut self, file: &str) -> Node {
        let count = self.0.len();
        let below = format!("{file}/");
        self.0.retain(|name, _| name != file && !name.starts_with(&below));
        assert!(self.0.len() < count, "no {file}");
        self
    }

    /// Sets a sysctl to `value`, or removes it if there is no value.
    pub fn sysctl(self, name: &str, value: Option<&str>) -> Node {
        let prefix = format!("{name} = ");
        let kept = self.0["sysctl.txt"].lines().filter(|line| !line.starts_with(&prefix));
        let mut text: String = kept.map(|line| format!("{line}\n")).collect();
        text.extend(value.map(|value| format!("{prefix}{value}\n")));
        self.put("sysctl.txt", &text)
    }

    /// Adds a process to the capture.
    pub fn process(self, pid: u32, name: &str, args: &[&str]) -> Node {
        self.processes(|all| all.push(json!({"pid": pid, "name": name, "args": args})))
    }

    /// Sets the version that kube-proxy reports.
    pub fn kube_proxy_version(self, version: &str) -> Node {
        self.kube_proxy("version", json!(version))
    }

    /// Sets the command line that kube-proxy was started with.
    pub fn kube_proxy_args(self, args: &[&str]) -> Node {
        self.kube_proxy("args", json!(args))
    }

    fn kube_proxy(self, field: &str, value: Value) -> Node {
        self.processes(|all| {
            let mut found = all.iter_mut().filter(|p| p["name"] == "kube-proxy");
            found.next().expect("kube-proxy")[field] = value;
        })
    }

    fn processes(self, change: impl FnOnce(&mut Vec<Value>)) -> Node {
        let mut all = serde_json::from_str(&self.0["processes.json"]).expect("processes");
        change(&mut all);
        self.put("processes.json", &json!(all).to_string())
    }

    /// The node state that the changed files describe.
    pub fn state(&self) -> NodeState {
        state(&self.0)
    }
}

/// Adds a line at the end of a table in the save `file`.
pub fn add(files: &mut Files, file: &str, table: &str, line: &str) {
    let text = files[file].to_string();
    let start = text.find(&format!("*{table}\n")).expect("the table");
    let at = start + text[start..].find("COMMIT\n").expect("its end");
    files.insert(file.into(), format!("{}{line}\n{}", &text[..at], &text[at..]).into());
}

/// Replaces a part of a file. The part must exist.
pub fn replace(files: &mut Files, file: &str, from: &str, to: &str) {
    let text = files[file].to_string();
    assert!(text.contains(from), "{file} has no `{from}`");
    files.insert(file.into(), text.replace(from, to).into());
}

/// The folder with dumps of other people's nodes, which are kept outside of the project; none if
/// this machine has none.
pub fn dumps() -> Option<PathBuf> {
    let dir = std::env::var_os("PROXYSHIFT_DUMPS").map(PathBuf::from);
    assert!(
        dir.is_some() || std::env::var_os("CI").is_none(),
        "CI must set PROXYSHIFT_DUMPS to the folder of dumps"
    );
    dir
}
