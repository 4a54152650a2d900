//! The words of docs/GLOSSARY.md: identifiers must not use the words that the glossary replaced.

use std::collections::BTreeSet;

use super::source::{Source, is_word, made_up, sources};

/// Each replaced word, with the word to use instead. A word in lower case matches one part of a
/// name in snake case, or several parts in a row; a word with a capital matches one part of a name
/// in camel case.
const REPLACED: [(&str, &str); 50] = [
    ("ahead", "preview"),
    ("asked", "requested or probed"),
    ("at_hand", "cached"),
    ("bring_back", "restore"),
    ("carry_out", "run"),
    ("cry", "broadcast"),
    ("faithful", "verified"),
    ("farewell", "summary"),
    ("go_on", "keep_waiting or resume"),
    ("go_with", "resume"),
    ("going", "removed"),
    ("heard", "collected"),
    ("in_hand", "pending"),
    ("judged", "decided"),
    ("looked", "observed"),
    ("mend", "fix"),
    ("mended", "fixed"),
    ("outlook", "preview"),
    ("patience", "timeout"),
    ("places", "positions"),
    ("prove", "verify"),
    ("proven", "verified"),
    ("proves", "verifies"),
    ("put_back", "restore"),
    ("said", "reported or output"),
    ("seen", "observed or found"),
    ("stand_by", "watchdog"),
    ("standby", "watchdog"),
    ("stands_by", "watchdog"),
    ("take_back", "undo"),
    ("tell", "log or configure"),
    ("told", "configured or reported"),
    ("tried", "attempted"),
    ("way_back", "undo"),
    ("Ahead", "Preview"),
    ("Asked", "Options or Request"),
    ("Heard", "Collected"),
    ("Held", "Kernel"),
    ("Judged", "Recorded"),
    ("Looked", "Observed"),
    ("Mend", "Fix"),
    ("Outlook", "Preview"),
    ("Place", "Position or Location"),
    ("Proof", "Claim"),
    ("Said", "Logged"),
    ("Seen", "Observation"),
    ("StandBy", "Watchdog"),
    ("Taken", "Baseline"),
    ("Told", "Configured"),
    ("Tried", "Attempt"),
];

/// The parts of a name: `stand` and `by` for `stand_by` and `STAND_BY`, `Stand` and `By` for
/// `StandBy`.
fn parts(name: &str) -> Vec<String> {
    let is_camel = name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase);
    if !is_camel {
        return name.to_lowercase().split('_').map(str::to_owned).collect();
    }
    let mut parts: Vec<String> = Vec::new();
    for c in name.chars() {
        match parts.last_mut() {
            Some(part) if !c.is_uppercase() => part.push(c),
            _ => parts.push(c.into()),
        }
    }
    parts
}

/// The replaced word that a name contains, with the word to use instead.
fn replaced(name: &str) -> Option<(&'static str, &'static str)> {
    let parts = parts(name);
    REPLACED.into_iter().find(|(old, _)| {
        let old = self::parts(old);
        parts.windows(old.len()).any(|window| window == old)
    })
}

/// The names in a file that contain a replaced word, each once.
fn old_names(source: &Source) -> Vec<String> {
    let names: BTreeSet<&str> = source.code.split(|c| !is_word(c)).collect();
    names
        .into_iter()
        .filter_map(|name| {
            let (old, new) = replaced(name)?;
            Some(format!("src/{}: {name}: not {old}, but {new}", source.path))
        })
        .collect()
}

#[test]
fn identifiers_use_the_words_of_the_glossary() {
    let found: Vec<String> = sources().iter().flat_map(old_names).collect();
    assert!(found.is_empty(), "{} names, see docs/GLOSSARY.md:\n{}", found.len(), found.join("\n"));
}

#[test]
fn a_replaced_word_is_found_however_it_is_written() {
    let old = [
        "fn told() {}",
        "fn f(stand_by: u8) {}",
        "const STAND_BY: u8 = 0;",
        "let x = a.is_told_apart;",
        "struct StandBy;",
        "enum E { OneSeen { at: u8 } }",
        "f::<Told>()",
        "f(|way_back| 0)",
    ];
    for text in old {
        assert_eq!(old_names(&made_up("run/x.rs", text)).len(), 1, "{text}");
    }
    let found = old_names(&made_up("run/x.rs", "fn told() { told(); untold() }"));
    assert_eq!(found, ["src/run/x.rs: told: not told, but configured or reported"]);
}

#[test]
fn other_words_are_no_replaced_ones() {
    let fine = [
        "// told\nconst A: &str = \"told\";",
        "fn unseen(placed: u8, taken_out: u8) {}",
        "struct Tolde; struct ReplacedBy; const STANDARD: u8 = 0;",
        "let by_stand = stand.by;",
    ];
    for text in fine {
        assert_eq!(old_names(&made_up("run/x.rs", text)), [""; 0], "{text}");
    }
}
