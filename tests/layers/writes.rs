//! Code below `node/` only reads the node; code below `apply/` writes.

use super::source::{Source, is_word, made_up, positions, sources};

/// Calls that change a node, as they occur in source code.
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

/// The beginnings of netlink requests that change netfilter.
const NETLINK_WRITES: [&str; 3] = ["op_new", "op_del", "op_batch"];

/// The files below `node` that make such calls all the same, with the calls and the reason.
const READERS_THAT_WRITE: [(&str, &[&str], &str); 7] = [
    (
        "node/locks.rs",
        &["DirBuilder", "set_len", "write_all"],
        "a lock is a file, with its holder's name in it",
    ),
    (
        "node/command.rs",
        &["write_all", "kill_process_group"],
        "a child reads what it is given, and is ended past its deadline",
    ),
    ("node/tools.rs", &["Tool::Modprobe", "Tool::Restore"], "the list of all programs"),
    ("node/nfnetlink/socket.rs", &["Protocol::Raw"], "it sends whatever request it is given"),
    (
        "node/nfnetlink/raw.rs",
        &["Protocol::Raw"],
        "the requests that list objects, and those that `apply` sends to make one",
    ),
    ("node/nfnetlink/mod.rs", &["Batch"], "one connection reads and commits"),
    (
        "node/nfnetlink/batch.rs",
        &["Batch", "op_del", "op_batch"],
        "the batches that `apply` commits; an empty one waits for another's commit",
    ),
];

/// The writing calls in a file below `node`, outside of the file's tests.
fn writes(source: &Source) -> Vec<&'static str> {
    if source.layer() != "node" {
        return Vec::new();
    }
    let end = source.code.find("#[cfg(test)]").unwrap_or(source.code.len());
    let code = &source.code[..end];
    let begins =
        |word: &str| code.match_indices(word).any(|(at, _)| !code[..at].ends_with(is_word));
    let calls = WRITES.into_iter().filter(|word| positions(code, word).next().is_some());
    calls.chain(NETLINK_WRITES.into_iter().filter(|word| begins(word))).collect()
}

/// The writing calls that a file is allowed to make.
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
        assert_eq!(positions(&source.code, "Batch").next(), None, "src/{}", source.path);
    }
}

/// Whether a file names the module that writes to the API server.
fn names_api_writes(source: &Source) -> bool {
    let code = source.code.replace(char::is_whitespace, "");
    let mut lists = code.split("api::{").skip(1).map(|rest| rest.split(';').next());
    code.contains("api::write") || lists.any(|list| list.is_some_and(|l| l.contains("write")))
}

#[test]
fn only_apply_writes_to_the_api_server() {
    for source in sources().iter().filter(|s| s.layer() != "apply") {
        assert!(!names_api_writes(source), "src/{}", source.path);
    }
    for text in ["use crate::api::write::patch;", "use crate::{\n api::{\n  read, write\n }\n};"] {
        assert!(names_api_writes(&made_up("run/x.rs", text)), "{text}");
    }
    assert!(!names_api_writes(&made_up("run/x.rs", "use crate::api::{ApiClient, read};")));
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
