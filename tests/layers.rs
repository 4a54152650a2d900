//! Holds the source to its order: who may import whom, who may print, how long a file may grow.
//!
//! Comments and strings are blanked first, so that only code counts.

use std::fs;
use std::path::{Path, PathBuf};

/// Small and shared: every layer may import these, and they each other.
const SHARED: [&str; 7] = ["event", "error", "yaml", "clock", "runtime", "interrupt", "allocator"];

/// Each layer and those just below it, which stand earlier; it may import whatever lies below.
const ORDER: [(&str, &[&str]); 11] = [
    ("state", &[]),
    ("owners", &["state"]),
    ("kube_proxy", &["owners"]),
    ("plan", &["kube_proxy"]),
    ("checks", &["plan"]),
    ("node", &["state"]),
    ("store", &["state"]),
    ("apply", &["plan", "node"]),
    ("run", &["checks", "store", "apply"]),
    ("guard", &["checks", "store", "apply"]),
    ("front", &["run", "guard", "ui"]),
];

/// The user interface shows events and errors, and knows nothing else.
const UI: [&str; 3] = ["event", "error", "interrupt"];

/// All that `layer` may import besides itself; nothing for a layer that is not known.
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

/// A file longer than this is two.
const MOST_LINES: usize = 450;

/// One source file, its comments and strings blanked.
struct Source {
    /// Its path below `src`, as `run/inside/mod.rs`.
    path: String,
    /// Its code, with as many lines as the file.
    code: String,
    lines: usize,
}

impl Source {
    /// The top module that it belongs to.
    fn layer(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// How deep below the crate its own module lies: `run/inside/mod.rs` is 2.
    fn depth(&self) -> usize {
        self.path.split('/').count() - usize::from(self.path.ends_with("/mod.rs"))
    }

    /// Every top module that it names, with the line. Names of the crate's root are given as they
    /// are, and then belong to no layer.
    fn imports(&self) -> Vec<(usize, String)> {
        let mut found = paths_after(&self.code, "crate::");
        for (at, up) in supers(&self.code) {
            let inside = inline_modules(&self.code, at);
            if self.depth() + inside == up {
                let end = at + up * "super::".len();
                found.extend(names_at(&self.code, end).into_iter().map(|name| (at, name)));
            }
        }
        let line = |at: usize| self.code[..at].matches('\n').count() + 1;
        found.into_iter().map(|(at, name)| (line(at), name)).collect()
    }
}

/// Every file below `src`, sorted by path.
fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source {
                    path: path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned(),
                    lines: text.lines().count(),
                    code: code_only(&text),
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 20, "only {} files below {}", found.len(), src.display());
    found
}

/// The text with comments and the insides of strings replaced by blanks; newlines stay.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |i| i + 2),
            '"' => string_length(rest),
            'r' if !code.ends_with(is_word) => raw_string_length(rest).unwrap_or(0),
            '\'' => char_length(rest).unwrap_or(0),
            _ => 0,
        };
        if length == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    code
}

/// The length of the string that `text` begins with, both quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return i + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// The length of the raw string that `text` begins with, if it does.
fn raw_string_length(text: &str) -> Option<usize> {
    let hashes = text[1..].len() - text[1..].trim_start_matches('#').len();
    let start = 1 + hashes;
    text[start..].starts_with('"').then_some(())?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[start + 1..].find(&end).map_or(text.len(), |i| start + 1 + i + end.len()))
}

/// The length of the character that `text` begins with; none for a lifetime.
fn char_length(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        return text[3..].find('\'').map(|i| i + 4);
    }
    chars.next().filter(|(_, c)| *c == '\'').map(|(i, _)| i + 1)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands by itself in `code`.
fn places<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let goes_on = word.ends_with(is_word) && code[at + word.len()..].starts_with(is_word);
        !code[..*at].ends_with(is_word) && !goes_on
    })
}

/// The names after each `prefix`: one, or each of a list in braces.
fn paths_after(code: &str, prefix: &str) -> Vec<(usize, String)> {
    places(code, prefix)
        .flat_map(|at| names_at(code, at + prefix.len()).into_iter().map(move |name| (at, name)))
        .collect()
}

/// The name at `at`, or the first name of each path of the list in braces that begins there.
fn names_at(code: &str, at: usize) -> Vec<String> {
    let Some(list) = code[at..].strip_prefix('{') else {
        let name: String = code[at..].chars().take_while(|c| is_word(*c)).collect();
        // A star or a nested list in another place is not a name, and so no layer's.
        return vec![if name.is_empty() { code[at..].chars().take(1).collect() } else { name }];
    };
    let (mut depth, mut names, mut name) = (0, Vec::new(), Some(String::new()));
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => names.extend(name.replace(String::new())),
            c if is_word(c) && depth == 0 => name.iter_mut().for_each(|n| n.push(c)),
            ':' if depth == 0 => names.extend(name.take()),
            _ => {}
        }
    }
    names.extend(name);
    names.retain(|n| !n.is_empty());
    names
}

/// Where a run of `super::` begins, and how many there are.
fn supers(code: &str) -> Vec<(usize, usize)> {
    let word = "super::";
    places(code, word)
        .filter(|at| !code[..*at].ends_with("::"))
        .map(|at| {
            let ups = code.as_bytes()[at..].chunks(word.len());
            (at, ups.take_while(|chunk| *chunk == word.as_bytes()).count())
        })
        .collect()
}

/// How many inline modules enclose `at`. rustfmt closes each at its own indentation.
fn inline_modules(code: &str, at: usize) -> usize {
    let mut open: Vec<usize> = Vec::new();
    for line in code[..at].lines() {
        let bare = line.trim_start();
        let indent = line.len() - bare.len();
        if open.last() == Some(&indent) && bare.starts_with('}') {
            open.pop();
        }
        let words = bare.split_whitespace().skip_while(|w| w.starts_with("pub"));
        if words.take(1).eq(["mod"]) && bare.trim_end().ends_with('{') {
            open.push(indent);
        }
    }
    open.len()
}

/// What is wrong with one file's imports.
fn against_order(source: &Source) -> Vec<String> {
    let layer = source.layer();
    // The module map, and the door.
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

#[test]
fn only_the_user_interface_prints() {
    let macros = ["println!", "eprintln!", "print!", "eprint!", "dbg!"];
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| !matches!(s.layer(), "ui" | "front")) {
        for word in macros {
            wrong
                .extend(places(&source.code, word).map(|_| format!("src/{}: {word}", source.path)));
        }
    }
    assert!(wrong.is_empty(), "emit an event instead:\n{}", wrong.join("\n"));
}

/// The one call of C that no crate makes for us.
const MEMORY: &str = "allocator.rs";

#[test]
fn nothing_else_is_unsafe() {
    let sources = sources();
    let wrong: Vec<&str> = sources
        .iter()
        .filter(|s| s.path != MEMORY && places(&s.code, "unsafe").next().is_some())
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

/// Calls that change a node.
const WRITES: [&str; 33] = [
    "File::create",
    "File::options",
    "OpenOptions",
    "DirBuilder",
    "NamedTempFile",
    "tempfile",
    "tempdir",
    "create_dir",
    "create_dir_all",
    "fs::write",
    "fs::copy",
    "fs::rename",
    "rename(",
    "remove_file",
    "remove_dir",
    "remove_dir_all",
    "hard_link",
    "symlink",
    "set_permissions",
    "set_len",
    "chown",
    "fchown",
    "setxattr",
    "fsetxattr",
    "persist",
    "write_all",
    "mount(",
    "kill_process",
    "kill_process_group",
    "Tool::Modprobe",
    "Tool::Restore",
    "Protocol::Raw",
    "Batch",
];

/// The requests that change netfilter begin with these.
const NETLINK_WRITES: [&str; 3] = ["op_new", "op_del", "op_batch"];

/// The files below `node` that make such calls all the same, which, and why.
const READERS_THAT_WRITE: [(&str, &[&str], &str); 6] = [
    (
        "node/locks.rs",
        &["OpenOptions", "DirBuilder", "set_len", "write_all"],
        "a lock is a file, with its holder's name in it",
    ),
    (
        "node/command.rs",
        &["write_all", "kill_process_group"],
        "a child reads what it is given, and is ended past its deadline",
    ),
    ("node/tools.rs", &["Tool::Modprobe", "Tool::Restore"], "the list of all programs"),
    ("node/nfnetlink/socket.rs", &["Protocol::Raw"], "it sends whatever request it is given"),
    ("node/nfnetlink/mod.rs", &["Batch"], "one connection reads and commits"),
    (
        "node/nfnetlink/batch.rs",
        &["Batch", "op_del", "op_batch"],
        "the batches that `apply` commits; an empty one waits for another's commit",
    ),
];

/// The writing calls of a file below `node` outside its tests.
fn writes(source: &Source) -> Vec<&'static str> {
    if source.layer() != "node" {
        return Vec::new();
    }
    let end = source.code.find("#[cfg(test)]").unwrap_or(source.code.len());
    let code = &source.code[..end];
    let begins =
        |word: &str| code.match_indices(word).any(|(at, _)| !code[..at].ends_with(is_word));
    let calls = WRITES.into_iter().filter(|word| places(code, word).next().is_some());
    calls.chain(NETLINK_WRITES.into_iter().filter(|word| begins(word))).collect()
}

/// The excepted calls of a file.
fn excepted(path: &str) -> &'static [&'static str] {
    READERS_THAT_WRITE.iter().find(|(file, ..)| *file == path).map_or(&[], |(_, calls, _)| calls)
}

#[test]
fn below_node_nothing_is_written() {
    let mut wrong = Vec::new();
    for source in sources() {
        let (found, allowed) = (writes(&source), excepted(&source.path));
        let new = found.iter().filter(|call| !allowed.contains(call));
        wrong.extend(new.map(|call| format!("src/{}: {call}", source.path)));
        let stale = allowed.iter().filter(|call| !found.contains(call));
        wrong.extend(
            stale.map(|call| format!("src/{}: {call} is excepted for nothing", source.path)),
        );
    }
    assert!(wrong.is_empty(), "what changes a node belongs below src/apply:\n{}", wrong.join("\n"));
}

#[test]
fn only_apply_commits_batches() {
    for source in sources().iter().filter(|s| !matches!(s.layer(), "apply" | "node")) {
        assert_eq!(places(&source.code, "Batch").next(), None, "src/{}", source.path);
    }
}

#[test]
fn a_write_below_node_is_found_however_it_is_called() {
    for (text, call) in [
        ("fn f() { std::fs::write(PATH, text) }", "fs::write"),
        ("use std::fs::{self, OpenOptions};", "OpenOptions"),
        ("use std::fs::rename as moved;", "fs::rename"),
        ("fn f() { File::create(path) }", "File::create"),
        ("fn f(mut file: File) { file.write_all(b) }", "write_all"),
        ("fn f() { rustix::process::kill_process(pid, Signal::KILL) }", "kill_process"),
        ("fn f() { tools.command(Tool::Modprobe) }", "Tool::Modprobe"),
        ("fn f() { Request::new().op_delrule_do(&header) }", "op_del"),
    ] {
        assert_eq!(writes(&made_up("node/x.rs", text)), [call], "{text}");
        assert_eq!(writes(&made_up("apply/x.rs", text)), [""; 0], "{text}");
    }
    for text in [
        "fn f() { fs::read_to_string(PATH) }",
        "// fs::write\nconst A: &str = \"fs::write\"; fn renamed() {}",
        "fn f() { Request::new().op_getrule_dump(&header) }",
        "#[cfg(test)]\nmod tests {\n    fn f() { std::fs::write(PATH, text) }\n}",
    ] {
        assert_eq!(writes(&made_up("node/x.rs", text)), [""; 0], "{text}");
    }
}

#[test]
fn each_layer_stands_on_earlier_ones() {
    for (i, (layer, below)) in ORDER.iter().enumerate() {
        let earlier = |name: &&str| ORDER[..i].iter().any(|(e, _)| e == name) || *name == "ui";
        assert!(below.iter().all(earlier), "{layer}");
    }
}

/// A source made up for a test of this file's own reading.
fn made_up(path: &str, text: &str) -> Source {
    Source { path: path.into(), code: code_only(text), lines: text.lines().count() }
}

#[test]
fn a_wrong_import_is_found_however_it_is_written() {
    let wrong = [
        ("node/x.rs", "use crate::plan::edit::Edit;"),
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
