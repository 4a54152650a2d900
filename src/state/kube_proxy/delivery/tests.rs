//! Tests of the delivery of kube-proxy.

use super::*;

fn process(line: &str, version: &str, source: &str, cgroup: &str) -> Process {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Process {
        pid: 7,
        name: "kube-proxy".into(),
        args: line.split(' ').map(str::to_owned).collect(),
        version: text(version),
        version_source: text(source),
        cgroups: text(cgroup).into_iter().collect(),
    }
}

#[test]
fn each_delivery_is_known_by_what_only_it_has() {
    use ConfigMap::{Eks, K0s, Kubeadm};
    let (http, build) = ("http://127.0.0.1:10249/metrics", "its build information");
    let (pod, none) = ("/kubepods.slice/a.scope", "");
    let kubeadm = "kube-proxy --config=/var/lib/kube-proxy/config.conf";
    let unit = "/system.slice/kp.service";
    for (line, version, source, cgroup, expected) in [
        (kubeadm, "v1.30.5", http, none, Delivery::DaemonSet(Kubeadm)),
        (kubeadm, "v1.30.5", build, pod, Delivery::DaemonSet(Kubeadm)),
        (kubeadm, "", "", pod, Delivery::DaemonSet(Kubeadm)),
        (kubeadm, "", "", none, Delivery::Unknown),
        (kubeadm, "v1.30.5", "kube-proxy --version", none, Delivery::Unknown),
        (kubeadm, "v1.30.5", build, unit, Delivery::Unit("kp.service".into())),
        (kubeadm, "v1.30.5+k0s", build, pod, Delivery::DaemonSet(K0s)),
        (
            "kube-proxy --config=/var/lib/kube-proxy-config/config",
            "",
            "",
            none,
            Delivery::DaemonSet(Eks),
        ),
        ("kube-proxy --v=2", "v1.30.4-eks-a737599", http, none, Delivery::DaemonSet(Eks)),
        ("kube-proxy --v=2", "v1.34.2+rke2r1", http, none, Delivery::Rke2),
        ("kube-proxy --v=2", "v1.32.1-gke.1000", build, pod, Delivery::Managed(Cloud::Gke)),
        (
            "kube-proxy --kubeconfig=/var/lib/kubelet/kubeconfig --v=3",
            "v1.30.5",
            build,
            pod,
            Delivery::Managed(Cloud::Aks),
        ),
        (
            "kube-proxy --pod-interface-name-prefix= --v=3",
            "v1.30.5",
            http,
            none,
            Delivery::Managed(Cloud::Aks),
        ),
        ("kube-proxy --kubeconfig=/var/lib/rancher/rke2/agent/k", "", "", none, Delivery::Rke2),
        ("kube-proxy --v=2", "v1.30.5", http, none, Delivery::Pod),
        ("kube-proxy --v=2", "v1.30.5", build, pod, Delivery::Pod),
        ("kube-proxy --v=2", "v1.30.5", build, "/docker/9", Delivery::Container),
        ("kube-proxy --v=2", "v1.30.5", build, "/", Delivery::Unknown),
        ("kube-proxy --v=2", "", "", none, Delivery::Unknown),
    ] {
        let process = process(line, version, source, cgroup);
        assert_eq!(Delivery::of(&process, None), expected, "{process:?}");
    }
    let plain = process(kubeadm, "v1.30.5", http, none);
    assert_eq!(Delivery::of(&plain, Some("v1.30.5+k0s")), Delivery::DaemonSet(K0s));
}

#[test]
fn a_host_program_serves_unless_it_is_switched_off() {
    let of = |name: &str, line: &str| {
        let process = process(line, "", "", "");
        HostProgram::of(&Process { name: name.into(), ..process })
    };
    assert_eq!(of("k3s", "/usr/local/bin/k3s server"), Some(HostProgram::K3s));
    assert_eq!(of("k3s-agent", "/usr/local/bin/k3s <masked>"), Some(HostProgram::K3s));
    assert_eq!(of("k3s", "k3s agent --disable-kube-proxy"), None);
    assert_eq!(of("k3s", "k3s kubectl get pods"), None);
    assert_eq!(of("kubelite", "/snap/kubelite --x"), Some(HostProgram::Kubelite));
    assert_eq!(of("rke2", "rke2 server"), None);
}
