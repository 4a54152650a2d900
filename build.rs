//! Lists the files of the owner catalogue, so that a new owner is its YAML file alone.

use std::path::{Path, PathBuf};
use std::{env, fs};

const FOLDER: &str = "playbooks/owners";

fn main() {
    println!("cargo::rerun-if-changed={FOLDER}");
    let variable = |name| PathBuf::from(env::var_os(name).expect("cargo sets it"));
    let files = yaml_files(&variable("CARGO_MANIFEST_DIR").join(FOLDER));
    let entries: String = files.iter().map(|path| entry(path)).collect();
    let list = variable("OUT_DIR").join("owners.rs");
    fs::write(list, format!("[\n{entries}]\n")).expect("the list is written");
}

/// The YAML files of a folder, sorted by name.
fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder of owners");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

/// A file's name without its ending, and its text. The path is completed when the program is compiled:
/// a target folder may be shared by checkouts, or moved with one.
fn entry(path: &Path) -> String {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    let file = format!("/{FOLDER}/{stem}.yaml");
    format!("    ({stem:?}, include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {file:?}))),\n")
}
