//! Moves between ipvs and nftables mode. kube-proxy removes the objects of its old mode long before
//! the new mode serves; a bridge serves in between.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::Case;
use crate::common::clients::echo;
use crate::common::node::Ended;
use crate::common::tried::tried;
use crate::common::{poll_for, run};
use crate::kube_proxy;
use crate::machine::{inside, place};
use crate::network::{NODE, stream};
use crate::traffic::Traffic;

/// How long an emulated CPU may take to come to a stage.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the kernel loads for the rules of nftables mode and of a bridge, each in a process of its own,
/// which takes an emulated CPU half a minute. Together they load at once.
const MODULES: &str = "nft_chain_nat nft_ct nft_fib_ipv4 nft_fib_ipv6 nft_hash nft_masq nft_nat \
                       nft_numgen nft_objref nft_reject_ipv4 nft_reject_ipv6";

/// How many streams do not end in time. Each may go on by chance, when the new rules choose the same
/// endpoint, or is reset. The first half is used meanwhile; the others are silent.
const CUT: usize = 6;

/// How long a client may wait for its reset: it sends again, less and less often.
const UNTIL_RESET: Duration = Duration::from_secs(120);

/// Migrates from one mode to the other and confirms; no new connection may fail meanwhile. `streams`
/// runs beside it.
fn carries_over(case: &Case, from: &str, to: &str, streams: impl FnOnce() + Send) -> Ended {
    case.playbook(from, to, |text| text.replace("drain: 2m", "drain: 30s"));
    let traffic = Traffic::controlled();
    let ended = std::thread::scope(|scope| {
        let beside = scope.spawn(streams);
        let ended = case.migrate(to, "--confirm-within 30m");
        println!("{}", kube_proxy::log());
        beside.join().expect("the streams");
        ended
    });
    assert_eq!(ended.code, Some(0));
    case.proxyshift.expect(0, "confirm");
    traffic.stop(&format!("{from} to {to}"));
    case.is_in(to);
    let what = format!("{from} to {to} mode by a bridge: no connection failed");
    tried(&kube_proxy::metrics(), place(), &what);
    ended
}

/// Rolls a confirmed migration back; no new connection may fail meanwhile, and no open one may hang.
fn goes_back(case: &Case, from: &str, to: &str) {
    let mut stay = [open("10.96.1.1:80"), open("10.96.1.2:80")];
    let traffic = Traffic::controlled();
    let ended = case.proxyshift.run("rollback");
    println!("{}{}\n{}", ended.err, ended.out, kube_proxy::log());
    assert_eq!(ended.code, Some(0));
    traffic.stop(&format!("back from {from} to {to}"));
    stay.iter_mut().for_each(does_not_hang);
    case.is_in(to);
    let what = format!("rolled back from {from} to {to} mode by a bridge: no connection failed");
    tried(&kube_proxy::metrics(), place(), &what);
}

/// Loads what the kernel needs for nftables mode and for a bridge.
pub(in crate::cases) fn load_modules() {
    run(&format!("modprobe -a {MODULES}"));
}

/// A node on which kube-proxy serves in `mode`.
fn node(mode: &str) -> Case {
    load_modules();
    Case::without_foreign_server("nft", mode)
}

/// Whether a bridge is loaded on the node.
pub(in crate::cases) fn is_bridged() -> bool {
    run("nft list tables").contains("proxyshift-bridge")
}

/// A stream through a service port.
fn open(service: &str) -> TcpStream {
    stream("pod", service).expect("a stream").1
}

/// Uses a stream until the bridge is there and for a while after. Nothing of it may fail.
fn ends_in_time(mut stream: TcpStream) {
    poll_for(PATIENCE, "the bridge is loaded", || {
        echo(&mut stream).expect("it goes on before the bridge");
        std::thread::sleep(Duration::from_secs(1));
        is_bridged()
    });
    for _ in 0..5 {
        echo(&mut stream).expect("it goes on beside the bridge");
    }
}

/// Uses each stream again and again until the bridge is gone. It may fail.
fn go_on_until_bridge_is_gone(streams: &mut [TcpStream]) {
    let mut failed = Vec::new();
    while is_bridged() {
        failed = streams.iter_mut().filter_map(|stream| echo(stream).err()).collect();
        std::thread::sleep(Duration::from_secs(2));
    }
    println!("of the streams that were not waited for, when the bridge was gone: {failed:?}");
}

/// Fails unless the client of a stream hears of its peer: the stream is reset, or goes on.
fn does_not_hang(stream: &mut TcpStream) {
    let until = Instant::now() + UNTIL_RESET;
    loop {
        match echo(stream) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            heard => {
                println!("and in the end: {heard:?}");
                return;
            }
        }
        assert!(Instant::now() < until, "it hangs: {}", run("conntrack -L"));
    }
}

#[test]
#[ignore = "in the machine"]
fn ipvs_to_nftables_breaks_nothing() {
    if !inside("cases::migrate::bridge::ipvs_to_nftables_breaks_nothing") {
        return;
    }
    let case = node("ipvs");
    let ends = open("10.96.1.1:80");
    let mut stay: Vec<TcpStream> = (0..CUT).map(|_| open("10.96.1.2:80")).collect();
    let ended = carries_over(&case, "ipvs", "nftables", || {
        ends_in_time(ends);
        let _of_node = stream(NODE, "10.96.1.1:80").expect("a stream by the bridge");
        go_on_until_bridge_is_gone(&mut stay[..CUT / 2]);
    });
    let named = format!("with its virtual servers: 10.96.1.2:80/tcp ({CUT})");
    ended.reports(&[
        &format!("{CUT} connections through ipvs end {named}"),
        "of this node's own programs come from addresses of services and hang without these: \
         10.96.1.1:80/tcp (",
    ]);
    stay.iter_mut().for_each(does_not_hang);
    goes_back(&case, "nftables", "ipvs");
}

/// Moves a node from one mode to the other, and rolls that back.
fn there_and_back(from: &str, to: &str) {
    let case = node(from);
    carries_over(&case, from, to, || {});
    goes_back(&case, to, from);
}

#[test]
#[ignore = "in the machine"]
fn soak_nftables_to_ipvs_breaks_nothing() {
    if inside("cases::migrate::bridge::soak_nftables_to_ipvs_breaks_nothing") {
        there_and_back("nftables", "ipvs");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_iptables_to_nftables_breaks_nothing() {
    if inside("cases::migrate::bridge::soak_iptables_to_nftables_breaks_nothing") {
        there_and_back("iptables", "nftables");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_nftables_to_iptables_breaks_nothing() {
    if inside("cases::migrate::bridge::soak_nftables_to_iptables_breaks_nothing") {
        there_and_back("nftables", "iptables");
    }
}

/// For comparison, kube-proxy's own way: its configuration is edited, and it is restarted.
#[test]
#[ignore = "in the machine"]
fn a_restart_in_nftables_mode_breaks_what_a_bridge_does_not() {
    if !inside("cases::migrate::bridge::a_restart_in_nftables_mode_breaks_what_a_bridge_does_not") {
        return;
    }
    load_modules();
    let mut case = Case::started("nft", "ipvs", |_| {});
    let traffic = Traffic::controlled();
    std::thread::sleep(Duration::from_secs(5));
    case.cluster.kube_proxy("nftables");
    case.cluster.serves();
    let failed = traffic.failures("ipvs to nftables by a restart alone");
    for kind in ["ClusterIP from a pod", "ClusterIP from the node", "NodePort from outside"] {
        assert!(failed.iter().any(|f| f.starts_with(kind)), "{kind}: the traffic notices nothing");
    }
}
