//! Runs beside a foreign writer to the same tables: none of the rules that it adds is lost, and
//! none that it removes comes back. `PROXYSHIFT_RUNS` is how many runs are made; `make test` makes
//! 200.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::node::{Ended, Node, Proxyshift, assert_same};
use common::{in_namespace, poll};
use proxyshift::state::Backend;
use rustix::process::{Pid, Signal, kill_process};

/// A chain of the service default/app-0 that a clean-up removes.
const GOING: &str = "KUBE-SVC-LBOKUC2VI5Y5A4NO";

/// Where the foreign writer adds a rule: a table and a chain.
type Place = (&'static str, &'static str);

/// The built-in chains, which always exist, so the foreign writer may always add rules there.
const BUILT_IN: [Place; 2] = [("nat", "POSTROUTING"), ("filter", "FORWARD")];

/// The chains to which the foreign writer may add rules while the chain [`GOING`] still exists.
const ALL: [Place; 3] = [BUILT_IN[0], BUILT_IN[1], ("nat", GOING)];

/// The comments of the foreign writer's rules begin with this.
const FOREIGN: &str = "foreign-";

/// The rules of the half-migrated node with only three services, so that a run is short.
fn small(rules: &str) -> String {
    let services = ["default/app-0:http", "default/app-1:http", "default/app-2:http"];
    let of_service = |l: &str| {
        ["SVC", "SEP", "FW", "XLB"].iter().any(|k| l.starts_with(&format!("-A KUBE-{k}-")))
            || l.starts_with("-A KUBE-NODEPORTS ")
    };
    let kept = |l: &&str| !of_service(l) || services.iter().any(|s| l.contains(s));
    let rules: Vec<&str> = rules.lines().filter(kept).collect();
    let used = |chain: &str| {
        let per_service = ["KUBE-SVC-", "KUBE-SEP-", "KUBE-FW-", "KUBE-XLB-"];
        !per_service.iter().any(|p| chain.starts_with(p))
            || rules.iter().any(|r| r.starts_with(&format!("-A {chain} ")))
    };
    let declared =
        |l: &&&str| l.strip_prefix(':').and_then(|l| l.split(' ').next()).is_none_or(used);
    rules.iter().filter(declared).map(|l| format!("{l}\n")).collect()
}

/// All rules except those of the foreign writer.
fn without_foreign(rules: &str) -> String {
    rules.lines().filter(|l| !l.contains(FOREIGN)).map(|l| format!("{l}\n")).collect()
}

/// The comments of the foreign writer's rules in their order, keyed by table and chain.
fn foreign(rules: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut found: BTreeMap<_, Vec<String>> = BTreeMap::new();
    let mut table = "";
    for line in rules.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        let comment = line.split(' ').find(|w| w.starts_with(FOREIGN));
        if let (Some(chain), Some(comment)) = (line.split(' ').nth(1), comment) {
            found.entry((table.into(), chain.into())).or_default().push(comment.into());
        }
    }
    found
}

/// The foreign writer: a thread that adds and removes its own rules all the time.
struct Writer {
    iptables: String,
    /// The comments of the rules that the writer added and did not remove, keyed by table and
    /// chain.
    known: BTreeMap<(String, String), Vec<String>>,
    /// The number in the comment of the writer's next rule.
    next: usize,
    /// How many seconds the writer waits for the xtables lock.
    wait: u32,
}

impl Writer {
    fn new(node: &Node) -> Writer {
        Writer { iptables: node.program(""), known: BTreeMap::new(), next: 0, wait: 20 }
    }

    /// Runs one iptables command. If it fails, returns its message.
    fn iptables(&self, words: &str) -> Result<(), String> {
        let mut command = Command::new(&self.iptables);
        command.args(["-w", &self.wait.to_string()]).args(words.split(' ')).stdin(Stdio::null());
        let ended = Ended::of(command);
        if ended.code == Some(0) { Ok(()) } else { Err(format!("{words}: {}", ended.err)) }
    }

    /// Adds a rule at the top or the end of a chain. Returns false if the chain does not exist; any
    /// other error fails the test.
    fn add(&mut self, (table, chain): Place) -> bool {
        let top = self.next.is_multiple_of(2);
        let comment = format!("{FOREIGN}{}", self.next);
        self.next += 1;
        let verb = if top { "-I" } else { "-A" };
        let rule = format!("-s 198.18.0.1/32 -m comment --comment {comment} -j RETURN");
        if let Err(e) = self.iptables(&format!("-t {table} {verb} {chain} {rule}")) {
            assert_eq!(chain, GOING, "{e}");
            return false;
        }
        let known = self.known.entry((table.into(), chain.into())).or_default();
        known.insert(if top { 0 } else { known.len() }, comment);
        true
    }

    /// Removes the writer's last or first rule in a chain.
    fn remove(&mut self, (table, chain): Place, comment: &str) {
        let rule = format!("-s 198.18.0.1/32 -m comment --comment {comment} -j RETURN");
        self.iptables(&format!("-t {table} -D {chain} {rule}")).expect("a rule was lost");
        let known = self.known.get_mut(&(table.into(), chain.into())).expect("known");
        known.retain(|c| c != comment);
    }

    /// Adds and removes rules until it is stopped. Before the run has a journal, each rule is
    /// removed after a moment, and the next one is added after a pause, because a node that changes
    /// all the time is not cleaned up at all.
    fn work(mut self, places: &[Place], runs: &Path, stop: &AtomicBool) -> Writer {
        while !stop.load(Ordering::Relaxed) {
            let round = self.next;
            let place = places[round % places.len()];
            if !has_journal(runs) {
                let place = BUILT_IN[round % BUILT_IN.len()];
                self.add(place);
                let comment = format!("{FOREIGN}{round}");
                self.remove(place, &comment);
                thread::sleep(Duration::from_millis(20));
            } else if self.add(place) && round % 4 < 2 {
                let oldest = self.known[&(place.0.into(), place.1.into())].iter().min();
                let oldest = oldest.expect("one was added").clone();
                self.remove(place, &oldest);
            }
        }
        self
    }

    fn start(self, proxyshift: &Proxyshift, places: &'static [Place]) -> Working {
        let stop = Arc::new(AtomicBool::new(false));
        let (runs, stopped) = (proxyshift.store.join("runs"), stop.clone());
        Working { stop, thread: thread::spawn(move || self.work(places, &runs, &stopped)) }
    }

    /// Verifies that all rules which the writer added exist, in their order, and none that it
    /// removed.
    fn check(&self, rules: &str, what: &str) {
        let mut known = self.known.clone();
        known.retain(|_, comments| !comments.is_empty());
        assert_eq!(foreign(rules), known, "{what}");
    }
}

struct Working {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Writer>,
}

impl Working {
    fn stop(self) -> Writer {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the other writer lost a rule")
    }
}

/// The text of the journal of the only run in the folder `runs`; none if there is no journal.
fn journal(runs: &Path) -> Option<String> {
    let run = std::fs::read_dir(runs).ok()?.flatten().next()?;
    std::fs::read_to_string(run.path().join("journal.jsonl")).ok()
}

fn has_journal(runs: &Path) -> bool {
    journal(runs).is_some()
}

struct Case {
    node: Node,
    proxyshift: Proxyshift,
    before: String,
    clean: String,
}

impl Case {
    fn new(backend: Backend) -> Case {
        let node = Node::load("half-migrated-ipvs-1.20", backend);
        node.load_rules(&small(&node.rules()));
        let before = node.rules();
        let proxyshift = Proxyshift::new("store");
        proxyshift.expect(0, "cleanup --yes");
        let clean = node.rules();
        assert!(before.contains(GOING) && !clean.contains(GOING));
        let case = Case { node, proxyshift, before, clean };
        case.start_over();
        case
    }

    fn start_over(&self) {
        self.node.load_rules(&self.before);
        std::fs::remove_dir_all(&self.proxyshift.store).expect("the store");
    }

    /// Verifies the rules after a clean-up that ended with `code`, apart from those of the foreign
    /// writer.
    fn check_cleaned(&self, ended: &Ended, rules: &str) {
        let ours = without_foreign(rules);
        match ended.code {
            Some(0) if !rules.contains(GOING) => assert_same(&ours, &self.clean, "cleaned"),
            // If the chain had a foreign rule, the chain is kept, together with the chains to which
            // it jumps.
            Some(0) => {
                let foreign_inside =
                    rules.lines().any(|l| l.contains(GOING) && l.contains(FOREIGN));
                assert!(foreign_inside, "{GOING} stays for no reason\n{}", ended.err);
                assert!(self.clean.lines().all(|l| ours.contains(l)), "{ours}");
                assert!(ours.lines().all(|l| self.before.contains(l)), "{ours}");
            }
            Some(3 | 4) => assert_same(&ours, &self.before, &ended.err),
            code => panic!("exit code {code:?}\n{}", ended.err),
        }
    }
}

fn runs() -> usize {
    let runs: usize = std::env::var("PROXYSHIFT_RUNS").map_or(20, |n| n.parse().expect("a number"));
    runs.div_ceil(2)
}

fn no_write_is_lost(backend: Backend) {
    let case = Case::new(backend);
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let (mut writes, runs) = (0, runs());
    for run in 0..runs {
        let writer = Writer::new(&case.node).start(&case.proxyshift, &ALL);
        let ended = case.proxyshift.run("cleanup --yes");
        let writer = writer.stop();
        let rules = case.node.rules();
        writer.check(&rules, &format!("run {run}\n{}", ended.err));
        case.check_cleaned(&ended, &rules);
        *ends.entry(format!("cleanup {:?}", ended.code)).or_default() += 1;
        writes += writer.next;
        // The rollback is tested after a part of the runs only.
        if ended.code == Some(0) && run.is_multiple_of(4) {
            let writer = writer.start(&case.proxyshift, &BUILT_IN);
            let ended = case.proxyshift.run("rollback");
            let writer = writer.stop();
            let rules = case.node.rules();
            writer.check(&rules, &format!("rollback of run {run}\n{}", ended.err));
            assert_eq!(ended.code, Some(0), "{}", ended.err);
            assert_same(&without_foreign(&rules), &case.before, &ended.err);
            *ends.entry(format!("rollback {:?}", ended.code)).or_default() += 1;
        }
        case.start_over();
    }
    println!("{runs} runs, {writes} writes: {ends:?}");
    // The other runs were refused or undone; how many depends on the load of this machine.
    assert!(ends.get("cleanup Some(0)").is_some_and(|done| done * 3 > runs), "{ends:?}");
}

/// At each point of the run in turn, the foreign writer adds a rule to a chain that is about to be
/// removed.
fn a_chain_in_use_is_kept(backend: Backend) {
    let case = Case::new(backend);
    let runs = case.proxyshift.store.join("runs");
    let mut kept = 0;
    for lines in 0..=6 {
        let mut command = case.proxyshift.command("cleanup --yes");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let pid = Pid::from_child(&child);
        poll("the journal", || journal(&runs).is_some_and(|j| j.lines().count() >= lines));
        kill_process(pid, Signal::STOP).expect("stopped");
        // The run may be stopped while it holds the xtables lock. Then the foreign writer must not
        // wait for long.
        let mut writer = Writer { wait: 1, ..Writer::new(&case.node) };
        kept += usize::from(writer.add(("nat", GOING)));
        kill_process(pid, Signal::CONT).expect("continued");
        let ended = Ended::from(child.wait_with_output().expect("ends"));
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        let rules = case.node.rules();
        writer.check(&rules, &ended.err);
        case.check_cleaned(&ended, &rules);
        case.start_over();
    }
    println!("{kept} of 7 chains kept");
    assert!(kept >= 2, "{kept}");
}

#[test]
fn a_chain_in_use_is_kept_in_nft() {
    if in_namespace("a_chain_in_use_is_kept_in_nft") {
        a_chain_in_use_is_kept(Backend::Nft);
    }
}

#[test]
fn a_chain_in_use_is_kept_in_legacy() {
    if in_namespace("a_chain_in_use_is_kept_in_legacy") {
        a_chain_in_use_is_kept(Backend::Legacy);
    }
}

#[test]
fn no_write_is_lost_in_nft() {
    if in_namespace("no_write_is_lost_in_nft") {
        no_write_is_lost(Backend::Nft);
    }
}

#[test]
fn no_write_is_lost_in_legacy() {
    if in_namespace("no_write_is_lost_in_legacy") {
        no_write_is_lost(Backend::Legacy);
    }
}
