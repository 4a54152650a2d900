//! The captured nodes, as files to read and to change.

// Each test program uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

use proxyshift::state::{Files, NodeState};

/// The names of the captured nodes, sorted.
pub fn names() -> Vec<String> {
    let nodes = fs::read_dir("snapshots").expect("snapshots/");
    let directories = nodes.map(|e| e.expect("an entry")).filter(|e| e.path().is_dir());
    let mut names: Vec<String> =
        directories.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names.len(), 7, "{names:?}");
    names
}

/// The files of a captured node.
pub fn files(name: &str) -> Files {
    let root = Path::new("snapshots").join(name);
    let mut files = Files::new();
    collect(&root, &root, &mut files);
    assert!(!files.is_empty(), "{name}");
    files
}

/// The state of some files.
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

/// Adds a line at the end of a table.
pub fn add(files: &mut Files, file: &str, table: &str, line: &str) {
    let text = files[file].to_string();
    let start = text.find(&format!("*{table}\n")).expect("the table");
    let at = start + text[start..].find("COMMIT\n").expect("its end");
    files.insert(file.into(), format!("{}{line}\n{}", &text[..at], &text[at..]).into());
}

/// Replaces text that must be there.
pub fn replace(files: &mut Files, file: &str, from: &str, to: &str) {
    let text = files[file].to_string();
    assert!(text.contains(from), "{file} has no `{from}`");
    files.insert(file.into(), text.replace(from, to).into());
}

/// The dumps from the wild are other people's texts and lie outside the project.
pub fn dumps() -> Option<PathBuf> {
    let dir = std::env::var_os("PROXYSHIFT_DUMPS").map(PathBuf::from);
    assert!(
        dir.is_some() || std::env::var_os("CI").is_none(),
        "CI must set PROXYSHIFT_DUMPS to the folder of dumps"
    );
    dir
}
