//! Kernels and containers that lack a system call: the same promises, or a refusal that is said.

use std::fs;
use std::os::unix::fs::symlink;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use crate::common::in_namespace;
use crate::common::node::Proxyshift;
use crate::{Stranger, everyone_looks, newest_snapshot, soon};

/// From here on, these calls of this thread and of its children are not implemented.
fn without(calls: &[i64]) {
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, missing, arch).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

#[test]
fn openat2_and_pidfds_are_not_needed() {
    if !in_namespace("kernels::openat2_and_pidfds_are_not_needed") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                  mode: ipvs\n";
    fs::write("/run/config", config).unwrap();
    symlink("/run/config", "/run/link").unwrap();
    let script = "exec -a kube-proxy bash -c 'sleep 1000; :' --config=/run/link";
    let _root = Stranger::root(script).named("kube-proxy");
    let script = "exec -a kubelet bash -c 'sleep 1000; :' --config=/proc/kmsg";
    let _other = Stranger::unprivileged(script).named("kubelet");
    without(&[
        libc::SYS_openat2,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pidfd_getfd,
    ]);
    everyone_looks(&proxyshift);
    let kept = newest_snapshot(&proxyshift);
    assert!(kept.contains("mode: ipvs") && kept.contains("lookalikes.json"), "{kept}");
}

#[test]
fn without_statx_nobody_counts() {
    if !in_namespace("kernels::without_statx_nobody_counts") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    let script = "exec -a kube-proxy bash -c 'sleep 1000; :' --config=/proc/kmsg";
    let _root = Stranger::root(script).named("kube-proxy");
    without(&[libc::SYS_statx]);
    everyone_looks(&proxyshift);
    let found = soon(&proxyshift, "check --only kube-proxy.lookalikes");
    assert!(found.out.contains("the kernel does not say"), "{}", found.out);
}
