//! Real ipvs and real kube-proxy, in a virtual machine with Debian's kernel.
//!
//! `every_case_passes_in_the_vm` boots it once and runs the tests marked `#[ignore]` inside, each
//! in namespaces of its own. To run some of them only: `PROXYSHIFT_CASES=back cargo test --test vm`.
//! Those with `soak` in their names take long, and run only so (`make soak`).

#[path = "../common/mod.rs"]
mod common;

mod api;
mod cluster;
mod kube_proxy;
mod machine;
mod network;
mod traffic;

mod cases;

/// The name of the only test that runs outside of the machine.
const OUTSIDE: &str = "every_case_passes_in_the_vm";

#[test]
fn every_case_passes_in_the_vm() {
    let wanted = std::env::var("PROXYSHIFT_CASES").unwrap_or_default();
    let cases = machine::cases(&wanted);
    assert!(!cases.is_empty(), "no case has `{wanted}` in its name");
    let log = machine::run(&wanted);
    println!("{log}");
    let failed: Vec<_> =
        cases.iter().filter(|c| !log.contains(&format!("test {c} ... ok"))).collect();
    assert!(failed.is_empty(), "{OUTSIDE}: {failed:?}");
}
