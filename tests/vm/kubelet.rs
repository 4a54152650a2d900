//! The real kubelet, which runs kube-proxy as a static pod. containerd starts the pod's container,
//! whose files come from the node.

use std::fs;
use std::os::unix::fs::symlink;

use crate::cluster::BIN;
use crate::common::run;
use crate::common::vm::cached;
use crate::kube_proxy::{self, DIR};
use crate::systemd::Systemd;

/// The manifest of kube-proxy, at the path where kubeadm would write it.
pub const MANIFEST: &str = "/etc/kubernetes/manifests/kube-proxy.yaml";

/// The log file of both containerd and the kubelet.
const LOG: &str = "/run/kubelet.log";

/// The kubelet's configuration: no API, certificates of its own, and no evictions, which a full
/// disk of the host would cause.
const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: /etc/kubernetes/manifests
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
address: 127.0.0.1
readOnlyPort: 0
failSwapOn: false
evictionHard: {memory.available: 0%, nodefs.available: 0%, imagefs.available: 0%}
imageGCHighThresholdPercent: 100
";

/// containerd's configuration. The images are imported before, so nothing is pulled.
const CONTAINERD: &str = "version = 2
[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = 'docker.io/library/pause:latest'
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
        for program in ["containerd", "containerd-shim-runc-v2", "ctr", "kubelet", "runc"] {
            symlink(cached("kubelet").join(program), format!("{BIN}/{program}")).expect(program);
        }
        let containerd = format!("{BIN}/containerd --config=/run/containerd.toml");
        kubelet.systemd.start("containerd", "notify", &containerd, LOG);
        for image in ["pause.tar", "host.tar"] {
            let image = cached("kubelet").join(image);
            run(&format!("{BIN}/ctr -n k8s.io images import {}", image.display()));
        }
        let words = format!(
            "{BIN}/kubelet --config=/run/kubelet.yaml --hostname-override=node \
             --container-runtime=remote \
             --container-runtime-endpoint=unix:///run/containerd/containerd.sock --v=2"
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
    image: docker.io/library/host:latest
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
