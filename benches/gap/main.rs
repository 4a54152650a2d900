//! Measures how long services are not served when kube-proxy crosses nftables mode in its own way:
//! it removes the other side's rules as it starts, and serves again with its first sync.
//!
//! And how long proxyshift takes to read a node in nftables mode, which it may not exceed.
//!
//! `cargo bench --bench gap [-- SERVICES…]`, as root, after `make kubernetes`: the real kube-proxy
//! 1.37.2 on the real kernel, in private namespaces. Prints a Markdown table. The bounds of
//! `kube_proxy::gap` are from here.

#[path = "../../tests/vm/api.rs"]
#[allow(dead_code, reason = "the virtual machine uses the rest")]
mod api;
mod cluster;
mod reading;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use cluster::{Cluster, KubeProxy};
use reading::Reading;

const SIZES: [usize; 3] = [20, 1000, 5000];
const BACKENDS: [&str; 2] = ["nft", "legacy"];

/// The word that stands for the measurement of the reading, in place of a backend.
const READING: &str = "reading";

/// How many endpoints each service has.
const ENDPOINTS: usize = 5;

/// How long one move may take.
const LIMIT: Duration = Duration::from_secs(300);

/// How long services must be served until a move counts as through.
const SETTLED: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|w| *w != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["inside", services, backend] = words[..] {
        let services = services.parse().expect("a number");
        return match backend {
            READING => read(services),
            backend => measure(services, backend),
        };
    }
    let requested: Vec<usize> = words.iter().filter_map(|w| w.parse().ok()).collect();
    let sizes = if requested.is_empty() { SIZES.to_vec() } else { requested };
    println!("| services × endpoints | move | not served, s | of it the first sync, s |");
    println!("|---|---|---|---|");
    let moves = sizes.iter().flat_map(|services| BACKENDS.map(|backend| (*services, backend)));
    let mut ok = moves.fold(true, |ok, (services, backend)| in_namespace(services, backend) && ok);
    println!("\n| services × endpoints | `nft -j list ruleset`, s | `plan`, s | `check`, s |");
    println!("|---|---|---|---|");
    for services in sizes {
        ok &= in_namespace(services, READING);
    }
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Measures in private namespaces: the moves with one backend of iptables, or the reading. Returns
/// whether that was within its limits.
fn in_namespace(services: usize, what: &str) -> bool {
    let status = Command::new("unshare")
        .args(["-nmpf", "--propagation", "private", "--mount-proc", "--kill-child"])
        .args(["sh", "-c", "mount -t tmpfs -o mode=755 bench /run && exec \"$@\"", "sh"])
        .arg(std::env::current_exe().expect("our own path"))
        .args(["inside", &services.to_string(), what])
        .stdin(Stdio::null())
        .status();
    status.expect("unshare, of util-linux, runs").success()
}

/// Measures how long a node in nftables mode takes to read, and prints a row of the table.
fn read(services: usize) -> ExitCode {
    let cluster = Cluster::new(services, ENDPOINTS, BACKENDS[0]);
    let _kube_proxy = cluster.start("nftables");
    wait("nftables mode serves", || cluster.answers());
    std::thread::sleep(SETTLED);
    let reading = Reading::of_this_node();
    println!("{}", reading.row(services, ENDPOINTS));
    // On a small node, what does not depend on the size counts more.
    let is_judged = services == SIZES[SIZES.len() - 1];
    if !is_judged || reading.is_within_limit() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Moves kube-proxy to nftables mode and back, and prints a row of the table for each.
fn measure(services: usize, backend: &str) -> ExitCode {
    let cluster = Cluster::new(services, ENDPOINTS, backend);
    // The virtual machine of the tests has ipvs.
    let has_ipvs = std::path::Path::new("/proc/net/ip_vs").exists();
    for other in ["iptables", "ipvs"].into_iter().filter(|mode| *mode != "ipvs" || has_ipvs) {
        let mut kube_proxy = cluster.start(other);
        wait("the first mode serves", || cluster.answers());
        for (from, to) in [(other, "nftables"), ("nftables", other)] {
            std::thread::sleep(SETTLED);
            let gap;
            (kube_proxy, gap) = crossed(&cluster, kube_proxy, to);
            let (gap, sync) = (gap.as_secs_f64(), kube_proxy.first_sync());
            println!(
                "| {services} × {ENDPOINTS} | {from} → {to}, {backend} | {gap:.1} | {sync:.1} |"
            );
        }
    }
    ExitCode::SUCCESS
}

/// Restarts kube-proxy in `mode`. Returns it, and the time between the last answer before the gap
/// and the first one after it.
fn crossed(cluster: &Cluster, old: KubeProxy, mode: &str) -> (KubeProxy, Duration) {
    drop(old);
    let began = Instant::now();
    let new = cluster.start(mode);
    let (mut answered, mut has_failed, mut recovered) = (began, false, None);
    let gap = loop {
        assert!(began.elapsed() < LIMIT, "{mode} mode does not serve: {}", cluster.log());
        let now = Instant::now();
        match (cluster.answers(), has_failed) {
            (true, false) => answered = now,
            (true, true) => {
                let since = *recovered.get_or_insert_with(Instant::now);
                if since.elapsed() > SETTLED {
                    break since.duration_since(answered);
                }
            }
            (false, _) => {
                has_failed = true;
                recovered = None;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    (new, gap)
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < until, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
