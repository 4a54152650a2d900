//! Compares the README and other pages of the documentation with what the program prints.

#[path = "common/tried.rs"]
#[allow(dead_code, reason = "cases use the rest")]
mod tried;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use regex::Regex;

const PROGRAM: &str = env!("CARGO_BIN_EXE_proxyshift");

/// The README's transcript begins after this text and ends with the code block. `make readme`
/// writes it.
const TRANSCRIPT: &str = "<!-- from `make readme` -->\n```console\n";

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn text(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn help(args: &[&str]) -> String {
    let output = Command::new(PROGRAM).args(args).arg("--help").output().unwrap();
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The verbs that a help text lists.
fn verbs(help: &str) -> Vec<String> {
    let list = help.split("\nCommands:\n").nth(1).expect("a list of commands");
    let name = Regex::new("^  ([a-z]+) ").unwrap();
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| name.captures(line).map(|c| c[1].to_owned()));
    names.filter(|name| name != "help").collect()
}

/// Runs the commands of a transcript again. Returns their output as on a terminal, where the line
/// of a started task vanishes when the task ends.
fn run_again(transcript: &str) -> String {
    let folder = Path::new(PROGRAM).parent().unwrap().display().to_string();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
    let mut whole = String::new();
    for command in transcript.lines().filter_map(|line| line.strip_prefix("$ ")) {
        let output = Command::new("sh")
            .args(["-c", &format!("{command} 2>&1")])
            .current_dir(root())
            .env("PATH", &path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{command}: {printed}");
        let space = if whole.is_empty() { "" } else { "\n" };
        whole += &format!("{space}$ {command}\n");
        for line in printed.lines().filter(|line| !line.starts_with("  … ")) {
            whole += &format!("{}\n", line.trim_end());
        }
    }
    whole
}

/// A transcript without what differs from run to run: times and durations.
fn without_times(transcript: &str) -> String {
    let took = Regex::new(r" \([0-9.]+ s\)").unwrap();
    let id = Regex::new(r"\b[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}\b").unwrap();
    id.replace_all(&took.replace_all(transcript, ""), "ID").into_owned()
}

#[test]
fn the_transcript_is_what_the_program_prints() {
    let readme = text("README.md");
    let (before, rest) = readme.split_once(TRANSCRIPT).expect("the README has a transcript");
    let (shown, after) = rest.split_once("```\n").expect("the transcript ends");
    let commands: Vec<&str> = shown.lines().filter(|line| line.starts_with("$ ")).collect();
    assert!(commands.len() >= 3, "{commands:?}");
    let printed = run_again(shown);
    if std::env::var_os("PROXYSHIFT_WRITE_README").is_some() {
        let whole = format!("{before}{TRANSCRIPT}{printed}```\n{after}");
        fs::write(root().join("README.md"), whole).unwrap();
        return;
    }
    let (shown, printed) = (without_times(shown), without_times(&printed));
    let diff = similar::TextDiff::from_lines(&shown, &printed).unified_diff().to_string();
    assert!(diff.is_empty(), "look at it, then run `make readme`:\n{diff}");
}

/// Runs the demo as an ordinary user. Even in a user namespace this user has fewer rights than
/// root, so other operations fail.
#[test]
fn the_demo_verifies_as_much_without_root() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (program, node) = (folder.path().join("proxyshift"), "nftables-beside-iptables-1.37");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    // By programs of their own: a test beside this one may start a program while this one writes the
    // copy, and that one would hold it open ("text file busy").
    let copy = |words: &[&str], from: &Path, to: &Path| {
        assert!(Command::new("cp").args(words).args([from, to]).status().unwrap().success());
    };
    copy(&[], Path::new(PROGRAM), &program);
    copy(&["-r", "--no-preserve=mode"], &root().join("snapshots").join(node), folder.path());
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let as_root = rustix::process::geteuid().is_root();
    let output = Command::new("env")
        .args(if as_root { &user[..] } else { &[] })
        .arg(&program)
        .args(["rehearse", "--snapshot"])
        .arg(folder.path().join(node))
        .output()
        .unwrap();
    let (printed, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(printed.starts_with("Proven: "), "{printed}{said}");
}

#[test]
fn the_demo_shows_the_transcript() {
    let (readme, makefile) = (text("README.md"), text("Makefile"));
    let transcript = readme.split_once(TRANSCRIPT).and_then(|(_, rest)| rest.split_once("```"));
    for line in transcript.expect("a transcript").0.lines() {
        let Some(command) = line.strip_prefix("$ ") else { continue };
        let in_demo = command
            .replace("snapshots/nftables-beside-iptables-1.37", "$(NODE)")
            .replace("snapshots/canal-stale-flannel-1.20", "$(STALE)");
        assert!(makefile.contains(&format!("'{in_demo}'")), "make demo does not run: {command}");
    }
}

#[test]
fn the_exit_codes_are_those_of_the_help() {
    let help = help(&[]);
    let (_, listed) = help.split_once("Exit codes:\n").expect("the help lists the exit codes");
    let code =
        |line: &str| line.trim().split_once(' ').map(|(n, t)| (n.to_owned(), t.trim().to_owned()));
    let listed: Vec<(String, String)> = listed.lines().map_while(code).collect();
    let readme = text("README.md");
    let row = Regex::new(r"(?m)^\| (\d+) \| (.+) \|$").unwrap();
    let table: Vec<(String, String)> =
        row.captures_iter(&readme).map(|c| (c[1].to_owned(), c[2].to_owned())).collect();
    assert_eq!(table, listed);
}

#[test]
fn every_verb_is_in_the_readme_and_no_other() {
    let mut known = Vec::new();
    for verb in verbs(&help(&[])) {
        if ["snapshot", "cluster"].contains(&verb.as_str()) {
            let own = verbs(&help(&[&verb]));
            known.extend(own.iter().map(|sub| format!("{verb} {sub}")));
        } else {
            known.push(verb);
        }
    }
    let readme = text("README.md");
    let (_, table) = readme.split_once("| verb | what it does |\n").expect("a table of verbs");
    let row = Regex::new(r"^\| `((?:(?:snapshot|cluster) )?[a-z]+)` \|").unwrap();
    let rows = table.lines().take_while(|line| !line.is_empty());
    let mut listed: Vec<String> =
        rows.filter_map(|line| row.captures(line).map(|c| c[1].to_owned())).collect();
    known.sort();
    listed.sort();
    assert_eq!(listed, known, "the table of verbs in the README");
}

#[test]
fn links_within_the_project_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)#:]+)\)").unwrap();
    for name in [
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "snapshots/README.md",
        "docs/threat-model.md",
        "docs/ARCHITECTURE.md",
        "docs/cluster.md",
    ] {
        let folder = root().join(name).parent().unwrap().to_owned();
        for found in link.captures_iter(&text(name)) {
            assert!(folder.join(&found[1]).exists(), "{name}: {} is not there", &found[1]);
        }
    }
}

#[test]
fn every_captured_node_has_its_line_of_provenance() {
    let readme = text("snapshots/README.md");
    for entry in fs::read_dir(root().join("snapshots")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            assert!(readme.contains(&format!("| [{name}]({name}) |")), "{name}");
        }
    }
}

#[test]
fn the_changelog_has_a_heading_for_what_is_there() {
    let changelog = text("CHANGELOG.md");
    let version = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    assert!(changelog.contains("## [Unreleased]") || changelog.contains(&version));
}

#[test]
fn one_version_of_rust_is_asked_for_everywhere() {
    let rust = env!("CARGO_PKG_RUST_VERSION");
    assert_eq!(rust, "1.89");
    assert!(text("Makefile").contains(&format!("RUST := {rust}\n")));
    assert!(text("README.md").contains(&format!("Rust {rust}")));
}

/// Each promise of the threat model names its tests, and each test of strangers has its promise.
#[test]
fn each_promise_of_the_threat_model_has_its_tests() {
    let page = text("docs/threat-model.md");
    let name = Regex::new("`([a-z_]+::[a-z_0-9]+)`").unwrap();
    let promised: BTreeSet<String> = name.captures_iter(&page).map(|c| c[1].to_owned()).collect();
    let function = Regex::new(r"#\[test\]\s+fn ([a-z_0-9]+)\(").unwrap();
    let mut tests = BTreeSet::new();
    for entry in fs::read_dir(root().join("tests/trust")).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let source = fs::read_to_string(&path).unwrap();
        tests.extend(function.captures_iter(&source).map(|c| format!("{module}::{}", &c[1])));
    }
    assert!(tests.len() > 30, "{tests:?}");
    let missing: Vec<_> = promised.symmetric_difference(&tests).collect();
    assert!(missing.is_empty(), "on one side only: {missing:?}");
}

#[test]
fn a_row_of_what_was_tried_stays_as_long_as_a_case_may_print_it() {
    let [old, new] = ["| 1.20.2 | here | moved |", "| 1.37.2 | here | moved |"];
    let [other, longer] = ["| 1.37.2 | there | moved |", "| 1.37.2 | here, on request | moved |"];
    let (written, printed) = (BTreeSet::from([old, other, longer]), BTreeSet::from([new]));
    let rows = |whole: &[&str]| tried::table(&written, &printed, whole);
    assert_eq!(rows(&[]), BTreeSet::from([old, longer, other, new]));
    assert_eq!(rows(&["here"]), BTreeSet::from([longer, other, new]));
    assert_eq!(rows(&["here", "there", "here, on request"]), BTreeSet::from([new]));
}
