//! Checks of the source itself: which layer imports which, which modules print, how long files are,
//! and which words identifiers use.
//!
//! Comments and strings are blanked before, so that only code counts.

mod circles;
mod source;
mod types;
mod words;
mod writes;

use source::{Source, made_up, positions, sources};

/// Small modules that every layer may import, and that may import each other.
const SHARED: [&str; 8] =
    ["event", "error", "yaml", "clock", "runtime", "interrupt", "visible", "allocator"];

/// Each layer with the layers right below it, which come earlier in this list. A layer may import
/// all layers below it.
const ORDER: [(&str, &[&str]); 13] = [
    ("state", &[]),
    ("api", &["state"]),
    ("owners", &["state"]),
    ("kube_proxy", &["owners"]),
    ("plan", &["kube_proxy"]),
    ("cluster", &["plan"]),
    ("checks", &["plan"]),
    ("node", &["owners", "api"]),
    ("store", &["state"]),
    ("apply", &["cluster", "node"]),
    ("run", &["checks", "store", "apply"]),
    ("guard", &["checks", "store", "apply"]),
    ("front", &["run", "guard", "ui"]),
];

/// The user interface shows events and errors, so these are all the modules that it may import.
const UI: [&str; 4] = ["event", "error", "interrupt", "visible"];

/// All modules that `layer` may import besides itself; none for an unknown layer.
fn allowed(layer: &str) -> Option<Vec<&'static str>> {
    if SHARED.contains(&layer) {
        return Some(SHARED.to_vec());
    }
    if layer == "ui" {
        return Some(UI.to_vec());
    }
    let below = ORDER.iter().find(|(name, _)| *name == layer)?.1;
    let mut all = SHARED.to_vec();
    for layer in below {
        all.push(layer);
        all.extend(allowed(layer)?);
    }
    Some(all)
}

/// How many lines a file may have at most.
const MOST_LINES: usize = 450;

/// The imports of one file that are not allowed, one text each.
fn against_order(source: &Source) -> Vec<String> {
    let layer = source.layer();
    // `lib.rs` only lists the modules and `main.rs` is the entry point, so both may import
    // everything.
    if matches!(layer, "lib" | "main") {
        return Vec::new();
    }
    let Some(allowed) = allowed(layer) else {
        return vec![format!("src/{}: not in the order of layers", source.path)];
    };
    let mut imports = source.imports();
    imports.retain(|(_, name)| name != layer && !allowed.contains(&name.as_str()));
    imports
        .into_iter()
        .map(|(line, name)| format!("src/{}:{line}: {layer} must not import {name}", source.path))
        .collect()
}

#[test]
fn imports_run_one_way() {
    let wrong: Vec<String> = sources().iter().flat_map(against_order).collect();
    assert!(wrong.is_empty(), "see src/lib.rs for the order:\n{}", wrong.join("\n"));
}

/// Files outside of `ui` that write to standard output all the same: how, and the reason.
const PRINTERS: [(&str, &[&str], &str); 2] = [
    (
        "run/sandbox/mod.rs",
        &["io::stdout", "stdout()"],
        "the inner process writes JSON for the outer one",
    ),
    (
        "front/cli/usage.rs",
        &["print()"],
        "clap prints its errors itself, of words that were escaped",
    ),
];

/// Only `ui` escapes what others wrote.
#[test]
fn only_the_user_interface_prints() {
    let ways = [
        "println!",
        "eprintln!",
        "print!",
        "eprint!",
        "dbg!",
        "io::stdout",
        "io::stderr",
        "stdout()",
        "stderr()",
        "console::",
        "print()",
    ];
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| s.layer() != "ui") {
        let excepted = PRINTERS.iter().find(|(path, ..)| *path == source.path);
        let excepted = excepted.map_or(&[][..], |(_, ways, _)| ways);
        for word in ways {
            let found = positions(&source.code, word).next().is_some();
            if found != excepted.contains(&word) {
                let which = if found { "" } else { " is excepted for nothing" };
                wrong.push(format!("src/{}: {word}{which}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "emit an event, or give `ui` a page:\n{}", wrong.join("\n"));
}

/// The only file that calls a C function directly, because no crate wraps that function.
const MEMORY: &str = "allocator.rs";

#[test]
fn nothing_else_is_unsafe() {
    let sources = sources();
    let wrong: Vec<&str> = sources
        .iter()
        .filter(|s| s.path != MEMORY && positions(&s.code, "unsafe").next().is_some())
        .map(|s| s.path.as_str())
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn no_file_is_two() {
    let sources = sources();
    let long = sources.iter().filter(|s| s.lines > MOST_LINES);
    let wrong: Vec<String> = long.map(|s| format!("src/{}: {} lines", s.path, s.lines)).collect();
    assert!(wrong.is_empty(), "over {MOST_LINES} lines:\n{}", wrong.join("\n"));
}

#[test]
fn each_layer_stands_on_earlier_ones() {
    for (i, (layer, below)) in ORDER.iter().enumerate() {
        let earlier = |name: &&str| ORDER[..i].iter().any(|(e, _)| e == name) || *name == "ui";
        assert!(below.iter().all(earlier), "{layer}");
    }
}

#[test]
fn a_wrong_import_is_found_however_it_is_written() {
    let wrong = [
        ("node/x.rs", "use crate::plan::change::Edit;"),
        ("node/x.rs", "use crate::{error::Error, plan::{edit, merge}};"),
        ("node/x.rs", "use crate::{\n    error::Error,\n    run,\n};"),
        ("node/x.rs", "fn f() { crate::front::run() }"),
        ("node/x.rs", "use crate::*;"),
        ("node/x.rs", "use super::super::store;"),
        ("node/mod.rs", "use super::store::Store;"),
        ("node/mod.rs", "use super::{error, store};"),
        ("node/x/y.rs", "mod tests {\n    use super::super::super::super::plan;\n}"),
        ("yaml.rs", "use super::state;"),
        ("ui/mod.rs", "use crate::run::Context;"),
        ("ui/mod.rs", "use crate::state::NodeState;"),
        ("run/x.rs", "use crate::ui::Ui;"),
        ("store/x.rs", "use crate::node::locks;"),
        ("other/mod.rs", ""),
    ];
    for (path, text) in wrong {
        assert!(!against_order(&made_up(path, text)).is_empty(), "{path}: {text}");
    }
}

#[test]
fn what_is_no_import_is_not_taken_for_one() {
    let fine = [
        ("node/x.rs", "// use crate::plan;\n/* crate::plan */ //! [`crate::plan`]"),
        ("node/x.rs", "const A: &str = \"crate::plan\"; const B: &str = r#\"\"crate::run\"#;"),
        ("node/x.rs", "const Q: char = '\"'; use crate::state; const B: char = '\\'';"),
        ("node/x.rs", "use super::run; fn f<'a>(x: &'a str) {}"),
        ("node/x.rs", "mod tests {\n    use super::*;\n    use super::super::run;\n}"),
        ("node/x/mod.rs", "use super::tools; use crate::node::plan;"),
        ("front/x.rs", "use crate::{error, run::{self, sandbox}, state, store, ui};"),
        ("run/x.rs", "use crate::{apply, node::{tools, plan}};"),
    ];
    for (path, text) in fine {
        assert_eq!(against_order(&made_up(path, text)), Vec::<String>::new(), "{path}: {text}");
    }
}
