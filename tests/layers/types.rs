//! Each name stands for one type, and modes of kube-proxy are told apart in one place only.

use std::collections::BTreeMap;

use super::source::{Source, inline_modules, is_word, made_up, positions, sources};

/// The types that a file defines outside of inline modules, which hold tests.
fn types(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for word in ["struct ", "enum ", "trait ", "union "] {
        for at in positions(&source.code, word) {
            let name: String =
                source.code[at + word.len()..].chars().take_while(|c| is_word(*c)).collect();
            // Skipped if there is no name: a macro that defines types takes their names from
            // elsewhere.
            if !name.is_empty() && inline_modules(&source.code, at) == 0 {
                found.push(name);
            }
        }
    }
    found
}

/// Each name that more than one type has, with the files that define these types.
fn shared_names(sources: &[Source]) -> Vec<String> {
    let mut files: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for source in sources {
        for name in types(source) {
            files.entry(name).or_default().push(&source.path);
        }
    }
    let shared = files.into_iter().filter(|(_, files)| files.len() > 1);
    shared.map(|(name, files)| format!("{name}: {}", files.join(", "))).collect()
}

/// Where a mode may be named: in the mode's own file, in the enum of the modes, and in what a check
/// applies to.
const MODES: [&str; 3] = ["kube_proxy/mode/", "state/kube_proxy/mode.rs", "checks/"];

/// The modes that a file names although it must not.
fn modes_named(source: &Source) -> Vec<String> {
    if MODES.iter().any(|path| source.path.starts_with(path)) {
        return Vec::new();
    }
    ["Iptables", "Ipvs", "Nftables", "Userspace"]
        .into_iter()
        .map(|mode| format!("Mode::{mode}"))
        .filter(|mode| {
            positions(&source.code, mode).any(|at| inline_modules(&source.code, at) == 0)
        })
        .map(|mode| format!("src/{}: {mode}", source.path))
        .collect()
}

#[test]
fn one_name_is_one_type() {
    let shared = shared_names(&sources());
    assert!(shared.is_empty(), "rename one of each:\n{}", shared.join("\n"));
}

#[test]
fn a_mode_is_known_in_its_own_file() {
    // Files that contain only tests are left out, because such a file is the test module of another
    // file.
    let sources = sources();
    let found: Vec<String> = sources
        .iter()
        .filter(|source| !source.path.ends_with("/tests.rs"))
        .flat_map(modes_named)
        .collect();
    assert!(found.is_empty(), "ask the trait ProxyMode instead:\n{}", found.join("\n"));
}

#[test]
fn two_types_of_one_name_and_a_mode_elsewhere_are_found() {
    let files = [
        made_up("run/a.rs", "pub struct Report;\nmod tests {\n    struct Case;\n}"),
        made_up("run/b.rs", "enum Report {}\nmod tests {\n    struct Case;\n}"),
    ];
    assert_eq!(shared_names(&files), ["Report: run/a.rs, run/b.rs"]);
    let named = |path: &str| modes_named(&made_up(path, "let to = Mode::Ipvs;"));
    assert_eq!(named("run/a.rs"), ["src/run/a.rs: Mode::Ipvs"]);
    assert_eq!(named("kube_proxy/mode/ipvs.rs"), Vec::<String>::new());
}
