//! Checks on a live kernel: packets are really dropped, and a lost rule is really restored.

mod common;

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::node::{Node, Proxyshift, assert_same};
use common::{in_namespace, run, run_with};
use proxyshift::state::Backend;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

/// A host behind docker0, the node with its uplink, and a host outside that knows only the node's
/// address.
const HOSTS: &str = "link set lo up
link add docker0 type bridge
addr add 172.17.0.1/16 dev docker0
link set docker0 up
netns add inner
link add v0 type veth peer name eth0 netns inner
link set v0 master docker0
link set v0 up
netns add outside
link add up0 type veth peer name eth0 netns outside
addr add 192.0.2.1/24 dev up0
link set up0 up
route add default via 192.0.2.2";
const INNER: &str = "link set lo up
addr add 172.17.0.5/16 dev eth0
link set eth0 up
route add default via 172.17.0.1";
const OUTSIDE: &str = "link set lo up
addr add 192.0.2.2/24 dev eth0
link set eth0 up
route add 172.17.0.0/16 via 192.0.2.1";

fn hosts() {
    run_with(HOSTS, &["ip", "-batch", "-"]);
    run_with(INNER, &["ip", "-n", "inner", "-batch", "-"]);
    run_with(OUTSIDE, &["ip", "-n", "outside", "-batch", "-"]);
    set("net/ipv4/ip_forward", "1");
}

fn set(sysctl: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{sysctl}"), value).expect(sysctl);
}

/// Runs `work` in the namespace called `host`. Sockets that `work` creates stay in that namespace.
fn at<T: Send>(host: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{host}")).expect(host);
    let enter = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect(host);
        work()
    };
    thread::scope(|scope| scope.spawn(enter).join().expect("the thread inside"))
}

/// Sends a packet from the inner host. Returns the source address with which it arrives outside.
fn arrives_as() -> IpAddr {
    let listener = at("outside", || UdpSocket::bind("192.0.2.2:9")).expect("outside");
    listener.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    // A new socket for each packet, because conntrack keeps its entry for the packets of an old
    // socket.
    let sender = at("inner", || UdpSocket::bind("172.17.0.5:0")).expect("inner");
    for _ in 0..50 {
        sender.send_to(b"x", "192.0.2.2:9").expect("sent");
        if let Ok((_, from)) = listener.recv_from(&mut [0; 8]) {
            return from.ip();
        }
    }
    panic!("no packet arrived");
}

/// A process named dockerd, which ends when this value is dropped.
struct Dockerd(Child);

impl Dockerd {
    fn start() -> Dockerd {
        std::fs::copy("/bin/sleep", "/run/dockerd").expect("a copy");
        Dockerd(Command::new("/run/dockerd").arg("600").spawn().expect("it starts"))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs proxyshift. Returns its exit code, its standard output and its standard error.
fn proxyshift(words: &str) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_proxyshift"))
        .args(["--store", "/run/store"])
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .expect("proxyshift starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn document(words: &str) -> Value {
    let (code, out, err) = proxyshift(words);
    assert_eq!(code, 0, "proxyshift {words}\n{out}{err}");
    serde_json::from_str(&out).expect("a document")
}

/// The rules in the chain POSTROUTING of the table nat.
fn postrouting(program: &str) -> Vec<String> {
    let save = run(&format!("{program}-save -t nat"));
    save.lines().filter(|l| l.starts_with("-A POSTROUTING")).map(str::to_owned).collect()
}

const MASQUERADE: &str = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";

fn masquerade_missing_and_restored(program: &str) {
    hosts();
    let _dockerd = Dockerd::start();
    let rules = "*nat\n:DOCKER - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
                 -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" \
                 -j KUBE-POSTROUTING\n\
                 -A POSTROUTING -s 172.16.0.0/12 -d 10.0.0.0/8 -j RETURN\n\
                 -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
                 -A KUBE-POSTROUTING -j MASQUERADE\nCOMMIT\n";
    run_with(rules, &[&format!("{program}-restore")]);
    let before = postrouting(program);
    assert_eq!(arrives_as().to_string(), "172.17.0.5", "nothing masquerades it");

    let only = "check --only docker.masquerade";
    let finding = &document(&format!("{only} -o json"))["findings"][0];
    assert_eq!(finding["outcome"], "found", "{finding}");
    assert_eq!(finding["fixable"], true, "{finding}");
    for (words, named) in [("--fix", "--yes"), ("--fix --yes --snapshot latest", "--snapshot")] {
        let (code, _, err) = proxyshift(&format!("{only} {words}"));
        assert!(code == 2 && err.contains(named), "{words}: {code} {err}");
    }
    assert_eq!(postrouting(program), before, "nothing was changed so far");

    // The sandbox gives this name to a link of its own, so the rehearsal cannot create a stand-in
    // for this link, and fails.
    run("ip link add ps-outside type bridge");
    let (code, _, err) = proxyshift(&format!("{only} --fix --yes"));
    assert!(code == 3 && err.contains("File exists"), "{code} {err}");
    assert_eq!(postrouting(program), before, "its rehearsal failed");
    assert_eq!(proxyshift("status").0, 0, "no run is pending");
    run("ip link del ps-outside");

    let (code, out, err) = proxyshift(&format!("{only} --fix --yes -o json"));
    assert_eq!(code, 0, "{out}{err}");
    for claim in ["after mending: the 4 other rules", "after rollback: all 4 rules"] {
        assert!(err.contains(&format!("rehearsal: {claim}")), "{err}");
    }
    let fixed: Value = serde_json::from_str(&out).expect("a document");
    assert_eq!(fixed["findings"][0]["outcome"], "ok", "{fixed}");
    assert_eq!(fixed["fixed"]["checks"][0], "docker.masquerade", "{fixed}");
    let mut repaired = before.clone();
    repaired.insert(1, MASQUERADE.to_owned());
    assert_eq!(postrouting(program), repaired, "in its place, behind kube-proxy's jump");
    assert_eq!(arrives_as().to_string(), "192.0.2.1", "it has the node's address");
    let (code, out, err) = proxyshift("rehearse");
    assert!(code == 0 && err.contains("a packet from docker0"), "{code} {out}{err}");
    let again = document(&format!("{only} --fix --yes -o json"));
    assert_eq!(again["fixed"]["run"], Value::Null, "nothing is left to mend: {again}");

    let (code, out, err) = proxyshift("rollback");
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains(": 1 added object taken out again.\n"), "{out}");
    assert!(err.contains("take out 1 rule in iptables-"), "{err}");
    assert!(!format!("{out}{err}").contains("put back"), "nothing came back: {out}{err}");
    assert_eq!(postrouting(program), before, "just the added rule went");
    assert_eq!(arrives_as().to_string(), "172.17.0.5");
    assert_eq!(proxyshift("status").0, 0, "no run is pending");
}

/// Waits until a run has a journal, then runs `command`.
fn write_meanwhile(command: &str) {
    let has_journal = |run: std::fs::DirEntry| run.path().join("journal.jsonl").exists();
    let runs = || std::fs::read_dir("/run/store/runs").into_iter().flatten().flatten();
    while !runs().any(has_journal) {
        thread::sleep(Duration::from_millis(1));
    }
    run(command);
}

#[test]
fn who_wrote_meanwhile_is_named() {
    if !in_namespace("who_wrote_meanwhile_is_named") {
        return;
    }
    hosts();
    let _dockerd = Dockerd::start();
    let rules = "*nat\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\nCOMMIT\n\
                 *filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    run_with(rules, &["iptables-nft-restore"]);
    // The rule is written several times, because a single write may come too late to be noticed.
    for _ in 0..5 {
        let writer = thread::spawn(|| {
            write_meanwhile("iptables-nft -A FORWARD -s 198.18.0.1 -j RETURN");
        });
        let (code, out, err) = proxyshift("check --only docker.masquerade --fix --yes");
        writer.join().expect("the writer");
        assert_eq!(code, 0, "{out}{err}");
        if err.contains("changed by someone else meanwhile, kept: ") {
            let named = err.split("written meanwhile by ").nth(1).expect("who it was");
            assert!(named.starts_with("iptables-nft (pid "), "{err}");
            assert!(!named.contains("proxyshift") && !named.contains("restore"), "{err}");
            return;
        }
        assert_eq!(proxyshift("rollback").0, 0);
        std::fs::remove_dir_all("/run/store").expect("the store");
    }
    panic!("the other one was never in time");
}

#[test]
fn docker_masquerade_is_restored_in_nft() {
    if in_namespace("docker_masquerade_is_restored_in_nft") {
        masquerade_missing_and_restored("iptables-nft");
    }
}

#[test]
fn docker_masquerade_is_restored_in_legacy() {
    if in_namespace("docker_masquerade_is_restored_in_legacy") {
        masquerade_missing_and_restored("iptables-legacy");
    }
}

/// Packets count as INVALID if they belong to a connection that conntrack did not see from its
/// start. Here the connection is older than conntrack, which is set up in this namespace with the
/// first rule that needs it, and which picks up no connection in the middle.
#[test]
fn invalid_packets_are_counted_where_they_are_dropped() {
    if !in_namespace("invalid_packets_are_counted_where_they_are_dropped") {
        return;
    }
    hosts();
    let listener = at("outside", || TcpListener::bind("192.0.2.2:80")).expect("outside");
    let connect = || TcpStream::connect("192.0.2.2:80").expect("connected");
    let clients: Vec<TcpStream> = (0..20).map(|_| at("inner", connect)).collect();
    let _servers: Vec<TcpStream> =
        clients.iter().map(|_| listener.accept().expect("accepted").0).collect();
    let rules = "*filter\n:KUBE-FORWARD - [0:0]\n\
                 -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
                 -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";
    run_with(rules, &["iptables-nft-restore"]);
    set("net/netfilter/nf_conntrack_tcp_loose", "0");

    let only = "check --only invalid.drops,invalid.rising";
    let findings = document(&format!("{only} -o json"))["findings"].clone();
    let outcome = |findings: &Value, id: &str| {
        let mut all = findings.as_array().expect("findings").iter();
        all.find(|f| f["id"] == id).expect(id).clone()
    };
    assert_eq!(outcome(&findings, "invalid.drops")["outcome"], "ok", "{findings}");
    assert_eq!(outcome(&findings, "invalid.rising")["outcome"], "unknown", "{findings}");

    let sending = thread::spawn(move || {
        for mut client in &clients {
            client.write_all(b"lost").expect("buffered");
            thread::sleep(Duration::from_millis(200));
        }
        clients
    });
    thread::sleep(Duration::from_millis(300));
    let findings = document(&format!("{only} --watch 1 -o json"))["findings"].clone();
    for id in ["invalid.drops", "invalid.rising"] {
        let finding = outcome(&findings, id);
        assert_eq!(finding["outcome"], "found", "{findings}");
        let evidence = finding["evidence"].as_array().expect("evidence");
        let first = evidence[0].as_str().expect("text");
        assert!(first.starts_with("kube-proxy: "), "{first}");
        let rule = evidence[1].as_str().expect("text");
        assert!(rule.contains("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"), "{rule}");
    }
    drop(sending.join());
    let counted = run("iptables-nft-save -c -t filter");
    let line = counted.lines().find(|l| l.contains("INVALID")).expect("the rule");
    assert!(!line.starts_with("[0:"), "the kernel counted none: {line}");
}

/// Fixes what the check `id` finds, calls `inspect`, and undoes the fix. Returns the rules as they
/// were between the fix and its undo.
fn fix_and_undo(node: &Node, id: &str, inspect: impl Fn()) -> String {
    let proxyshift = Proxyshift::new(id);
    let before = node.rules();
    let fixed = proxyshift.expect(0, &format!("check --only {id} --fix --yes -o json")).json();
    assert_eq!(fixed["fixed"]["checks"][0], id, "{fixed}");
    assert_eq!(fixed["findings"][0]["outcome"], "ok", "{fixed}");
    inspect();
    let repaired = node.rules();
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), &before, id);
    repaired
}

/// The lines of `rules` that are not in `without`.
fn more<'a>(rules: &'a str, without: &str) -> Vec<&'a str> {
    rules.lines().filter(|l| !without.lines().any(|w| w == *l)).collect()
}

#[test]
fn sysctls_that_a_mode_left_are_reset_and_come_back() {
    if !in_namespace("sysctls_that_a_mode_left_are_reset_and_come_back") {
        return;
    }
    let node = Node::load("docker-iptables-1.30", Backend::Nft);
    let left = [("arp_ignore", "1"), ("arp_announce", "2")];
    let path = |name: &str| format!("/proc/sys/net/ipv4/conf/all/{name}");
    let is = |name: &str, value: &str| {
        let now = std::fs::read_to_string(path(name)).expect("a sysctl");
        assert_eq!(now.trim_end(), value, "{name}");
    };
    left.iter().for_each(|(name, value)| std::fs::write(path(name), value).expect("a sysctl"));
    fix_and_undo(&node, "kube-proxy.sysctls-left", || {
        left.iter().for_each(|(name, _)| is(name, "0"));
    });
    left.iter().for_each(|(name, value)| is(name, value));
}

#[test]
fn leftover_refusals_are_fixed() {
    if !in_namespace("leftover_refusals_are_fixed") {
        return;
    }
    let node = Node::load("half-migrated-ipvs-1.20", Backend::Nft);
    let before = node.rules();
    let repaired = fix_and_undo(&node, "kube-proxy.leftover-reject", || {});
    let gone = more(&before, &repaired);
    assert!(!gone.is_empty() && gone.iter().all(|l| l.contains("-j REJECT")), "{gone:?}");
    assert_eq!(more(&repaired, &before), [] as [&str; 0]);
}

fn the_kubelets_chain(backend: Backend) {
    let node = Node::load("canal-stale-flannel-1.20", backend);
    let without = |rules: &str| -> String {
        let lines = rules.lines().filter(|l| !l.contains("KUBE-MARK-DROP"));
        lines.map(|l| format!("{l}\n")).collect()
    };
    node.load_rules(&without(&node.rules()));
    let before = node.rules();
    let repaired = fix_and_undo(&node, "kube-proxy.mark-drop", || {});
    let rule = "-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000";
    assert_eq!(more(&repaired, &before), [":KUBE-MARK-DROP - [0:0]", rule]);
    assert_same(&without(&repaired), &before, "all else");
}

#[test]
fn the_kubelets_chain_is_fixed_in_nft() {
    if in_namespace("the_kubelets_chain_is_fixed_in_nft") {
        the_kubelets_chain(Backend::Nft);
    }
}

#[test]
fn the_kubelets_chain_is_fixed_in_legacy() {
    if in_namespace("the_kubelets_chain_is_fixed_in_legacy") {
        the_kubelets_chain(Backend::Legacy);
    }
}

#[test]
fn leftovers_of_ipvs_mode_are_fixed() {
    if !in_namespace("leftovers_of_ipvs_mode_are_fixed") {
        return;
    }
    let node = Node::load("docker-iptables-1.30", Backend::Nft);
    run_with(
        "link add kube-ipvs0 type bridge\naddr add 10.96.0.1/32 dev kube-ipvs0\n",
        &["ip", "-batch", "-"],
    );
    run("ipset create KUBE-CLUSTER-IP hash:ip,port");
    run("ipset add KUBE-CLUSTER-IP 10.96.0.1,tcp:443");
    let there = || {
        let links = run("ip -br addr show");
        (links.contains("kube-ipvs0"), run("ipset save").contains("add KUBE-CLUSTER-IP 10.96.0.1"))
    };
    assert_eq!(there(), (true, true));
    fix_and_undo(&node, "ipvs.left-behind", || assert_eq!(there(), (false, false)));
    assert_eq!(there(), (true, true), "both are back");
    assert!(run("ip -br addr show").contains("10.96.0.1/32"), "with its address");
}
