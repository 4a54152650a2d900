//! Validates JSON documents against the published schemas.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use jsonschema::Validator;
use serde_json::Value;

use super::node::{Ended, Proxyshift};

/// The published schemas, keyed by name, and the names of the documents that were printed so far.
pub struct Schemas {
    pub validators: BTreeMap<String, Validator>,
    pub printed: BTreeSet<String>,
}

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/schemas")
}

/// The published schemas, keyed by name.
pub fn published() -> BTreeMap<String, Value> {
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
    pub fn load() -> Schemas {
        let validator = |(name, schema): (String, Value)| {
            let strict = jsonschema::draft202012::meta::validate(&schema);
            strict.unwrap_or_else(|e| panic!("{name}: {e}"));
            let built = jsonschema::draft202012::new(&schema);
            (name.clone(), built.unwrap_or_else(|e| panic!("{name}: {e}")))
        };
        let validators = published().into_iter().map(validator).collect();
        Schemas { validators, printed: BTreeSet::new() }
    }

    /// Validates `document` against the schema that the document names.
    pub fn hold(&mut self, document: &Value, what: &str) {
        let name = document["schema"].as_str().and_then(|name| name.strip_prefix("proxyshift."));
        let name = name.unwrap_or_else(|| panic!("{what}: names no schema: {document}"));
        let validator = self.validators.get(name);
        let validator = validator.unwrap_or_else(|| panic!("{what}: no schema for {name}"));
        let wrong: Vec<String> = validator
            .iter_errors(document)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{what}: {}\n{document:#}", wrong.join("\n"));
        self.printed.insert(name.to_owned());
    }

    /// Runs the program with JSON output and JSON progress, and validates every line. Returns the
    /// exit code and the document.
    pub fn run(&mut self, proxyshift: &Proxyshift, words: &str) -> (i32, Value) {
        self.ended(
            &Ended::of(proxyshift.command(&format!("-o json --progress json {words}"))),
            words,
        )
    }

    pub fn ended(&mut self, ended: &Ended, words: &str) -> (i32, Value) {
        let code = ended.code.unwrap_or_else(|| panic!("{words}: killed\n{}", ended.err));
        // Fails if there is no document, or a second one.
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

    /// Runs the program, whose exit code must be `code`. Returns the document.
    pub fn expect(&mut self, proxyshift: &Proxyshift, code: i32, words: &str) -> Value {
        let (ended, document) = self.run(proxyshift, words);
        assert_eq!(ended, code, "{words}: {document:#}");
        document
    }
}
