//! No circles: among the modules of one folder, imports go in one direction.
//!
//! A module may use the items of its parent, and a parent those of its children. Any other two
//! modules of one folder, each with everything below it, must not reach each other in both
//! directions. Tests inside a file do not count.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, inline_modules, is_word, made_up, positions, sources};

/// The path of a module, in parts: `run/stage/mod.rs` is `["run", "stage"]`.
type Module = Vec<String>;

/// The modules of one folder, each with the modules of that folder that it imports.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn module_of(path: &str) -> Module {
    let mut names: Module = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

/// The modules that a file names after `crate::`, `self::` and `super::`, as absolute paths.
fn paths_named(source: &Source) -> Vec<Module> {
    let own = module_of(&source.path);
    let mut found = Vec::new();
    for word in ["crate::", "self::", "super::"] {
        for at in positions(&source.code, word) {
            // This `super::` is skipped if it follows another `super::`, with which it was read, or
            // if it is in an inline module.
            if source.code[..at].ends_with("::") || inline_modules(&source.code, at) > 0 {
                continue;
            }
            let mut rest = &source.code[at..];
            let mut base = if word == "crate::" { Module::new() } else { own.clone() };
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
            let rest = rest.trim_start_matches("crate::").trim_start_matches("self::");
            read_tree(rest, &base, &mut found);
        }
    }
    found
}

/// Reads the path, or the list of paths in braces, with which `text` begins. Returns the length
/// that was read.
fn read_tree(text: &str, base: &[String], found: &mut Vec<Module>) -> usize {
    let mut path = base.to_vec();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        if rest.starts_with('{') {
            at += 1;
            loop {
                at += text[at..].len() - text[at..].trim_start_matches([' ', '\n', ',']).len();
                if text[at..].starts_with('}') || at >= text.len() {
                    return at + 1;
                }
                let length = read_tree(&text[at..], &path, found);
                at += length.max(1);
            }
        }
        let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
        at += name.len().max(usize::from(name.is_empty()));
        if name != "self" {
            path.push(name);
        }
        match text.get(at..).and_then(|rest| rest.strip_prefix("::")) {
            Some(_) => at += 2,
            None => break,
        }
    }
    found.push(path);
    at
}

/// For each folder, which of its modules import which others.
fn graphs(sources: &[Source]) -> BTreeMap<Module, Graph> {
    let known: BTreeSet<Module> = sources.iter().map(|s| module_of(&s.path)).collect();
    let mut graphs: BTreeMap<Module, Graph> = BTreeMap::new();
    for source in sources.iter().filter(|s| !matches!(s.layer(), "lib" | "main")) {
        let own = module_of(&source.path);
        for path in paths_named(source) {
            let module = (1..=path.len()).rev().map(|n| &path[..n]).find(|p| known.contains(*p));
            let Some(module) = module else { continue };
            let shared = own.iter().zip(module).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (own.get(shared), module.get(shared)) {
                let graph = graphs.entry(own[..shared].to_vec()).or_default();
                graph.entry(from.clone()).or_default().insert(to.clone());
            }
        }
    }
    graphs
}

/// A chain of imports from the module `name` back to itself, if there is one.
fn circle(graph: &Graph, name: &str) -> Option<Vec<String>> {
    let mut paths = vec![vec![name.to_owned()]];
    let mut visited = BTreeSet::new();
    while let Some(path) = paths.pop() {
        for next in graph.get(path.last()?).into_iter().flatten() {
            let mut longer = path.clone();
            longer.push(next.clone());
            if next == name {
                return Some(longer);
            }
            if visited.insert(next.clone()) {
                paths.push(longer);
            }
        }
    }
    None
}

/// The circles among the modules of `sources`; one for each module that is part of a circle.
fn circles(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for (folder, graph) in graphs(sources) {
        for name in graph.keys() {
            let path = circle(&graph, name);
            found
                .extend(path.map(|path| format!("src/{}: {}", folder.join("/"), path.join(" → "))));
        }
    }
    found
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let found = circles(&sources());
    assert!(
        found.is_empty(),
        "{} modules are part of a circle:\n{}",
        found.len(),
        found.join("\n")
    );
}

#[test]
fn a_circle_made_on_purpose_is_found_however_it_is_written() {
    let circle = |files: &[(&str, &str)]| {
        circles(&files.iter().map(|(path, text)| made_up(path, text)).collect::<Vec<_>>())
    };
    let found = circle(&[
        ("run/a.rs", "use crate::run::{Context, b::B};"),
        ("run/b.rs", "use super::c::f;"),
        ("run/c.rs", "fn f() { crate::run::a::g() }"),
        ("run/mod.rs", "mod a;\nmod b;\nmod c;"),
    ]);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[0], "src/run: a → b → c → a");
    // A folder beside a file: all modules below the folder count as the folder.
    let found = circle(&[
        ("run/a/mod.rs", ""),
        ("run/a/deep.rs", "use crate::run::b;"),
        ("run/b.rs", "use crate::{error, run::a};"),
    ]);
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn a_parent_and_its_children_are_no_circle() {
    let files = [
        ("run/mod.rs", "mod a;\npub use a::A;\npub struct Context;"),
        ("run/a.rs", "use crate::run::Context;\nmod tests {\n    use crate::run::b;\n}"),
        ("run/b.rs", "use super::{Context, a};"),
    ];
    let files: Vec<Source> = files.iter().map(|(path, text)| made_up(path, text)).collect();
    assert_eq!(circles(&files), Vec::<String>::new());
}
