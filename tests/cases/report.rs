//! What `check` reports of a case.

use serde_json::Value;

use crate::case::Case;

const PROCESSES: &str = "processes.json";

/// The finding of the check `id`; panics if it did not run.
pub fn finding(report: &Value, id: &str) -> Value {
    let checks = report["findings"].as_array().expect("findings");
    let found = checks.iter().find(|check| check["id"] == id);
    found.unwrap_or_else(|| panic!("{id} did not run")).clone()
}

pub fn outcome(report: &Value, id: &str) -> String {
    finding(report, id)["outcome"].as_str().expect("an outcome").to_owned()
}

/// The texts of one field of a finding.
pub fn texts(finding: &Value, field: &str) -> String {
    let list = finding[field].as_array().map(|all| all.iter().filter_map(Value::as_str));
    match list {
        Some(list) => list.collect::<Vec<_>>().join("\n"),
        None => finding[field].as_str().unwrap_or_default().to_owned(),
    }
}

/// Asserts that a text has each of these parts.
pub fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// The case `name` with other processes.
pub fn with_processes(name: &str, processes: Value) -> Case {
    let [case, _] = Case::both(name);
    let mut files = case.files();
    files.insert(PROCESSES.into(), processes.to_string().into());
    Case::of(&format!("{name} with {processes}"), files)
}
