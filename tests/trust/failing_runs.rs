//! The store fails in the middle of a run. The run is undone from memory, and its exit code tells
//! what became of the node.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use proxyshift::state::Backend;

use crate::common::disk::new_disk;
use crate::common::in_machine;
use crate::common::node::{Case, Ended, Proxyshift, assert_same};
use crate::failing_store::{Failing, Failure};
use crate::only_a_switch;

/// Fails unless the exit code tells what became of the node. Returns the code.
fn is_true(ended: &Ended, rules: &str, before: &str, after: Option<&str>, what: &str) -> i32 {
    let shown = format!("{what}: {:?} {}{}", ended.code, ended.out, ended.err);
    let code = ended.code.unwrap_or_else(|| panic!("{shown}"));
    match code {
        0 => assert_same(rules, after.unwrap_or_else(|| panic!("{shown}")), &shown),
        // Nothing was changed, or all was undone.
        3 | 4 => assert_same(rules, before, &shown),
        5 => assert!(rules != before && ended.err.contains("next:"), "{shown}"),
        _ => panic!("{shown}"),
    }
    code
}

/// How many lines the journal of the newest run has.
fn journal_lines(store: &Path) -> usize {
    let runs = fs::read_dir(store.join("runs")).into_iter().flatten().flatten();
    let lines = |dir: fs::DirEntry| {
        let journal = fs::read(dir.path().join("journal.jsonl")).unwrap_or_default();
        journal.iter().filter(|byte| **byte == b'\n').count()
    };
    runs.map(lines).max().unwrap_or(0)
}

fn begin(proxyshift: &Proxyshift, words: &str) -> Child {
    let mut command = proxyshift.command(words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

/// The store fails as soon as the journal of a clean-up has a certain number of lines: each number
/// in turn, up to the last, after which the clean-up has only to verify and to end.
fn fails_in_a_run(test: &str, backend: Backend, options: &str, failure: Failure) {
    if !in_machine(test) {
        return;
    }
    let failing = Failing::new("half-migrated-ipvs-1.20", backend, failure);
    let Case { node, proxyshift, before } = &failing.case;
    proxyshift.expect(0, "cleanup --yes");
    let (clean, lines) = (node.rules(), journal_lines(&proxyshift.store));
    assert!((4..100).contains(&lines), "{lines}");
    let mut undone = 0;
    for line in 1..=lines {
        node.load_rules(before);
        new_disk();
        let child = begin(proxyshift, &format!("cleanup --yes {options}"));
        let until = Instant::now() + Duration::from_secs(120);
        while journal_lines(&proxyshift.store) < line {
            assert!(Instant::now() < until, "{failure:?}: line {line} never comes");
        }
        failure.happens();
        let ended = Ended::from(child.wait_with_output().expect("waited for"));
        let what = format!("{failure:?} at line {line} of {lines}");
        let code = is_true(&ended, &node.rules(), before, Some(&clean), &what);
        assert_ne!(code, 5, "{what}: {}", ended.err);
        undone += usize::from(code == 4);
        if code == 0 && !options.is_empty() {
            failing.is_undone(&what);
        }
    }
    assert!(undone > 0, "it never failed in time");
}

/// A migration that is little but a switch, of a kube-proxy that only sleeps.
pub(crate) fn switch_of_a_sleeper() -> String {
    let start = "cp -f /bin/sleep /run/kube-proxy; /run/kube-proxy 1000 >/dev/null 2>&1 &";
    fs::write("/run/start.sh", start).expect("written");
    only_a_switch("pkill, -x, kube-proxy", "sh, /run/start.sh", "20s")
}

/// The store of a migration fails before or after its switch.
fn fails_in_a_migration(test: &str, failure: Failure) {
    if !in_machine(test) {
        return;
    }
    let failing = Failing::new("docker-iptables-1.30", Backend::Nft, failure);
    let Case { node, proxyshift, before } = &failing.case;
    let config = Path::new("/var/lib/kube-proxy/config.conf");
    let text = fs::read_to_string(config).expect("a configuration");
    fs::write("/run/fail.sh", failure.script()).expect("written");
    let playbook = switch_of_a_sleeper();
    for hook in ["before_switch", "after_switch"] {
        new_disk();
        let hooks = format!(
            "hooks: {{{hook}: [{{run: [sh, -c, \"sh /run/fail.sh; touch /var/lib/failed\"], \
             timeout: 20s, again: safe}}]}}\n"
        );
        fs::write("/var/lib/playbook.yaml", format!("{playbook}{hooks}")).expect("written");
        let _ = fs::remove_file("/var/lib/failed");
        let migrate = "migrate --to ipvs --yes --no-confirm --playbook /var/lib/playbook.yaml";
        let ended = proxyshift.run(migrate);
        let what = format!("{failure:?} {hook}");
        let shown = format!("{what}: {:?} {}{}", ended.code, ended.out, ended.err);
        assert!(Path::new("/var/lib/failed").exists(), "{shown}");
        assert_eq!(ended.code, Some(4), "{shown}");
        is_true(&ended, &node.rules(), before, None, &what);
        assert_eq!(fs::read_to_string(config).expect("a configuration"), text, "{shown}");
    }
}

#[test]
fn a_read_only_disk_stops_no_undo_of_a_run() {
    let test = "failing_runs::a_read_only_disk_stops_no_undo_of_a_run";
    fails_in_a_run(test, Backend::Nft, "", Failure::ReadOnly);
}

#[test]
fn a_read_only_disk_stops_no_undo_of_a_run_on_legacy() {
    let test = "failing_runs::a_read_only_disk_stops_no_undo_of_a_run_on_legacy";
    fails_in_a_run(test, Backend::Legacy, "--confirm-within 6s", Failure::ReadOnly);
}

#[test]
fn a_read_only_disk_stops_no_undo_of_a_migration() {
    let test = "failing_runs::a_read_only_disk_stops_no_undo_of_a_migration";
    fails_in_a_migration(test, Failure::ReadOnly);
}

#[test]
fn a_disk_that_is_shut_down_stops_no_undo_of_a_run() {
    let test = "failing_runs::a_disk_that_is_shut_down_stops_no_undo_of_a_run";
    fails_in_a_run(test, Backend::Nft, "", Failure::ShutDown);
}

#[test]
fn a_disk_that_is_shut_down_stops_no_undo_of_a_run_on_legacy() {
    let test = "failing_runs::a_disk_that_is_shut_down_stops_no_undo_of_a_run_on_legacy";
    fails_in_a_run(test, Backend::Legacy, "--confirm-within 6s", Failure::ShutDown);
}

#[test]
fn a_disk_that_is_shut_down_stops_no_undo_of_a_migration() {
    let test = "failing_runs::a_disk_that_is_shut_down_stops_no_undo_of_a_migration";
    fails_in_a_migration(test, Failure::ShutDown);
}
