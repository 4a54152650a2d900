//! README's table of what was tried with which kube-proxy. A case prints its row with the version
//! that the living kube-proxy reports; the test that runs the cases holds README to it.

use std::collections::BTreeSet;
use std::fs;

/// What a printed row begins with.
const ROW: &str = "tried: ";

/// What the table of README begins with.
const HEAD: &str = "| kube-proxy | where | what was tried |\n|---|---|---|\n";

/// Prints that this case tried `what` in the place `at`. `metrics` is what the living kube-proxy
/// answered to `/metrics`.
pub fn tried(metrics: &str, at: &str, what: &str) {
    println!("{ROW}| {} | {at} | {what} |", version(metrics));
}

/// The version in kube-proxy's metrics, without its `v`.
fn version(metrics: &str) -> &str {
    let line = metrics.lines().find(|l| l.starts_with("kubernetes_build_info{"));
    let line = line.unwrap_or_else(|| panic!("no build information in: {metrics}"));
    let (_, rest) = line.split_once("git_version=\"v").expect("a version");
    rest.split('"').next().expect("a version")
}

/// Fails unless README's table has every row that the cases printed. With PROXYSHIFT_WRITE_README
/// set, adds the rows that it lacks.
pub fn hold_readme_to(output: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(path).expect("README");
    let (before, after) = readme.split_once(HEAD).expect("the table of README");
    let written: BTreeSet<&str> = after.lines().take_while(|l| l.starts_with('|')).collect();
    let end: usize = written.iter().map(|row| row.len() + 1).sum();
    let printed: BTreeSet<&str> = output.lines().filter_map(|l| l.strip_prefix(ROW)).collect();
    if std::env::var_os("PROXYSHIFT_WRITE_README").is_some() {
        let rows: String = written.union(&printed).map(|row| format!("{row}\n")).collect();
        fs::write(path, format!("{before}{HEAD}{rows}{}", &after[end..])).expect("README");
        return;
    }
    let lacking: Vec<_> = printed.difference(&written).collect();
    assert!(lacking.is_empty(), "README lacks {lacking:?}; PROXYSHIFT_WRITE_README=1 adds them");
}
