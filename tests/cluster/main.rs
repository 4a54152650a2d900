//! Cases on a real cluster: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and nodes
//! with containerd, a kubelet and kubeadm's kube-proxy, all of today's version, in namespaces.
//!
//! `every_case_passes_on_a_real_cluster` makes namespaces that look like a machine, and runs the
//! cases there, which are the tests marked `#[ignore]`. They share one control plane; each has a
//! node of its own. To run only some cases: `PROXYSHIFT_CASES=cleaned cargo test --test cluster`.

#[path = "../common/mod.rs"]
mod common;
#[path = "../vm/network.rs"]
#[allow(dead_code, reason = "the virtual machine uses the rest")]
mod network;

mod audit;
mod cases;
mod control_plane;
mod expected;
mod machine;
mod node;
mod pods;
mod proxy;
mod traffic;

#[test]
fn every_case_passes_on_a_real_cluster() {
    let wanted = std::env::var("PROXYSHIFT_CASES").unwrap_or_default();
    machine::run_cases(if wanted.is_empty() { machine::ALL } else { &wanted });
}
