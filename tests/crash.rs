//! A run is killed before and after every line of its journal. The next start of the program
//! reports the run and allows only resume and rollback, and both end in the right state.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;

use common::node::{Node, Proxyshift, assert_same, captured};
use common::{in_namespace, poll, run};
use proxyshift::state::Backend;

const SIGKILL: i32 = 9;

/// The rules and the store at one moment of a run, so that the test can return to that moment.
struct Moment {
    rules: String,
    store: String,
}

struct Case {
    node: Node,
    proxyshift: Proxyshift,
    /// The rules before any run. `clean` are the rules after an undisturbed clean-up.
    before: String,
    clean: String,
}

impl Case {
    fn new(backend: Backend) -> Case {
        let node = Node::load("half-migrated-ipvs-1.20", backend);
        let before = node.rules();
        let proxyshift = Proxyshift::new("store");
        proxyshift.expect(0, "cleanup --yes");
        let clean = node.rules();
        assert_ne!(before, clean);
        Case { node, proxyshift, before, clean }
    }

    /// Loads the rules from before any run, and removes the store.
    fn start_over(&self) {
        self.node.load_rules(&self.before);
        fs::remove_dir_all(&self.proxyshift.store).expect("the store");
    }

    /// Runs the program, which is to be killed at `point`. Returns false if it succeeded before it
    /// reached that point.
    fn killed(&self, words: &str, point: &str) -> bool {
        let mut command = self.proxyshift.command(words);
        let output = command.env("PROXYSHIFT_CRASH", point).output().expect("proxyshift starts");
        let killed = output.status.signal() == Some(SIGKILL);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(killed || output.status.success(), "{words}, {point}: {}\n{err}", output.status);
        killed
    }

    /// Verifies that the next start reports the run, and lets nothing but resume and rollback
    /// change the node.
    fn is_pending(&self, point: &str) {
        let rules = self.node.rules();
        let status = self.proxyshift.expect(6, "status");
        for way in ["proxyshift resume", "proxyshift rollback"] {
            assert!(status.out.contains(way), "{point}: {}", status.out);
        }
        let json = self.proxyshift.expect(6, "status -o json").json();
        assert_eq!(json["pending"]["alive"], false, "{point}");
        let refused = self.proxyshift.expect(6, "cleanup --yes");
        refused.reports(&["resume", "rollback", "next:"]);
        assert_same(&self.node.rules(), &rules, point);
    }

    /// Verifies that no run is pending, and that the rules are `wanted`.
    fn has_ended(&self, wanted: &str, what: &str) {
        assert_same(&self.node.rules(), wanted, what);
        self.proxyshift.expect(0, "status");
    }

    fn keep(&self) -> Moment {
        let store = "/run/kept".to_owned();
        let _ = fs::remove_dir_all(&store);
        run(&format!("cp -a {} {store}", self.proxyshift.store.display()));
        Moment { rules: self.node.rules(), store }
    }

    fn back_to(&self, moment: &Moment) {
        self.node.load_rules(&moment.rules);
        let store = &self.proxyshift.store;
        fs::remove_dir_all(store).expect("the store");
        run(&format!("cp -a {} {}", moment.store, store.display()));
    }

    /// Kills a rollback before and after each line that it journals, and verifies that the next
    /// rollback finishes it.
    fn killed_rollbacks(&self, what: &str) {
        let moment = self.keep();
        let first = lines(&self.proxyshift.store) + 1;
        for point in points(first) {
            self.back_to(&moment);
            if !self.killed("rollback", &point) {
                assert_ne!(point, format!("before:{first}"), "{what}: the rollback wrote nothing");
                return self.has_ended(&self.before, what);
            }
            let what = format!("{what}, rollback killed {point}");
            self.is_pending(&what);
            if lines(&self.proxyshift.store) >= first {
                self.proxyshift.expect(6, "resume").reports(&["it had begun to roll back"]);
            }
            self.proxyshift.expect(0, "rollback");
            self.has_ended(&self.before, &what);
        }
    }
}

/// The points before and after each line of a journal, from the line `first` on.
fn points(first: usize) -> impl Iterator<Item = String> {
    (first..first + 100).flat_map(|line| [format!("before:{line}"), format!("after:{line}")])
}

/// How many lines the journal of the only run in `store` has.
fn lines(store: &Path) -> usize {
    let runs: Vec<_> = fs::read_dir(store.join("runs")).expect("runs").collect();
    assert_eq!(runs.len(), 1);
    journal_lines(store)
}

/// As [`lines`], or 0 while there is no journal.
fn journal_lines(store: &Path) -> usize {
    let runs = fs::read_dir(store.join("runs")).into_iter().flatten().flatten();
    let journal = |run: fs::DirEntry| fs::read_to_string(run.path().join("journal.jsonl"));
    runs.filter_map(|run| journal(run).ok()).map(|text| text.lines().count()).sum()
}

fn killed_at_every_step(backend: Backend) {
    let case = Case::new(backend);
    let mut crashes = 0;
    for point in points(1) {
        case.start_over();
        if !case.killed("cleanup --yes", &point) {
            case.has_ended(&case.clean, "the run that was not killed");
            break;
        }
        crashes += 1;
        case.is_pending(&point);
        let moment = case.keep();
        case.proxyshift.expect(0, "resume");
        case.has_ended(&case.clean, &format!("killed {point}, resumed"));
        case.proxyshift.expect(0, "rollback");
        case.has_ended(&case.before, &format!("killed {point}, resumed, rolled back"));
        case.back_to(&moment);
        case.proxyshift.expect(0, "rollback");
        case.has_ended(&case.before, &format!("killed {point}, rolled back"));
    }
    println!("{crashes} crashes");
    assert!((4..200).contains(&crashes), "{crashes}");
}

fn killed_while_rolling_back(backend: Backend) {
    let case = Case::new(backend);
    case.killed_rollbacks("after a whole run");
    // The point at which the last edit is in the kernel, but not in the journal.
    case.start_over();
    case.proxyshift.expect(0, "cleanup --yes");
    let last = lines(&case.proxyshift.store);
    case.start_over();
    assert!(case.killed("cleanup --yes", &format!("before:{last}")));
    assert_same(&case.node.rules(), &case.clean, "all edits are made");
    case.killed_rollbacks("after a run killed before its last line");
}

/// A command that applies two remedies: one removes a rule, the other adds one.
const MEND: &str = "check --only cni.flannel-rules,docker.masquerade --fix --yes";

/// A node with a rule that is to go and one that is to come, and the node after both were mended.
fn to_mend(backend: Backend) -> Case {
    let node = Node::load("canal-stale-flannel-1.20", backend);
    run(&format!(
        "{} -t nat -D POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        node.program("")
    ));
    let (before, proxyshift) = (node.rules(), Proxyshift::new("store"));
    proxyshift.expect(0, MEND);
    let mended = node.rules();
    for (rule, comes) in [("-d 192.168.66.0/24 -j RETURN", false), ("! -o docker0 -j MASQ", true)] {
        assert_eq!((mended.contains(rule), before.contains(rule)), (comes, !comes), "{rule}");
    }
    Case { node, proxyshift, before, clean: mended }
}

fn killed_while_mending(backend: Backend) {
    let case = to_mend(backend);
    let mut crashes = 0;
    for point in points(1) {
        case.start_over();
        if !case.killed(MEND, &point) {
            case.has_ended(&case.clean, "the run that was not killed");
            break;
        }
        crashes += 1;
        case.is_pending(&point);
        let rules = case.node.rules();
        let resumed = case.proxyshift.expect(6, "resume");
        resumed.reports(&["was applying remedies of checks", "proxyshift rollback"]);
        assert_same(&case.node.rules(), &rules, &format!("killed {point}, not resumed"));
        case.proxyshift.expect(0, "rollback");
        case.has_ended(&case.before, &format!("killed {point}, rolled back"));
    }
    // Each of the two edits has a line with the intent and one with the outcome, and the run is
    // killed before and after each of these four lines.
    assert_eq!(crashes, 8);
}

/// The rules that somebody else adds while nobody works on the node.
const OTHERS: [&str; 2] = [
    "-t filter -I FORWARD -s 192.0.2.0/24 -j RETURN",
    "-t nat -A POSTROUTING -s 192.0.2.0/24 -j RETURN",
];

fn others_write(node: &Node) {
    for rule in OTHERS {
        run(&format!("{} -w {rule}", node.program("")));
    }
}

/// Kills a fix at each line of its journal, or at none, and then its rollback at each line that
/// this adds, while others add rules. The next rollback ends with the rules of before and theirs.
fn killed_while_mending_and_undoing(backend: Backend) {
    let case = to_mend(backend);
    case.node.load_rules(&case.before);
    others_write(&case.node);
    let wanted = case.node.rules();
    let mut undone = 0;
    for point in points(1) {
        case.start_over();
        let killed = case.killed(MEND, &point);
        others_write(&case.node);
        let moment = case.keep();
        for undo_point in points(lines(&case.proxyshift.store) + 1) {
            case.back_to(&moment);
            let what = format!("killed {point}, rollback killed {undo_point}");
            if !case.killed("rollback", &undo_point) {
                case.has_ended(&wanted, &what);
                break;
            }
            undone += 1;
            case.is_pending(&what);
            case.proxyshift.expect(0, "rollback");
            case.has_ended(&wanted, &what);
        }
        if !killed {
            break;
        }
    }
    assert!(undone > 20, "{undone}");
}

/// SIGTERM ends a fix when the change that is under way is made, and undoes it.
fn ended_while_mending(backend: Backend) {
    let case = to_mend(backend);
    let mut undone = 0;
    for line in 1..=4 {
        case.start_over();
        let mut command = case.proxyshift.command(MEND);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().expect("proxyshift starts");
        poll("a line of the journal", || journal_lines(&case.proxyshift.store) >= line);
        let pid = rustix::process::Pid::from_child(&child);
        // A fix that is over needs no signal.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let output = child.wait_with_output().expect("waited for");
        let what = format!("line {line}: {:?} {output:?}", output.status);
        match output.status.code() {
            Some(0) => case.has_ended(&case.clean, &what),
            Some(4 | 130) => {
                undone += 1;
                case.has_ended(&case.before, &what);
            }
            _ => panic!("{what}"),
        }
    }
    assert!(undone > 0, "it was never stopped in time");
}

#[test]
fn ended_while_mending_in_nft() {
    if in_namespace("ended_while_mending_in_nft") {
        ended_while_mending(Backend::Nft);
    }
}

#[test]
fn ended_while_mending_in_legacy() {
    if in_namespace("ended_while_mending_in_legacy") {
        ended_while_mending(Backend::Legacy);
    }
}

#[test]
fn killed_while_mending_and_undoing_in_nft() {
    if in_namespace("killed_while_mending_and_undoing_in_nft") {
        killed_while_mending_and_undoing(Backend::Nft);
    }
}

#[test]
fn killed_while_mending_and_undoing_in_legacy() {
    if in_namespace("killed_while_mending_and_undoing_in_legacy") {
        killed_while_mending_and_undoing(Backend::Legacy);
    }
}

#[test]
fn killed_while_mending_in_nft() {
    if in_namespace("killed_while_mending_in_nft") {
        killed_while_mending(Backend::Nft);
    }
}

#[test]
fn killed_while_mending_in_legacy() {
    if in_namespace("killed_while_mending_in_legacy") {
        killed_while_mending(Backend::Legacy);
    }
}

#[test]
fn killed_at_every_step_in_nft() {
    if in_namespace("killed_at_every_step_in_nft") {
        killed_at_every_step(Backend::Nft);
    }
}

#[test]
fn killed_at_every_step_in_legacy() {
    if in_namespace("killed_at_every_step_in_legacy") {
        killed_at_every_step(Backend::Legacy);
    }
}

#[test]
fn killed_while_rolling_back_in_nft() {
    if in_namespace("killed_while_rolling_back_in_nft") {
        killed_while_rolling_back(Backend::Nft);
    }
}

#[test]
fn killed_while_rolling_back_in_legacy() {
    if in_namespace("killed_while_rolling_back_in_legacy") {
        killed_while_rolling_back(Backend::Legacy);
    }
}

/// A program that is killed cannot end the process of its rehearsal, so that process must end
/// itself.
#[test]
fn a_rehearsal_ends_with_who_wanted_it() {
    let node = captured("half-migrated-ipvs-1.20");
    let mut command = Proxyshift::new("store").command(&format!("inside edits {}", node.display()));
    // The inner process waits here, because it reads the edits from its standard input.
    let mut rehearsal =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("proxyshift starts");
    let edits = rehearsal.stdin.take();
    drop(rehearsal.stdout.take());
    poll("it ends", || rehearsal.try_wait().expect("waited for").is_some());
    assert_eq!(rehearsal.wait().expect("waited for").code(), Some(1));
    drop(edits);
}
