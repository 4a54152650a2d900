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

/// Fails unless README's table has every row that the cases printed, and has no other row of the
/// places in `whole`, whose cases all ran. With PROXYSHIFT_WRITE_README set, writes the table so.
pub fn hold_readme_to(output: &str, whole: &[&str]) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(path).expect("README");
    let (before, after) = readme.split_once(HEAD).expect("the table of README");
    let written: BTreeSet<&str> = after.lines().take_while(|l| l.starts_with('|')).collect();
    let end: usize = written.iter().map(|row| row.len() + 1).sum();
    let printed: BTreeSet<&str> = output.lines().filter_map(|l| l.strip_prefix(ROW)).collect();
    let rows = table(&written, &printed, whole);
    if std::env::var_os("PROXYSHIFT_WRITE_README").is_some() {
        let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(path, format!("{before}{HEAD}{rows}{}", &after[end..])).expect("README");
        return;
    }
    let lacking: Vec<_> = rows.difference(&written).collect();
    let stale: Vec<_> = written.difference(&rows).collect();
    assert!(
        lacking.is_empty() && stale.is_empty(),
        "README lacks {lacking:?}, and no case wrote {stale:?}; PROXYSHIFT_WRITE_README=1 mends it"
    );
}

/// The rows that README is to have: those that were printed, and those that it has of places whose
/// cases did not all run.
pub fn table<'a>(
    written: &BTreeSet<&'a str>,
    printed: &BTreeSet<&'a str>,
    whole: &[&str],
) -> BTreeSet<&'a str> {
    let is_of = |row: &str, place: &str| row.split(" | ").nth(1) == Some(place);
    let kept = written.iter().filter(|row| !whole.iter().any(|place| is_of(row, place)));
    kept.chain(printed).copied().collect()
}
