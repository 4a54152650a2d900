//! The real kubelet of today, which runs kube-proxy as a static pod. containerd starts the pod's container,
//! whose files come from the node.

use std::fs;
use std::os::unix::fs::symlink;

use crate::cluster::BIN;
use crate::common::run;
use crate::common::vm::{image, kubernetes, of_cluster};
use crate::kube_proxy::{self, DIR};
use crate::machine::TODAY;
use crate::systemd::Systemd;

/// The manifest of kube-proxy, at the path where kubeadm would write it.
pub const MANIFEST: &str = "/etc/kubernetes/manifests/kube-proxy.yaml";

/// The log file of both containerd and the kubelet.
const LOG: &str = "/run/kubelet.log";

/// The kubelet's configuration: no API, certificates of its own, and no evictions, which a full
/// disk of the host would cause.
const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
staticPodPath: /etc/kubernetes/manifests
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
address: 127.0.0.1
readOnlyPort: 0
failSwapOn: false
localStorageCapacityIsolation: false
volumePluginDir: /var/lib/kubelet/volume-plugins
evictionHard: {memory.available: 0%, nodefs.available: 0%, imagefs.available: 0%}
imageGCHighThresholdPercent: 100
";

/// containerd's configuration. The images are imported before, so nothing is pulled.
const CONTAINERD: &str = "version = 2
[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = 'local.test/k8s/pause:1'
";

/// The systemd of a node with the units kubelet and containerd. All of them end when this value is
/// dropped.
pub struct Kubelet {
    pub systemd: Systemd,
}

impl Kubelet {
    /// Writes kube-proxy's manifest, with `arguments` for kube-proxy, and starts containerd and the
    /// kubelet.
    pub fn start(arguments: &[&str]) -> Kubelet {
        let kubelet = Kubelet { systemd: Systemd::boot() };
        fs::write("/run/containerd.toml", CONTAINERD).expect("a file");
        fs::write("/run/kubelet.yaml", KUBELET).expect("a file");
        fs::write(MANIFEST, manifest(arguments)).expect(MANIFEST);
        for program in ["containerd", "containerd-shim-runc-v2", "ctr", "runc"] {
            let path = of_cluster("programs").join(program);
            symlink(path, format!("{BIN}/{program}")).expect(program);
        }
        let containerd = format!("{BIN}/containerd --config=/run/containerd.toml");
        kubelet.systemd.start("containerd", "notify", &containerd, LOG);
        for name in ["pause-1", "host-1"] {
            run(&format!("{BIN}/ctr -n k8s.io images import {}", image(name).display()));
        }
        let words = format!(
            "{} --config=/run/kubelet.yaml --hostname-override=node --v=2",
            kubernetes(TODAY, "kubelet").display()
        );
        kubelet.systemd.start("kubelet", "notify", &words, LOG);
        kubelet
    }
}

impl Drop for Kubelet {
    /// Prints the logs if the test has failed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}{}", fs::read_to_string(LOG).unwrap_or_default(), kube_proxy::log());
        }
    }
}

/// A typical manifest of kube-proxy. The container has the node's programs, and sees the node's
/// files under other paths.
fn manifest(arguments: &[&str]) -> String {
    let program = kube_proxy::program();
    let folder = program.parent().expect("a folder").display();
    // kube-proxy 1.26 and later log to nowhere but their output.
    let log = match kube_proxy::is_old() {
        true => {
            "    - --logtostderr=false\n    - --alsologtostderr\n    - --log-file=/run/kube-proxy/log\n"
        }
        false => "",
    };
    let arguments: String = arguments.iter().map(|a| format!("    - {a}\n")).collect();
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: kube-proxy
  namespace: kube-system
spec:
  hostNetwork: true
  priorityClassName: system-node-critical
  containers:
  - name: kube-proxy
    image: local.test/host:1
    imagePullPolicy: Never
    command:
    - /opt/kube-proxy
{log}{arguments}    env:
    - {{name: PATH, value: '{BIN}:/usr/sbin:/usr/bin'}}
    securityContext:
      privileged: true
    volumeMounts:
    - {{name: program, mountPath: /opt}}
    - {{name: configuration, mountPath: /var/lib/kube-proxy}}
    - {{name: configuration, mountPath: {DIR}}}
    - {{name: programs, mountPath: {BIN}}}
    - {{name: usr, mountPath: /usr}}
    - {{name: protocols, mountPath: /etc/protocols}}
    - {{name: lock, mountPath: /run/xtables.lock}}
  volumes:
  - {{name: program, hostPath: {{path: {folder}}}}}
  - {{name: configuration, hostPath: {{path: {DIR}}}}}
  - {{name: programs, hostPath: {{path: {BIN}}}}}
  - {{name: usr, hostPath: {{path: /usr}}}}
  - {{name: protocols, hostPath: {{path: /etc/protocols}}}}
  - {{name: lock, hostPath: {{path: /run/xtables.lock, type: FileOrCreate}}}}
"
    )
}
