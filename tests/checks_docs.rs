//! The documentation of the checks matches the registry of checks, and `check` prints what is
//! documented.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::node::{Ended, Proxyshift, all_captured, captured};
use proxyshift::checks;
use serde_json::Value;

const PAGE: &str = "docs/checks.md";

#[test]
fn the_page_of_checks_is_in_step() {
    let text = checks::markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all("docs").expect("docs/");
        fs::write(PAGE, &text).expect("docs/checks.md");
    }
    let page = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(page == text, "{PAGE} is old: run UPDATE_DOCS=1 cargo test --test checks_docs");
}

/// Runs `check` on each captured node, without and with each target mode, as text and as JSON.
fn judged(each: impl Fn(&str, &Ended, &Ended)) {
    let tmp = tempfile::tempdir().expect("a folder");
    let proxyshift = Proxyshift::of_store(tmp.path().join("store"));
    for name in all_captured() {
        for to in ["", " --to iptables", " --to ipvs", " --to nftables"] {
            let words = format!("check{to} --snapshot {}", captured(&name).display());
            let json = proxyshift.run(&format!("{words} -o json"));
            each(&format!("{name}{to}"), &proxyshift.run(&words), &json);
        }
    }
}

#[test]
fn documents_have_the_documented_form() {
    judged(|what, text, json| {
        let document = json.json();
        let keys = |value: &Value| -> BTreeSet<String> {
            value.as_object().expect("an object").keys().cloned().collect()
        };
        let named = |names: &str| names.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(keys(&document), named("schema version node findings"), "{what}");
        assert_eq!(
            (&document["schema"], &document["version"]),
            (&"proxyshift.check".into(), &1.into())
        );
        assert!(document["node"].is_string(), "{what}");
        let mut blocked = false;
        for finding in document["findings"].as_array().expect("a list") {
            let fields = "id title severity outcome evidence effect remedy fixable reference";
            assert_eq!(keys(finding), named(fields), "{what}");
            let is = |field: &str, words: &str| words.split(' ').any(|word| finding[field] == word);
            assert!(is("severity", "block warn info"), "{what}: {finding}");
            assert!(is("outcome", "ok found unknown"), "{what}: {finding}");
            assert!(finding["fixable"].is_boolean(), "{what}: {finding}");
            let found = finding["outcome"] == "found";
            let filled = |field: &str| finding[field].as_array().is_some_and(|l| !l.is_empty());
            assert!(filled("evidence"), "{what}: {finding}");
            assert_eq!(filled("remedy"), found, "{what}: {finding}");
            assert!(found || finding["fixable"] == false, "{what}: {finding}");
            blocked |= found && finding["severity"] == "block";
        }
        let code = Some(if blocked { 3 } else { 0 });
        assert_eq!((json.code, text.code), (code, code), "{what}");
    });
}

#[test]
fn the_text_fits_a_page_and_has_no_colour() {
    judged(|what, text, _| {
        assert!(!text.out.contains('\u{1b}') && !text.err.contains('\u{1b}'), "{what}");
        let mut rank = 0;
        for line in text.out.lines() {
            // A line may be longer than 80 columns if it has only one word, with at most a label
            // before it, because words are not split.
            let whole = line.split_whitespace().count() <= 2;
            assert!(whole || line.chars().count() <= 80, "{what}: {line}");
            let severities = ["BLOCK  ", "WARN  ", "INFO  "];
            if let Some(at) = severities.iter().position(|s| line.starts_with(s)) {
                assert!(at >= rank, "{what}: {line} stands behind something less serious");
                rank = at;
            }
        }
    });
}
