//! One case: the capture of a node, and a copy of it under other names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proxyshift::state::NodeState;
use regex::{Captures, Regex};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::program;
use crate::nodes;

/// The captured files of a node.
pub struct Case {
    /// What failing tests call it.
    pub name: String,
    folder: TempDir,
}

impl Case {
    /// The case as it was reported, and the same node with other addresses, names and process ids.
    pub fn both(name: &str) -> [Case; 2] {
        let plain = Case::of(name, nodes::files_below(&Case::folder_of(name)));
        let renamed = nodes::files_below(&Case::folder_of(name)).into_iter();
        let renamed = renamed.map(|(path, text)| (path, rename(&text).as_str().into()));
        [plain, Case::of(&format!("{name}, renamed"), renamed.collect())]
    }

    /// A case that has these files.
    pub fn of(name: &str, files: proxyshift::state::Files) -> Case {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text.as_bytes()).expect("a file");
        }
        Case { name: name.to_owned(), folder }
    }

    fn folder_of(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/nodes").join(name)
    }

    /// The files, to be changed by a test.
    pub fn files(&self) -> proxyshift::state::Files {
        nodes::files_below(self.folder.path())
    }

    /// The node state that the files describe.
    pub fn state(&self) -> NodeState {
        nodes::state(&self.files())
    }

    /// What `proxyshift -o json` answers to these words about the node.
    pub fn json(&self, words: &str) -> Value {
        let output = self.run(&format!("-o json {words}"));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            let err = String::from_utf8_lossy(&output.stderr);
            panic!("{}: {words}: {error}\n{err}", self.name)
        })
    }

    /// What `proxyshift` prints for people to these words about the node.
    pub fn text(&self, words: &str) -> String {
        String::from_utf8(self.run(words).stdout).expect("text")
    }

    /// What `proxyshift` does with these words about the node.
    pub fn run(&self, words: &str) -> Output {
        let store = self.folder.path().join("store");
        let mut command = Command::new(program());
        command.arg("--store").arg(store).args(words.split_whitespace());
        command.arg("--snapshot").arg(self.folder.path());
        command.output().expect("the program runs")
    }
}

/// A capture's text with other addresses, node names, link names, chain names and process ids. What
/// belongs together still does.
fn rename(text: &str) -> String {
    let replace = |text: String, pattern: &str, with: &dyn Fn(&Captures<'_>) -> String| {
        Regex::new(pattern).expect("a pattern").replace_all(&text, with).into_owned()
    };
    let text = replace(text.to_owned(), r"\b(10|172|192\.168)((?:\.\d+){2,3})(/\d+)?\b", &address);
    let text = replace(text, r"\bnode1\b", &|_| "ip-worker-b".into());
    let text = replace(text, r#"("pid": )(\d+)"#, &|c| {
        format!("{}{}", &c[1], c[2].parse::<u32>().expect("a number") + 30_011)
    });
    let text = replace(text, r"\b(eni|azv|cali|veth)([0-9a-f]{8,11})\b", &|c| {
        format!("{}{}", &c[1], rotate(&c[2], "0123456789abcdef"))
    });
    replace(text, r"\b(KUBE-[A-Z]{2,4}-)([A-Z2-7]{16})\b", &|c| {
        format!("{}{}", &c[1], rotate(&c[2], "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
    })
}

/// The same address in another private network. A network that holds both stays.
fn address(found: &Captures<'_>) -> String {
    let mask = found.get(3).map_or("", |mask| mask.as_str());
    let length = mask.trim_start_matches('/').parse().unwrap_or(32);
    let mut octets: Vec<u8> = found[1]
        .split('.')
        .chain(found[2].split('.').skip(1))
        .map(|octet| octet.parse().expect("an octet"))
        .collect();
    let (index, bit, network) = match octets[0] {
        10 => (1, 128, 8),
        172 => (1, 8, 12),
        _ => (2, 128, 16),
    };
    if octets.len() == 4 && length > network {
        octets[index] ^= bit;
    }
    let octets: Vec<String> = octets.iter().map(u8::to_string).collect();
    octets.join(".") + mask
}

/// Each character of `text` replaced by the one that follows it in `alphabet`.
fn rotate(text: &str, alphabet: &str) -> String {
    let next = |c: char| {
        let at = alphabet.find(c).expect("of the alphabet");
        alphabet[at + 1..].chars().next().or(alphabet.chars().next()).expect("a character")
    };
    text.chars().map(next).collect()
}
