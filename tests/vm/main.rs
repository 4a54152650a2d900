//! Cases with real ipvs and real kube-proxy, in virtual machines with Debian's kernel.
//!
//! `every_case_passes_in_the_vm` boots two machines. The machines take the cases, which are the
//! tests marked `#[ignore]`, from a shared queue, and run each case in namespaces of its own. Each
//! case can be tried with two versions of kube-proxy. To run only some of these trials:
//! `PROXYSHIFT_CASES='back:: nothing@1.37.2' cargo test --test vm`, with parts of their names. Cases
//! with `soak` in their names are long, and run only on request. `make soak` runs all trials, and
//! writes the results to docs/soak.md.

#[path = "../common/mod.rs"]
mod common;

mod api;
mod clients;
mod cluster;
mod kube_proxy;
mod kubelet;
mod machine;
mod network;
#[path = "../wizard/pty.rs"]
#[allow(dead_code, reason = "the wizard's own tests use the rest")]
mod pty;
#[path = "../ansible/site.rs"]
mod site;
mod systemd;
mod table;
mod traffic;

mod cases;

/// The value of PROXYSHIFT_CASES that selects the boots in which the power is cut, and no case.
const REBOOT: &str = "reboot";

/// Where the power is cut in every run, as `MODE:STAGE` of a migration from iptables mode: amid the
/// removal of rules, and while a bridge serves.
const CUTS: [&str; 2] = ["ipvs:clean", "nftables:switch"];

/// Where it is cut on request: in each stage that writes. A cut in one of the others is as one at the
/// end of the stage before it.
const ALL_CUTS: [&str; 9] = [
    "ipvs:prepare",
    "ipvs:switch",
    "ipvs:clean",
    "ipvs:settle",
    "ipvs:confirm",
    "ipvs:rollback",
    "nftables:bridge",
    "nftables:switch",
    "nftables:remove-bridge",
];

#[test]
fn every_case_passes_in_the_vm() {
    let wanted = std::env::var("PROXYSHIFT_CASES").unwrap_or_default();
    let trials = if wanted == REBOOT { Vec::new() } else { machine::trials(&wanted) };
    let cuts: &[&str] = match &*wanted {
        "" => &CUTS,
        REBOOT | "cases::" => &ALL_CUTS,
        _ => &[],
    };
    assert!(wanted == REBOOT || !trials.is_empty(), "no trial has `{wanted}` in its name");
    let (seconds, log) = run(&trials, cuts);
    let mut failed = machine::failed(&trials, &log);
    let mut logs = vec![log];
    if let Some(path) = std::env::var_os("PROXYSHIFT_SOAK_PAGE") {
        // Failed trials are run once more, because the run is long and an emulated CPU is slow. The
        // page marks the trials that passed only the second time.
        if !failed.is_empty() {
            println!("once more: {failed:?}");
            logs.push(run(&failed, &[]).1);
            failed = machine::failed(&failed, &logs[1]);
        }
        let page = table::page(&trials, &logs) + &table::reboots(cuts, &seconds);
        std::fs::write(path, page).expect("the page");
    }
    assert!(failed.is_empty(), "{failed:?}");
    let whole: &[&str] = match &*wanted {
        "" => &[machine::ALWAYS],
        "cases::" => &[machine::ALWAYS, machine::ON_REQUEST],
        _ => &[],
    };
    common::tried::hold_readme_to(&logs.concat(), whole);
}

/// Runs trials on two machines that have a single CPU each, because an emulator runs these faster
/// than a single machine that has two CPUs. The first machine begins with the boots in which the power
/// is cut. Returns how many seconds each of these boots took, and the
/// output of the trials.
fn run(trials: &[String], cuts: &[&str]) -> (Vec<u64>, String) {
    let queue = machine::Queue::new(trials);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| match trials.len() {
            1 => String::new(),
            _ => queue.run("second"),
        });
        let seconds = if cuts.is_empty() { Vec::new() } else { machine::reboots(cuts) };
        let first = queue.run("first");
        let second = second.join().expect("the second machine gets through");
        println!("{first}{second}");
        (seconds, first + &second)
    })
}
