//! Every `iptables-save` text that is available parses, and renders to the same bytes. Every broken
//! one is refused with the reason.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use proxyshift::error::{Kind, Result};
use proxyshift::state::ruleset::Ruleset;
use proxyshift::state::shared_str::SharedStr;

fn parse(path: &Path) -> Result<(SharedStr, Ruleset)> {
    let text: SharedStr = fs::read_to_string(path).expect("a readable file").into();
    let name = path.file_name().expect("a name").to_string_lossy();
    Ok((text.clone(), Ruleset::parse(&name, text)?))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|e| e.expect("an entry").path())
        .collect();
    files.sort();
    files
}

/// The folder with foreign dumps, which are private and kept outside of the project; none if this
/// machine has none.
fn dumps() -> Option<PathBuf> {
    let dir = std::env::var_os("PROXYSHIFT_DUMPS").map(PathBuf::from);
    assert!(
        dir.is_some() || std::env::var_os("CI").is_none(),
        "CI must set PROXYSHIFT_DUMPS to the folder of dumps"
    );
    dir
}

#[test]
fn captured_nodes_round_trip() {
    let mut seen = 0;
    for node in files(Path::new("snapshots")).into_iter().filter(|p| p.is_dir()) {
        for file in files(&node).into_iter().filter(|p| p.extension().is_some_and(|e| e == "save"))
        {
            if file.file_name().is_some_and(|n| n.to_string_lossy().contains("tables-")) {
                let (text, ruleset) = parse(&file).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(ruleset.render(), *text, "{}", file.display());
                assert!(!ruleset.tables.is_empty(), "{}", file.display());
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 28);
}

#[test]
fn whole_dumps_round_trip() {
    let Some(dumps) = dumps() else { return };
    let files = files(&dumps.join("whole"));
    assert_eq!(files.len(), 25);
    for file in files {
        let (text, ruleset) = parse(&file).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(ruleset.render(), *text, "{}", file.display());
    }
}

#[test]
fn broken_dumps_say_what_is_wrong() {
    let Some(dumps) = dumps() else { return };
    let mut report = String::new();
    for file in files(&dumps.join("broken")) {
        let name = file.file_name().expect("a name").to_string_lossy().into_owned();
        let outcome = match parse(&file) {
            Ok((text, ruleset)) => {
                assert_eq!(ruleset.render(), *text);
                assert!(ruleset.rule_count() > 0, "{name} must not pass for a node without rules");
                format!("{} rules", ruleset.rule_count())
            }
            Err(e) => {
                assert_eq!(e.kind, Kind::Parse);
                assert!(e.object.contains(" line "), "{e}");
                // The snapshot keeps only the position and the reason of an error, because the
                // quoted rule text may be private.
                let cause = e.cause.split('`').next().unwrap_or_default().trim_end();
                format!("{}: {cause}", e.object.trim_start_matches(&name).trim_start())
            }
        };
        report += &format!("{name}: {outcome}\n");
    }
    insta::assert_snapshot!(report);
}

/// A name ends at a space, wherever it stands: here one has a vertical tab, which is white space to
/// some.
#[test]
fn a_chain_has_one_name_in_its_declaration_and_in_its_rules() {
    let text = "*nat\n:a\u{b}b - [0:0]\n:c - [0:0]\n-A a\u{b}b -j RETURN\n-A c -j RETURN\nCOMMIT\n";
    let ruleset = Ruleset::parse("f", text.into()).expect("rules");
    assert_eq!(ruleset.rule_count(), 2);
    let less = ruleset.text_without("nat", &HashSet::from(["a\u{b}b"]));
    assert_eq!(less, "*nat\n:c - [0:0]\n-A c -j RETURN\nCOMMIT\n");
}
