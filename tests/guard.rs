//! The guard on captured nodes in namespaces: its exception stays in front of the drop of INVALID
//! packets, whatever others write.

mod common;

use std::process::{Child, Stdio};
use std::time::Duration;

use common::node::{Ended, Node, Proxyshift};
use common::{in_namespace, poll, run_with};
use proxyshift::state::Backend;
use rustix::process::{Pid, Signal, kill_process};

const DOCKER: &str = "docker-iptables-1.30";
const CANAL: &str = "canal-stale-flannel-1.20";
const FOR: &str = "guard --for 10.9.0.0/24 --interval 0.05";
const GATE: &str = "-j KUBE-FORWARD";

/// The two rules of the exception, for packets from and to its network.
fn own() -> [String; 2] {
    ["-s", "-d"].map(|option| {
        format!(
            "-A FORWARD {option} 10.9.0.0/24 -m conntrack --ctstate INVALID -m comment --comment \
             \"proxyshift guard\" -j ACCEPT"
        )
    })
}

/// The rules of the chain FORWARD in the table filter.
fn forward(node: &Node) -> Vec<String> {
    let save = run_with("", &[&node.program("save"), "-t", "filter"]);
    save.lines().filter(|l| l.starts_with("-A FORWARD ")).map(str::to_owned).collect()
}

fn count(node: &Node) -> usize {
    forward(node).iter().filter(|r| own().contains(r)).count()
}

/// True when both rules of the exception are right before the rule `gate`, and nowhere else.
fn stands(node: &Node, gate: &str) -> bool {
    let rules = forward(node);
    let Some(at) = rules.iter().position(|r| r.ends_with(gate)) else { return false };
    at >= 2 && rules[at - 2..at] == own() && count(node) == 2
}

/// True when both rules of the exception are there once, somewhere before the gate.
fn is_kept(node: &Node) -> bool {
    let rules = forward(node);
    let gate = rules.iter().position(|r| r.ends_with(GATE)).unwrap_or(0);
    count(node) == 2 && own().iter().all(|own| rules[..gate].contains(own))
}

fn iptables(node: &Node, words: &[&str]) {
    run_with("", &[&[node.program("").as_str(), "-w", "-t", "filter"], words].concat());
}

/// A running guard, which is killed if a test fails.
struct Running(Child);

impl Running {
    fn start(proxyshift: &Proxyshift, words: &str) -> Running {
        let mut command = proxyshift.command(words);
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts"))
    }

    fn send(&self, signal: Signal) {
        self.signalled(signal).expect("it runs");
    }

    fn signalled(&self, signal: Signal) -> rustix::io::Result<()> {
        kill_process(Pid::from_child(&self.0), signal)
    }

    /// Whether the guard handles SIGTERM already.
    fn listens(&self) -> bool {
        let path = format!("/proc/{}/status", self.0.id());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
        let caught = u64::from_str_radix(caught.trim(), 16).expect("a mask");
        caught & 1 << (Signal::TERM.as_raw() - 1) != 0
    }

    /// Waits until the guard ends, by itself or after `signal`.
    fn end(mut self, signal: Option<Signal>) -> Ended {
        signal.into_iter().for_each(|s| self.send(s));
        let (mut out, mut err) = (String::new(), String::new());
        use std::io::Read;
        self.0.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
        self.0.stderr.take().expect("piped").read_to_string(&mut err).expect("text");
        Ended { code: self.0.wait().expect("its end").code(), out, err }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both calls fail if the guard has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Removes the exception, or adds rules in front of it, 20 times, and each time waits until the
/// exception is right again.
fn keeps_its_position(backend: Backend) {
    let (node, proxyshift) = (Node::load(DOCKER, backend), Proxyshift::new("store"));
    let before = forward(&node);
    let guard = Running::start(&proxyshift, FOR);
    poll("the first rules", || stands(&node, GATE));
    for round in 0..20 {
        if round % 2 == 0 {
            // After the flush, kube-proxy's jump is restored before any other rule.
            iptables(&node, &["-F", "FORWARD"]);
            iptables(&node, &["-A", "FORWARD", "-j", "KUBE-FORWARD"]);
            iptables(&node, &["-A", "FORWARD", "-j", "DOCKER-USER"]);
        } else {
            // One step: a second jump in front. If the jump were deleted first, there would be no
            // gate (rule that the exception must precede), so the guard would remove the exception.
            iptables(&node, &["-I", "FORWARD", "-j", "KUBE-FORWARD"]);
        }
        poll("the rules back in their place", || stands(&node, GATE));
    }
    let ended = guard.end(Some(Signal::TERM));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    ended.reports(&[
        "bypass",
        "KUBE-FORWARD, DOCKER-USER",
        "it was not there",
        "had fallen behind",
    ]);
    assert!(ended.err.matches("filter FORWARD: put the exception").count() >= 20, "{}", ended.err);
    assert_eq!(count(&node), 0);
    let left = forward(&node);
    assert!(left.iter().all(|r| !r.contains("INVALID")), "{left:?}");
    assert!(before.len() > 5, "{before:?}");
}

#[test]
fn keeps_its_position_in_nft() {
    if in_namespace("keeps_its_position_in_nft") {
        keeps_its_position(Backend::Nft);
    }
}

#[test]
fn keeps_its_position_in_legacy() {
    if in_namespace("keeps_its_position_in_legacy") {
        keeps_its_position(Backend::Legacy);
    }
}

#[test]
fn foreign_rules_are_as_before_the_guard() {
    if !in_namespace("foreign_rules_are_as_before_the_guard") {
        return;
    }
    let (node, proxyshift) = (Node::load(DOCKER, Backend::Nft), Proxyshift::new("store"));
    let foreign = ["-I", "FORWARD", "-s", "10.9.0.0/24", "-m", "conntrack", "--ctstate", "INVALID"];
    iptables(&node, &[&foreign[..], &["-j", "ACCEPT"]].concat());
    let before = node.rules();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let guard = Running::start(&proxyshift, FOR);
        poll("the rules", || stands(&node, GATE));
        assert_eq!(guard.end(Some(signal)).code, Some(0));
        assert_eq!(node.rules(), before);
    }
    assert!(!proxyshift.store.exists(), "a guard needs no store");
}

#[test]
fn one_guard_alone_and_rules_that_are_left() {
    if !in_namespace("one_guard_alone_and_rules_that_are_left") {
        return;
    }
    let (node, proxyshift) = (Node::load(DOCKER, Backend::Nft), Proxyshift::new("store"));
    let guard = Running::start(&proxyshift, &format!("{FOR} --leave"));
    poll("the rules", || stands(&node, GATE));
    for words in ["guard --for 10.8.0.0/24", "guard --for 10.8.0.0/24 --once"] {
        let second = proxyshift.expect(3, words);
        second.reports(&["held by `proxyshift guard`", &format!("pid {}", guard.0.id()), "--for"]);
    }
    assert_eq!(guard.end(Some(Signal::TERM)).code, Some(0));
    assert!(stands(&node, GATE), "{:?}", forward(&node));
    // Another process of the guard recognises the rules of the killed one as its own.
    let guard = Running::start(&proxyshift, "guard --for 10.8.0.0/24 --interval 0.05");
    poll("the old ones gone", || count(&node) == 0);
    poll("the new ones", || forward(&node).iter().any(|r| r.contains("-d 10.8.0.0/24 ")));
    assert_eq!(guard.end(Some(Signal::TERM)).code, Some(0));
    assert!(forward(&node).iter().all(|r| !r.contains("proxyshift")));
}

#[test]
fn once_for_cron() {
    if !in_namespace("once_for_cron") {
        return;
    }
    let (node, proxyshift) = (Node::load(DOCKER, Backend::Nft), Proxyshift::new("store"));
    let words = "guard --once -o json --for 10.9.0.0/24 fd00:9::/64";
    let first = proxyshift.expect(0, words).json();
    assert_eq!(first["schema"], "proxyshift.guard");
    assert_eq!((&first["version"], &first["changed"]), (&1.into(), &true.into()));
    assert!(stands(&node, GATE), "{:?}", forward(&node));
    let rules = first["rules"].as_array().expect("rules");
    assert_eq!(rules.len(), 2, "this node has no IPv6 rules: {first}");
    assert_eq!(
        (&rules[0]["ruleset"], &rules[0]["before"]),
        (&"iptables-nft".into(), &"KUBE-FORWARD".into())
    );
    assert!(rules[0]["bypasses"].as_array().expect("names").contains(&"DOCKER-USER".into()));
    let second = proxyshift.expect(0, words).json();
    assert_eq!((&second["changed"], &second["rules"]), (&false.into(), &first["rules"]));
}

#[test]
fn ipv6_and_interfaces_have_their_own() {
    if !in_namespace("ipv6_and_interfaces_have_their_own") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    let gate = "*filter\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
                -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";
    run_with(gate, &["ip6tables-nft-restore"]);
    run_with(gate, &["iptables-nft-restore"]);
    proxyshift.expect(0, "guard --once --for fd00:9::1:0/112 --for eth7");
    let save = |tool: &str| run_with("", &[tool, "-t", "filter"]);
    let (v4, v6) = (save("iptables-nft-save"), save("ip6tables-nft-save"));
    assert_eq!(v6.matches("-s fd00:9::1:0/112 ").count(), 1, "{v6}");
    for text in ["-i eth7 ", "-o eth7 "] {
        assert_eq!((v4.matches(text).count(), v6.matches(text).count()), (1, 1), "{v4}{v6}");
    }
    assert!(!v4.contains("fd00"), "{v4}");
}

#[test]
fn a_living_calico_has_its_own_setting() {
    if !in_namespace("a_living_calico_has_its_own_setting") {
        return;
    }
    let (node, proxyshift) = (Node::load(CANAL, Backend::Nft), Proxyshift::new("store"));
    let before = node.rules();
    for words in [FOR, "guard --once --for 10.9.0.0/24"] {
        let refused = proxyshift.expect(3, words);
        refused.reports(&["cali-FORWARD", "FELIX_DISABLECONNTRACKINVALIDCHECK=true", "--contest"]);
        assert_eq!(node.rules(), before);
    }
    let guard = Running::start(&proxyshift, &format!("{FOR} --contest"));
    poll("the rules", || stands(&node, "-j cali-FORWARD"));
    // Inserts the jump at the top of the chain, as Calico's felix does.
    iptables(&node, &["-I", "FORWARD", "-j", "cali-FORWARD"]);
    poll("the rules before it again", || stands(&node, "-j cali-FORWARD"));
    let ended = guard.end(Some(Signal::TERM));
    ended.reports(&["bypass", "cali-FORWARD, KUBE-FORWARD"]);
    assert_eq!((ended.code, count(&node)), (Some(0), 0));
}

#[test]
fn waits_for_what_drops_and_ends_when_calico_comes() {
    if !in_namespace("waits_for_what_drops_and_ends_when_calico_comes") {
        return;
    }
    let (node, proxyshift) = (Node::load(CANAL, Backend::Nft), Proxyshift::new("store"));
    let whole = node.rules();
    iptables(&node, &["-F", "FORWARD"]);
    let guard = Running::start(&proxyshift, FOR);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(count(&node), 0, "nothing leads to a drop");
    iptables(&node, &["-A", "FORWARD", "-j", "KUBE-FORWARD"]);
    poll("the rules", || stands(&node, GATE));
    node.load_rules(&whole);
    let ended = guard.end(None);
    assert_eq!((ended.code, count(&node)), (Some(3), 0), "{}", ended.err);
    ended.reports(&["FELIX_DISABLECONNTRACKINVALIDCHECK"]);
}

#[test]
fn a_chain_that_its_save_shows_in_part_is_refused() {
    if !in_namespace("a_chain_that_its_save_shows_in_part_is_refused") {
        return;
    }
    let (node, proxyshift) = (Node::load(DOCKER, Backend::Nft), Proxyshift::new("store"));
    run_with("", &["nft", "insert", "rule", "ip", "filter", "FORWARD", "tcp", "dport", "{1,2}"]);
    let refused = proxyshift.expect(3, "guard --once --for 10.9.0.0/24");
    refused.reports(&["iptables-nft", "nft"]);
    assert_eq!(count(&node), 0);
}

/// Another writer of the chain, who knows which of its rules are there, in their order.
struct Writer<'a> {
    node: &'a Node,
    rules: Vec<String>,
    next: usize,
}

impl Writer<'_> {
    /// Adds rules at the top, in the middle and at the end, and removes older ones.
    fn writes(&mut self) {
        let rule = format!("-s 192.0.2.{}/32 -j RETURN", self.next);
        let (option, at) = match self.next % 2 {
            0 => ("-I", 0),
            _ => ("-A", self.rules.len()),
        };
        self.change(option, &rule);
        self.rules.insert(at, format!("-A FORWARD {rule}"));
        if self.next % 3 == 2 {
            // The guard's gate is there twice for a moment, the first time at the top.
            self.change("-I", "-j KUBE-FORWARD");
            self.change("-D", "-j KUBE-FORWARD");
            self.rules.retain(|rule| !rule.ends_with(GATE));
            self.change("-D", "-j KUBE-FORWARD");
            self.change("-A", "-j KUBE-FORWARD");
            self.rules.push(format!("-A FORWARD {GATE}"));
            let old = self.rules.iter().position(|rule| rule.contains("192.0.2.")).expect("one");
            let old = self.rules.remove(old);
            self.change("-D", old.strip_prefix("-A FORWARD ").expect("a rule"));
        }
        self.next += 1;
    }

    fn change(&self, option: &str, rule: &str) {
        let words: Vec<&str> = rule.split_whitespace().collect();
        iptables(self.node, &[&[option, "FORWARD"], &words[..]].concat());
    }

    /// Fails unless the chain has all rules of others, and no other but the guard's.
    fn lost_nothing(&self, what: &str) {
        let foreign: Vec<String> =
            forward(self.node).into_iter().filter(|rule| !own().contains(rule)).collect();
        assert_eq!(foreign, self.rules, "{what}");
    }
}

/// Kills the guard, or ends it, at any moment of its work while another writes. Each time, the
/// guard that is started next keeps its rules once, in their place, and nothing of others is lost.
fn killed_at_any_moment(backend: Backend) {
    let (node, proxyshift) = (Node::load(DOCKER, backend), Proxyshift::new("store"));
    iptables(&node, &["-F", "FORWARD"]);
    iptables(&node, &["-A", "FORWARD", "-j", "KUBE-FORWARD"]);
    iptables(&node, &["-A", "FORWARD", "-j", "DOCKER-USER"]);
    let mut writer = Writer { node: &node, rules: forward(&node), next: 1 };
    let mut killed_with_rules = 0;
    for round in 0..40u64 {
        let words = ["", " --leave", " --once"][(round % 3) as usize].to_owned();
        let words = match words.as_str() {
            " --once" => FOR.replace(" --interval 0.05", " --once"),
            words => FOR.to_owned() + words,
        };
        let guard = Running::start(&proxyshift, &words);
        writer.writes();
        // Moments that are spread over the first reading, the first change, and later ones.
        std::thread::sleep(Duration::from_millis(round * 37 % 160));
        let signals = match round % 4 {
            0 => &[Signal::TERM, Signal::KILL][..],
            1 => &[Signal::TERM],
            _ => &[Signal::KILL],
        };
        for signal in signals {
            // One that is over needs no signal.
            let _ = guard.signalled(*signal);
            std::thread::sleep(Duration::from_millis(round % 5 * 7));
        }
        drop(guard);
        killed_with_rules += usize::from(count(&node) > 0);
        writer.writes();
        let what = format!("round {round}, {words}");
        writer.lost_nothing(&what);
        assert!(count(&node) <= 2, "{what}: {:?}", forward(&node));
        let guard = Running::start(&proxyshift, FOR);
        poll(&format!("{what}: the rules are kept"), || is_kept(&node));
        writer.writes();
        poll(&format!("{what}: the rules are kept on"), || is_kept(&node));
        writer.lost_nothing(&what);
        // Every second one is killed again, so that the next round begins with its rules.
        match round % 2 {
            0 => drop(guard),
            _ => {
                // The rules of one that was killed may have been in their place before.
                poll("it handles signals", || guard.listens());
                let ended = guard.end(Some(Signal::TERM));
                assert_eq!((ended.code, count(&node)), (Some(0), 0), "{what}: {}", ended.err);
            }
        }
        writer.lost_nothing(&what);
    }
    assert!((1..40).contains(&killed_with_rules), "{killed_with_rules}");
}

#[test]
fn killed_at_any_moment_in_nft() {
    if in_namespace("killed_at_any_moment_in_nft") {
        killed_at_any_moment(Backend::Nft);
    }
}

#[test]
fn killed_at_any_moment_in_legacy() {
    if in_namespace("killed_at_any_moment_in_legacy") {
        killed_at_any_moment(Backend::Legacy);
    }
}

#[test]
fn never_for_everything() {
    let proxyshift = Proxyshift::new("store");
    for whom in ["0.0.0.0/0", "::/0", "+", "eth+", "lo", "10.9.0.0/24,0.0.0.0/0", "10.0.0.0/33"] {
        proxyshift.expect(2, &format!("guard --for {whom}"));
    }
    proxyshift.expect(2, "guard");
    proxyshift.expect(2, "guard --for eth0 --interval 0");
}
