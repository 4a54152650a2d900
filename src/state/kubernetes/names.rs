//! The names of kubeadm's kube-proxy in a cluster, and of what proxyshift puts beside it.

use crate::state::kube_proxy::Mode;

/// The namespace of kubeadm's kube-proxy.
pub const NAMESPACE: &str = "kube-system";

/// The name of kubeadm's DaemonSet, ConfigMap and service account.
pub const DAEMON_SET: &str = "kube-proxy";

/// By which label kube-proxy's DaemonSets and pods are found, whatever their names.
pub const SELECTOR: (&str, &str) = ("k8s-app", "kube-proxy");

/// The label of a Node that says in which mode its kube-proxy is to run, where this is not the
/// cluster's.
pub const MODE_LABEL: &str = "proxyshift.dev/mode";

/// The annotation of a Node that has its pending run, as a [`RunNote`](super::RunNote).
pub const RUN_ANNOTATION: &str = "proxyshift.dev/run";

/// The label, with its value, of all objects that are ours.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "proxyshift");

/// The name of the Lease that one administrator at a time holds.
pub const LEASE: &str = "proxyshift";

/// The name that an object called `name` has for nodes of a mode: `kube-proxy-nftables`.
pub fn name_for_mode(name: &str, mode: Mode) -> String {
    format!("{name}-{mode}")
}
