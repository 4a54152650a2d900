//! The guard beside other tables that drop INVALID packets, with packets that are really forwarded: it
//! works where its exception comes before the drop, and refuses by name where no accept helps.

mod common;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::clients::at;
use common::node::{Ended, Proxyshift};
use common::{in_namespace, poll, run, run_with};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, bind, recv, sendto, socket,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const ONCE: &str = "guard --once --for 10.9.0.0/24 fd00:9::/64";

/// kube-proxy's drop in iptables mode.
const GATE: &str = "*filter\n:FORWARD ACCEPT [0:0]\n:KUBE-FORWARD - [0:0]\n-A FORWARD -j KUBE-FORWARD\n\
                    -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";

/// This namespace forwards between a client (10.9.0.2, fd00:9::2) and a server (10.8.0.2, fd00:8::2),
/// each in a namespace of its own.
fn router() {
    run("ip link set lo up");
    for (name, network) in [("client", 9), ("server", 8)] {
        let host = format!(
            "link set lo up\naddr add 10.{network}.0.2/24 dev eth0\n\
             addr add fd00:{network}::2/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 10.{network}.0.1\nroute add default via fd00:{network}::1\n"
        );
        run_with(
            &format!(
                "netns add {name}\nlink add {name}0 type veth peer name eth0 netns {name}\n\
                 addr add 10.{network}.0.1/24 dev {name}0\n\
                 addr add fd00:{network}::1/64 dev {name}0 nodad\nlink set {name}0 up\n"
            ),
            &["ip", "-batch", "-"],
        );
        run_with(&host, &["ip", "-n", name, "-batch", "-"]);
    }
    for sysctl in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{sysctl}"), "1").expect(sysctl);
    }
}

/// Messages of ICMP by hand.
struct Icmp(OwnedFd);

impl Icmp {
    /// A socket at an address of a namespace.
    fn open(namespace: &str, address: IpAddr) -> Icmp {
        at(namespace, || {
            let (family, number) = match address {
                IpAddr::V4(_) => (AddressFamily::INET, 1),
                IpAddr::V6(_) => (AddressFamily::INET6, 58),
            };
            let number = Protocol::from_raw(u32::try_from(number).unwrap().try_into().unwrap());
            let fd = socket(family, SocketType::RAW, Some(number)).expect("a raw socket");
            set_socket_timeout(&fd, Timeout::Recv, Some(Duration::from_millis(300)))
                .expect("a time");
            bind(&fd, &SocketAddr::new(address, 0)).expect("its address");
            Icmp(fd)
        })
    }

    fn send(&self, kind: u8, number: u16, to: IpAddr) {
        let number = number.to_be_bytes();
        let mut packet = [kind, 0, 0, 0, 0x70, 0x73, number[0], number[1]];
        let words = packet.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let sum: u32 = words.sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("16 bits");
        // Of ICMPv6, the kernel writes it.
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        let sent = sendto(&self.0, &packet, SendFlags::empty(), &SocketAddr::new(to, 0));
        assert_eq!(sent.expect("sent"), packet.len());
    }

    /// The kind of the next message with this number; none if none comes in time.
    fn receive(&self, number: u16, wait: Duration) -> Option<u8> {
        let until = Instant::now() + wait;
        let mut buffer = [0; 256];
        while Instant::now() < until {
            let Ok((_, length)) = recv(&self.0, &mut buffer[..], RecvFlags::empty()) else {
                continue;
            };
            // IPv4 has its header before the message, IPv6 has not.
            let header = if length == 28 { 20 } else { 0 };
            let message = &buffer[header..length];
            if message[4..6] == [0x70, 0x73] && message[6..8] == number.to_be_bytes() {
                return Some(message[0]);
            }
        }
        None
    }
}

/// Whether a packet from the client to the server, of the family of IPv6 or of IPv4, arrives although
/// conntrack calls it INVALID: a reply to an echo request that nobody sent. A request follows it by the
/// same way; where only that arrives, the reply was dropped.
fn invalid_arrives(is_ipv6: bool) -> bool {
    let (client, server, reply, request) = match is_ipv6 {
        false => ("10.9.0.2", "10.8.0.2", 0, 8),
        true => ("fd00:9::2", "fd00:8::2", 129, 128),
    };
    let (client, server): (IpAddr, IpAddr) = (client.parse().unwrap(), server.parse().unwrap());
    let arriving = Icmp::open("server", server);
    let sending = Icmp::open("client", client);
    // Neighbours are found with the first one.
    for number in 0..2 {
        sending.send(reply, number, server);
        sending.send(request, number, server);
    }
    let first = arriving.receive(1, Duration::from_secs(2));
    first == Some(reply)
}

fn v4() -> bool {
    invalid_arrives(false)
}

fn v6() -> bool {
    invalid_arrives(true)
}

fn nft(script: &str) {
    fs::write("/run/script.nft", script).expect("a file");
    run("nft -f /run/script.nft");
}

/// The rules of filter FORWARD in a backend: `nft`, `legacy`.
fn forward(tool: &str) -> Vec<String> {
    let save = run_with("", &[tool, "-t", "filter"]);
    save.lines().filter(|line| line.starts_with("-A FORWARD ")).map(str::to_owned).collect()
}

fn exceptions(tool: &str) -> usize {
    forward(tool).iter().filter(|rule| rule.contains("proxyshift guard")).count()
}

/// Refuses, with each of these parts in what it says, and writes nothing. Returns the error.
fn refuses(proxyshift: &Proxyshift, words: &str, parts: &[&str]) -> Value {
    let error = proxyshift.expect(3, &format!("{words} -o json")).json();
    assert_eq!(error["kind"], "blocked", "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} is not in {error}");
    }
    assert!(!run("iptables-nft-save").contains("proxyshift"));
    error
}

/// The commands that a hint gives between backquotes, those of `program`.
fn commands(error: &Value, program: &str) -> Vec<String> {
    let hint = error["hint"].as_str().expect("a hint");
    let quoted = hint.split('`').skip(1).step_by(2).map(str::to_owned);
    quoted.filter(|command| command.starts_with(program)).collect()
}

/// A table whose forward chain has this rule.
fn forwarding(family: &str, name: &str, rule: &str) -> String {
    format!(
        "table {family} {name} {{\n chain forward {{\n  type filter hook forward priority 10; policy \
         accept;\n  {rule}\n }}\n}}\n"
    )
}

/// firewalld's own table, as far as it concerns forwarded packets.
const FIREWALLD: &str = "table inet firewalld {
 chain filter_FORWARD {
  type filter hook forward priority filter + 10; policy accept;
  ct state { established, related } accept
  ct status dnat accept
  iifname \"lo\" accept
  ct state { invalid } drop
  jump filter_FORWARD_dispatch
  reject with icmpx type admin-prohibited
 }
 chain filter_FORWARD_dispatch {
  accept
 }
}
";

#[test]
fn works_in_each_backend_and_in_both_at_once() {
    if !in_namespace("works_in_each_backend_and_in_both_at_once") {
        return;
    }
    router();
    let proxyshift = Proxyshift::new("store");
    for tool in ["iptables-nft", "ip6tables-nft", "iptables-legacy"] {
        run_with(GATE, &[&format!("{tool}-restore")]);
    }
    assert_eq!((v4(), v6()), (false, false));
    let done = proxyshift.expect(0, &format!("{ONCE} -o json")).json();
    assert_eq!(done["overruled_by"], Value::Array(vec![]), "{done}");
    for tool in ["iptables-nft", "ip6tables-nft", "iptables-legacy"] {
        assert_eq!(exceptions(&format!("{tool}-save")), 2, "{tool}");
    }
    assert_eq!((v4(), v6()), (true, true));
}

#[test]
fn a_closed_chain_of_the_other_backend_gets_the_exception_too() {
    if !in_namespace("a_closed_chain_of_the_other_backend_gets_the_exception_too") {
        return;
    }
    router();
    let proxyshift = Proxyshift::new("store");
    run_with(GATE, &["iptables-nft-restore"]);
    // As docker leaves it, with pods let through.
    run_with(
        "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m conntrack --ctstate NEW,RELATED,ESTABLISHED -j \
         ACCEPT\nCOMMIT\n",
        &["iptables-legacy-restore"],
    );
    assert!(!v4());
    let done = proxyshift.expect(0, &format!("{ONCE} -o json")).json();
    assert_eq!(
        (exceptions("iptables-nft-save"), exceptions("iptables-legacy-save")),
        (2, 2),
        "{done}"
    );
    assert_eq!(done["rules"][0]["before"], "the policy DROP");
    assert!(v4());
    assert_eq!(proxyshift.expect(0, &format!("{ONCE} -o json")).json()["changed"], false);
    // Without a drop of INVALID packets the closed chain is the operator's own matter, as before.
    run("iptables-nft -F KUBE-FORWARD");
    proxyshift.expect(0, ONCE);
    assert_eq!((exceptions("iptables-nft-save"), exceptions("iptables-legacy-save")), (0, 0));
}

#[test]
fn owners_tables_are_refused_by_name() {
    if !in_namespace("owners_tables_are_refused_by_name") {
        return;
    }
    router();
    let proxyshift = Proxyshift::new("store");
    run_with(GATE, &["iptables-nft-restore"]);
    // kube-proxy 1.29 (kubernetes pkg/proxy/nftables of that version).
    let kube_proxy = "table ip kube-proxy {
 chain forward {
  ct state invalid drop
 }
 chain filter-forward {
  type filter hook forward priority -110; policy accept;
  ct state new accept
  jump forward
 }
}
";
    // Calico (felix/nftables): chains of pods, which a map of interfaces leads to.
    let calico = "table ip calico {
 chain filter-cali-fw-cali0123456789a {
  ct state established,related counter accept
  ct state invalid counter drop comment \"cali:0123456789abcdef; \"
 }
 map filter-cali-from-wl-dispatch {
  type ifname : verdict
  elements = { \"client0\" : goto filter-cali-fw-cali0123456789a }
 }
 chain filter-cali-FORWARD {
  iifname vmap @filter-cali-from-wl-dispatch
 }
 chain filter-FORWARD {
  type filter hook forward priority 0; policy accept;
  counter jump filter-cali-FORWARD
 }
}
";
    for (table, script, parts) in [
        (
            "inet firewalld",
            FIREWALLD,
            &[
                "nft inet firewalld",
                "filter_FORWARD",
                "`ct state invalid drop`",
                "handle ",
                "firewalld's",
                "an accept ends one base chain",
                "FirewallBackend=iptables",
                "nf_conntrack_tcp_be_liberal=1",
            ][..],
        ),
        (
            "ip kube-proxy",
            kube_proxy,
            &["nft ip kube-proxy", "chain forward", "kube-proxy's", "tcpBeLiberal: true"],
        ),
        (
            "ip calico",
            calico,
            &[
                "filter-cali-fw-cali0123456789a",
                "calico's",
                "disableConntrackInvalidCheck",
                "cleanup --owner calico",
            ],
        ),
    ] {
        nft(script);
        refuses(&proxyshift, ONCE, parts);
        refuses(&proxyshift, "guard --for 10.9.0.0/24 --interval 0.05", parts);
        // An exception that somebody puts there all the same does not help.
        run("iptables-nft -I FORWARD -m conntrack --ctstate INVALID -j ACCEPT");
        assert!(!v4(), "{table}");
        run("iptables-nft -D FORWARD 1");
        run(&format!("nft delete table {table}"));
        proxyshift.expect(0, ONCE);
        assert!(v4(), "{table} is gone");
        run("iptables-nft -F FORWARD");
        run("iptables-nft -A FORWARD -j KUBE-FORWARD");
    }
}

#[test]
fn an_operators_own_table_is_refused_until_it_accepts_them_itself() {
    if !in_namespace("an_operators_own_table_is_refused_until_it_accepts_them_itself") {
        return;
    }
    router();
    let proxyshift = Proxyshift::new("store");
    run_with(GATE, &["iptables-nft-restore"]);
    run_with(GATE, &["ip6tables-nft-restore"]);
    let prerouting = "table inet early {\n chain early {\n  type filter hook prerouting priority -150\n  \
                      ct state invalid counter drop\n }\n}\n";
    let closed = "table inet shut {\n chain shut {\n  type filter hook forward priority 0; policy drop\n  \
                  ct state established,related accept\n }\n}\n";
    for (name, script, rule) in [
        ("inet a", forwarding("inet", "a", "ct state invalid drop"), "ct state invalid drop"),
        (
            "inet b",
            forwarding("inet", "b", "ct state vmap { invalid : drop, established : accept }"),
            "vmap",
        ),
        ("ip c", forwarding("ip", "c", "ct state invalid,untracked reject"), "reject"),
        ("ip6 d", forwarding("ip6", "d", "ct state invalid log drop"), "ct state invalid log drop"),
        ("inet early", prerouting.to_owned(), "ct state invalid"),
        ("inet shut", closed.to_owned(), "policy drop"),
    ] {
        nft(&script);
        let parts = [name, rule, "of an owner that is not known", "in its file"];
        let error = refuses(&proxyshift, ONCE, &parts);
        let of_v6 = name.starts_with("ip6");
        assert!(!invalid_arrives(of_v6), "{name}");
        // What it says to do, does it.
        let commands = commands(&error, "nft ");
        assert!(!commands.is_empty(), "{error}");
        commands.iter().for_each(|command| drop(run(command)));
        proxyshift.expect(0, ONCE);
        assert!(invalid_arrives(of_v6), "{name}: {commands:?}");
        run(&format!("nft delete table {name}"));
        run("iptables-nft -D FORWARD 1");
        run("iptables-nft -D FORWARD 1");
        run("ip6tables-nft -D FORWARD 1");
        run("ip6tables-nft -D FORWARD 1");
    }
}

#[test]
fn other_tables_of_iptables_are_refused_by_name() {
    if !in_namespace("other_tables_of_iptables_are_refused_by_name") {
        return;
    }
    router();
    let proxyshift = Proxyshift::new("store");
    run_with(GATE, &["iptables-nft-restore"]);
    for backend in ["nft", "legacy"] {
        for chain in ["PREROUTING", "FORWARD"] {
            let rule = format!("{chain} -m conntrack --ctstate INVALID -j DROP");
            let tool = format!("iptables-{backend}");
            run(&format!("{tool} -t mangle -A {rule}"));
            let table = format!("iptables-{backend} mangle");
            let error = refuses(&proxyshift, ONCE, &[&table, &format!("-A {rule}")]);
            let commands = commands(&error, "iptables");
            assert_eq!(commands.len(), 2, "{error}");
            run("iptables-nft -I FORWARD -m conntrack --ctstate INVALID -j ACCEPT");
            assert!(!v4(), "{tool} {chain}");
            run("iptables-nft -D FORWARD 1");
            commands.iter().for_each(|command| drop(run(command)));
            proxyshift.expect(0, ONCE);
            assert!(v4(), "{tool} {chain}: {commands:?}");
            run(&format!("{tool} -t mangle -F"));
            run("iptables-nft -D FORWARD 1");
            run("iptables-nft -D FORWARD 1");
        }
    }
}

#[test]
fn tables_that_these_packets_do_not_meet_are_no_matter() {
    if !in_namespace("tables_that_these_packets_do_not_meet_are_no_matter") {
        return;
    }
    router();
    let proxyshift = Proxyshift::new("store");
    run_with(GATE, &["iptables-nft-restore"]);
    nft(&forwarding("ip6", "six", "ct state invalid drop"));
    nft(&forwarding("inet", "six-again", "meta nfproto ipv6 ct state invalid drop"));
    nft(
        "table inet host {\n chain in {\n  type filter hook input priority 0; policy drop\n  ct state \
         invalid drop\n }\n chain out {\n  type filter hook output priority 0\n  ct state invalid drop\n \
         }\n}\n",
    );
    nft(
        "table netdev edge {\n chain in {\n  type filter hook ingress device client0 priority 0; policy \
         accept;\n  tcp dport 23 drop\n }\n}\n",
    );
    nft(
        "table bridge frames {\n chain f {\n  type filter hook forward priority 0; policy drop\n }\n}\n",
    );
    nft(
        "table ip mine {\n chain f {\n  type filter hook forward priority 0\n  ip saddr 10.0.0.0/8 \
         accept\n  ip daddr 10.9.0.0/16 ct state invalid accept\n  ct state invalid drop\n }\n}\n",
    );
    nft(
        "table ip web {\n chain f {\n  type filter hook forward priority 0\n  tcp dport 23 drop\n  ct \
         state new tcp dport 22 drop\n }\n}\n",
    );
    let done = proxyshift.expect(0, "guard --once --for 10.9.0.0/24 -o json").json();
    assert_eq!(
        (done["rules"].as_array().map(Vec::len), &done["overruled_by"]),
        (Some(2), &Value::Array(vec![]))
    );
    assert!(v4());
    // IPv6 alone is refused where IPv4 is not.
    run("iptables-nft -D FORWARD 1");
    run("iptables-nft -D FORWARD 1");
    let error = refuses(&proxyshift, ONCE, &["fd00:9::/64 are dropped", "ip6 six"]);
    assert!(!error.to_string().contains("10.9.0.0/24"), "{error}");
    assert!(!v6());
}

#[test]
fn what_is_not_certain_is_said_and_the_exception_stands() {
    if !in_namespace("what_is_not_certain_is_said_and_the_exception_stands") {
        return;
    }
    router();
    let proxyshift = Proxyshift::new("store");
    run_with(GATE, &["iptables-nft-restore"]);
    nft(
        "table inet half {\n chain f {\n  type filter hook forward priority 0; policy drop\n  ct state \
         established,related accept\n  iifname \"client0\" accept\n }\n}\n",
    );
    let done = proxyshift.expect(0, ONCE);
    done.reports(&["`policy drop` in chain f of table nft inet half", "may drop"]);
    assert!(v4() && exceptions("iptables-nft-save") == 2);
    run("nft delete table inet half");
    assert!(!proxyshift.expect(0, ONCE).err.contains("drop"));
}

/// A running guard, which is killed if a test fails.
struct Running(Child);

impl Running {
    fn start(proxyshift: &Proxyshift, words: &str) -> Running {
        let errors = fs::File::create("/run/guard.err").expect("a file");
        let mut command = proxyshift.command(words);
        Running(command.stdout(Stdio::piped()).stderr(errors).spawn().expect("it starts"))
    }

    fn reported() -> String {
        fs::read_to_string("/run/guard.err").expect("a file")
    }

    fn end(mut self) -> Ended {
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("it runs");
        let mut out = String::new();
        use std::io::Read;
        self.0.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
        Ended { code: self.0.wait().expect("its end").code(), out, err: Running::reported() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both calls fail if the guard has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn who_comes_later_is_named_once_and_when_it_goes() {
    if !in_namespace("who_comes_later_is_named_once_and_when_it_goes") {
        return;
    }
    router();
    let proxyshift = Proxyshift::new("store");
    run_with(GATE, &["iptables-nft-restore"]);
    let guard = Running::start(&proxyshift, "guard --for 10.9.0.0/24 --interval 0.05");
    poll("the exception", || exceptions("iptables-nft-save") == 2);
    assert!(v4());
    let named = || Running::reported().matches("does not help while").count();
    let gone = || Running::reported().matches("is gone").count();
    nft(FIREWALLD);
    poll("it is named", || named() == 1);
    assert!(!v4());
    // Somebody's writes, and the same table loaded anew in one transaction, are no news.
    for round in 0..5 {
        nft(&format!("delete table inet firewalld\n{FIREWALLD}"));
        run(&format!("iptables-nft -A INPUT -s 192.0.2.{round} -j ACCEPT"));
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!((named(), gone()), (1, 0), "{}", Running::reported());
    assert_eq!(exceptions("iptables-nft-save"), 2, "the exception stays");
    run("nft delete table inet firewalld");
    poll("it is said", || gone() == 1);
    assert!(v4());
    // A legacy table has no generation.
    run("iptables-legacy -t mangle -A FORWARD -m conntrack --ctstate INVALID -j DROP");
    poll("the next one is named", || named() == 2);
    let ended = guard.end();
    assert_eq!((ended.code, exceptions("iptables-nft-save")), (Some(0), 0), "{}", ended.err);
    ended.reports(&["inet firewalld", "firewalld's", "iptables-legacy mangle"]);
}
