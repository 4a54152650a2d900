//! kube-proxy as a static pod that the real kubelet runs.

use std::fs;

use super::Case;
use crate::cluster::FOREIGN;
use crate::common::run;
use crate::common::tried::tried;
use crate::kube_proxy::{self, KubeProxy};
use crate::kubelet::{Kubelet, MANIFEST};
use crate::machine::{inside, place};

/// The flags of the second pod, which has no configuration file. None of them is about ipvs.
const FLAGS: [&str; 9] = [
    "--proxy-mode=iptables",
    "--kubeconfig=/run/kube-proxy/kubeconfig",
    "--kube-api-content-type=application/json",
    "--hostname-override=node",
    "--cluster-cidr=10.244.0.0/16",
    "--conntrack-max-per-core=0",
    "--conntrack-min=0",
    "--conntrack-tcp-timeout-established=0s",
    "--conntrack-tcp-timeout-close-wait=0s",
];

/// A node whose kubelet runs kube-proxy in iptables mode, with these `arguments`.
fn node(arguments: &[&str]) -> (Case, Kubelet) {
    for folder in ["/etc/kubernetes", "/var/lib", "/var/log"] {
        run(&format!("mkdir -p {folder}"));
        run(&format!("mount -t tmpfs kubelet {folder}"));
    }
    run("mkdir /etc/kubernetes/manifests");
    let mut case = Case::idle("nft", "store");
    KubeProxy::configure("iptables", &format!("{FOREIGN}/32"));
    let kubelet = Kubelet::start(arguments);
    case.cluster.wait("iptables");
    case.serves_from_now_on();
    case.proxyshift.within = kubelet.systemd.prefix();
    (case, kubelet)
}

#[test]
#[ignore = "in the machine"]
fn soak_a_static_pod_goes_there_and_comes_back() {
    if !inside("cases::migrate::static_pod::soak_a_static_pod_goes_there_and_comes_back") {
        return;
    }
    let (case, _kubelet) = node(&["--config=/var/lib/kube-proxy/config.conf", "--v=2"]);
    for (from, to) in [("iptables", "ipvs"), ("ipvs", "iptables")] {
        case.migrates_by_itself(from, to).reports(&[&format!("static pod {MANIFEST}")]);
        case.is_in(to);
        case.proxyshift.expect(0, "confirm");
    }
    tried(&kube_proxy::metrics(), place(), "a static pod: from iptables to ipvs mode and back");
}

#[test]
#[ignore = "in the machine"]
fn soak_a_static_pod_told_by_flags_is_undone() {
    if !inside("cases::migrate::static_pod::soak_a_static_pod_told_by_flags_is_undone") {
        return;
    }
    // Its EndpointSlices are of another version of the API.
    let gate = kube_proxy::is_old().then_some("--feature-gates=EndpointSliceProxying=false");
    let flags: Vec<&str> = FLAGS.into_iter().chain(gate).collect();
    let (case, _kubelet) = node(&flags);
    let manifest = || fs::read_to_string(MANIFEST).expect(MANIFEST);
    let before = manifest();
    case.migrates_by_itself("iptables", "ipvs").reports(&[&format!("static pod {MANIFEST}")]);
    case.is_in("ipvs");
    let written = manifest();
    let new = ["    - --proxy-mode=ipvs\n", &format!("    - --ipvs-exclude-cidrs={FOREIGN}/32\n")];
    assert!(new.iter().all(|line| written.contains(line)), "{written}");
    case.proxyshift.expect(0, "rollback --yes");
    case.is_in("iptables");
    assert_eq!(manifest(), before);
    let what = "a static pod told by flags: from iptables to ipvs mode, rolled back";
    tried(&kube_proxy::metrics(), place(), what);
}
