//! What programs read: one document a call whatever happens, events as lines, all as the published
//! schemas say; and nothing is ever asked where nobody can answer.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::in_namespace;
use common::node::{Ended, Node, Proxyshift, all_captured, captured};
use jsonschema::Validator;
use proxyshift::state::Backend;
use serde_json::Value;

/// The published schemas, and the documents of which some were seen.
struct Schemas {
    validators: BTreeMap<String, Validator>,
    seen: BTreeSet<String>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/schemas")
}

/// The names of the schemas, and what they say.
fn published() -> BTreeMap<String, Value> {
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a schema");
        let name = path.file_stem().expect("a name").to_str().expect("text").to_owned();
        (name, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    };
    fs::read_dir(folder())
        .expect("docs/schemas")
        .map(|e| read(e.expect("an entry").path()))
        .collect()
}

impl Schemas {
    fn load() -> Schemas {
        let validator = |(name, schema): (String, Value)| {
            let strict = jsonschema::draft202012::meta::validate(&schema);
            strict.unwrap_or_else(|e| panic!("{name}: {e}"));
            let built = jsonschema::draft202012::new(&schema);
            (name.clone(), built.unwrap_or_else(|e| panic!("{name}: {e}")))
        };
        let validators = published().into_iter().map(validator).collect();
        Schemas { validators, seen: BTreeSet::new() }
    }

    /// Holds `document` against the schema that it names.
    fn hold(&mut self, document: &Value, what: &str) {
        let name = document["schema"].as_str().and_then(|name| name.strip_prefix("proxyshift."));
        let name = name.unwrap_or_else(|| panic!("{what}: names no schema: {document}"));
        let validator = self.validators.get(name);
        let validator = validator.unwrap_or_else(|| panic!("{what}: no schema for {name}"));
        let wrong: Vec<String> = validator
            .iter_errors(document)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{what}: {}\n{document:#}", wrong.join("\n"));
        self.seen.insert(name.to_owned());
    }

    /// Runs `words` for a program to read, and holds what it prints against the schemas; the
    /// document.
    fn run(&mut self, proxyshift: &Proxyshift, words: &str) -> (i32, Value) {
        self.ended(
            &Ended::of(proxyshift.command(&format!("-o json --progress json {words}"))),
            words,
        )
    }

    fn ended(&mut self, ended: &Ended, words: &str) -> (i32, Value) {
        let code = ended.code.unwrap_or_else(|| panic!("{words}: killed\n{}", ended.err));
        // Fails on a second document, and on none.
        let document = ended.json();
        self.hold(&document, words);
        if document["schema"] == "proxyshift.error" {
            assert_eq!(document["code"], code, "{words}");
        }
        for line in ended.err.lines() {
            let event: Value = serde_json::from_str(line)
                .unwrap_or_else(|e| panic!("{words}: {e}: standard error has: {line}"));
            self.hold(&event, words);
            assert_eq!(event["schema"], "proxyshift.event", "{words}");
        }
        (code, document)
    }

    /// Runs `words`, which must end so; the document.
    fn expect(&mut self, proxyshift: &Proxyshift, code: i32, words: &str) -> Value {
        let (ended, document) = self.run(proxyshift, words);
        assert_eq!(ended, code, "{words}: {document:#}");
        document
    }
}

fn elsewhere() -> (tempfile::TempDir, Proxyshift) {
    let tmp = tempfile::tempdir().expect("a folder");
    let store = tmp.path().join("store");
    (tmp, Proxyshift { store, lock_wait: 0 })
}

#[test]
fn captures_are_told_of_in_documents_that_have_schemas() {
    let (tmp, proxyshift) = elsewhere();
    let mut schemas = Schemas::load();
    for name in all_captured() {
        let dir = captured(&name).display().to_string();
        schemas.expect(&proxyshift, 0, &format!("plan --snapshot {dir}"));
        schemas.expect(&proxyshift, 0, &format!("snapshot show {dir}"));
        schemas.expect(&proxyshift, 0, &format!("snapshot verify {dir}"));
        let (code, _) = schemas.run(&proxyshift, &format!("check --to ipvs --snapshot {dir}"));
        assert!([0, 3].contains(&code), "{name}: {code}");
        let file = tmp.path().join(&name).display().to_string();
        schemas.run(&proxyshift, &format!("check --snapshot {dir} --write-config {file}"));
    }
    let (one, other) = (captured(&all_captured()[0]), captured(&all_captured()[1]));
    let (one, other) = (one.display(), other.display());
    let differences = schemas.expect(&proxyshift, 0, &format!("snapshot diff {one} {other}"));
    assert!(!differences["differences"].as_array().expect("a list").is_empty());
    schemas.expect(&proxyshift, 0, "check --list");
    schemas.expect(&proxyshift, 0, "status");
    schemas.expect(&proxyshift, 3, "report");
    schemas.expect(&proxyshift, 3, "plan --snapshot nowhere");
    for seen in ["check", "checks", "diff", "plan", "write-config", "error", "status"] {
        assert!(schemas.seen.contains(seen), "{seen}: {:?}", schemas.seen);
    }
}

#[test]
fn wrong_arguments_are_told_in_the_form_that_was_asked_for() {
    let (_tmp, proxyshift) = elsewhere();
    let mut schemas = Schemas::load();
    let wrong = [
        "",
        "frob",
        "chek",
        "migrate",
        "migrate --to nowhere",
        
        "snapshot",
        "snapshot prune --keep 0",
        "snapshot prune --keep few",
        "extend",
        "extend soon",
        "extend 90d",
        "check --only no.such-check",
        "check --to",
        "check --watch 1 --snapshot x",
        "check --fix --snapshot x",
        "guard",
        "guard --for everything",
        "cleanup --owner",
        "report one two",
        "completions",
        "completions tcsh",
        "completions bash",
        "cleanup --frob",
        "status --output yaml",
    ];
    for words in wrong {
        let error = schemas.expect(&proxyshift, 2, words);
        assert_eq!(error["kind"], "usage", "{words}: {error}");
        assert!(error["hint"].is_string() || words.contains("--keep 0"), "{words}: {error}");
        // The same without the document: for people, on standard error.
        let ended = Ended::of(proxyshift.command(words));
        let told = words == "completions bash";
        assert!(told || (ended.code == Some(2) && ended.out.is_empty()), "{words}: {}", ended.out);
    }
    // Progress as JSON alone: the error is a line of it.
    let ended = proxyshift.expect(2, "frob --progress json");
    let line: Value = serde_json::from_str(ended.err.trim()).expect(&ended.err);
    schemas.hold(&line, "frob --progress json");
    // Help and version are no documents, and no errors.
    assert!(proxyshift.expect(0, "--help -o json").out.contains("Commands:"));
    assert!(proxyshift.expect(0, "--version -o json").out.starts_with("proxyshift "));
}

/// Each verb that would ask on a terminal, and the flags that its refusal must name.
const WOULD_ASK: [(&str, &[&str]); 4] = [
    ("cleanup", &["--yes", "--dry-run"]),
    ("cleanup --confirm-within 5m", &["--yes", "--dry-run"]),
    ("migrate --to ipvs", &["--yes", "check --to ipvs"]),
    ("check --fix", &["--yes", "--fix"]),
];

#[test]
fn nothing_is_asked_off_a_terminal_and_the_refusal_names_the_flag() {
    if !in_namespace("nothing_is_asked_off_a_terminal_and_the_refusal_names_the_flag") {
        return;
    }
    let _node = Node::load("canal-stale-flannel-1.20", Backend::Nft);
    let proxyshift = Proxyshift::new("store");
    for (words, flags) in WOULD_ASK {
        // A yes that waits in a pipe is nobody's answer.
        for yes in [false, true] {
            let mut command = proxyshift.command(words);
            if yes {
                let (read, mut write) = std::io::pipe().expect("a pipe");
                std::io::Write::write_all(&mut write, b"y\ny\ny\n").expect("written");
                command.stdin(Stdio::from(read));
            }
            let ended = Ended::of(command);
            assert_eq!(ended.code, Some(2), "{words}: {}", ended.err);
            ended.says(flags);
        }
        // Nor is anything asked on a terminal when a program reads what is printed.
        for form in ["-o json", "--progress json"] {
            let own = env!("CARGO_BIN_EXE_proxyshift");
            let store = proxyshift.store.display();
            let line = format!("{own} --store {store} {form} {words}");
            let output = Command::new("script")
                .args(["-qec", &line, "/dev/null"])
                .stdin(Stdio::null())
                .output()
                .expect("script, of util-linux, runs");
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(2), "{form} {words}: {said}");
            assert!(said.contains("--yes"), "{form} {words}: {said}");
        }
    }
    // All others do their work, or say why not, without a question.
    for words in ["resume", "confirm", "extend 1m", "rollback"] {
        proxyshift.expect(3, words);
    }
    for words in ["status", "plan", "snapshot create", "snapshot prune --keep 1", "rehearse"] {
        proxyshift.expect(0, words);
    }
    let import = proxyshift.run("snapshot import /dev/null");
    assert!(import.code != Some(0) && import.err.contains("/dev/null"), "{}", import.err);
    assert!(proxyshift.run("status -o json").json()["runs"].as_array().expect("a list").is_empty());
}

#[test]
fn every_verb_on_a_node_gives_one_document_that_its_schema_knows() {
    if !in_namespace("every_verb_on_a_node_gives_one_document_that_its_schema_knows") {
        return;
    }
    let _node = Node::load("canal-stale-flannel-1.20", Backend::Nft);
    let proxyshift = Proxyshift::new("store");
    let mut schemas = Schemas::load();
    let mut expect = |code, words: &str| schemas.expect(&proxyshift, code, words);
    expect(0, "plan");
    expect(0, "rehearse");
    expect(0, "cleanup --dry-run");
    for words in ["rollback", "resume", "confirm", "extend 1m"] {
        expect(3, words);
    }
    // Snapshots.
    expect(0, "snapshot list");
    let taken = expect(0, "snapshot create");
    let id = taken["snapshot"].as_str().expect("an id").to_owned();
    for words in ["list", "show", "verify", "diff latest"] {
        expect(0, &format!("snapshot {words}"));
    }
    expect(0, "snapshot export latest /run/one.tar.gz");
    fs::rename(proxyshift.store.join("snapshots").join(&id), "/run/aside").expect("moved");
    expect(0, "snapshot import /run/one.tar.gz");
    expect(0, "snapshot prune --keep 1");
    // A clean-up that waits, is kept, and is undone all the same.
    expect(0, "cleanup --yes --confirm-within 5m");
    expect(6, "status");
    assert_eq!(expect(0, "report")["state"], "unconfirmed");
    expect(6, "cleanup --yes");
    expect(6, "resume");
    expect(0, "extend 10m");
    expect(0, "confirm");
    assert_eq!(expect(0, "confirm")["changed"], false);
    let kept = expect(0, "report");
    assert!(kept["confirmed"].is_string() && kept["ended"].is_string(), "{kept:#}");
    assert_eq!(expect(0, "cleanup --yes")["run"], Value::Null);
    expect(0, "rollback");
    assert_eq!(expect(0, "report")["state"], "rolled-back");
    // Remedies.
    let (_, fixed) = schemas.run(&proxyshift, "check --fix --yes");
    assert!(fixed["fixed"]["run"].is_string(), "{fixed:#}");
    let report = schemas.expect(&proxyshift, 0, "report");
    assert!(!report["findings"].as_array().expect("a list").is_empty(), "{report:#}");
    schemas.expect(&proxyshift, 0, "rollback");
    // One that is cut off.
    let mut command = proxyshift.command("cleanup --yes");
    command.env("PROXYSHIFT_CRASH", "after:1").output().expect("starts");
    schemas.expect(&proxyshift, 6, "status");
    assert_eq!(schemas.expect(&proxyshift, 0, "report")["state"], "running");
    schemas.expect(&proxyshift, 0, "resume");
    assert_eq!(schemas.expect(&proxyshift, 0, "report")["state"], "done");
    schemas.expect(&proxyshift, 0, "status");
    // An exception, where a living Calico has to be passed.
    schemas.expect(&proxyshift, 0, "guard --for 10.9.0.0/24 --once --contest");
    // The virtual machine has a kube-proxy that can be taken elsewhere.
    schemas.run(&proxyshift, "migrate --to ipvs --yes");
    let elsewhere = ["check", "checks", "migrate", "write-config"].map(str::to_owned);
    let mut known: BTreeSet<String> = schemas.validators.keys().cloned().collect();
    known.retain(|name| !schemas.seen.contains(name) && !elsewhere.contains(name));
    assert!(known.is_empty(), "no document of these was seen: {known:?}");
}

#[test]
fn each_schema_is_in_the_list_and_says_what_each_field_is() {
    let page = fs::read_to_string(folder().with_file_name("json.md")).expect("docs/json.md");
    for (name, schema) in published() {
        assert!(page.contains(&format!("| [proxyshift.{name}](schemas/{name}.json) |")), "{name}");
        assert_eq!(schema["properties"]["schema"]["const"], format!("proxyshift.{name}"));
        let closed = schema["additionalProperties"] == false;
        assert!(closed && schema["required"].as_array().is_some_and(|r| r.len() >= 3), "{name}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| [proxyshift.")).count();
    assert_eq!(rows, published().len());
}
