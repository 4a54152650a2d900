//! Why a cluster is not arranged: each reason by its name, with the next step.

use std::fmt;

use crate::error::{Error, Kind};
use crate::state::kube_proxy::Mode;

/// A reason not to touch a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterRefusal {
    /// No DaemonSet has the label of kube-proxy's.
    NoDaemonSet,
    /// Several have.
    SeveralDaemonSets(Vec<String>),
    /// Its kube-proxy has no configuration in a ConfigMap.
    NoConfigFile {
        /// Why.
        why: String,
    },
    /// Its selector is not of labels alone.
    UnusualSelector,
    /// Somebody writes the DaemonSet again and again.
    Managed {
        /// Who.
        by: String,
    },
    /// The cluster runs in that mode already.
    SameMode(Mode),
    /// Nodes have the label although they have not moved.
    LabelledNodes(Vec<String>),
    /// The cluster is arranged for another mode.
    OtherMode(Mode),
    /// Pods have another image than the template.
    VersionsDiffer {
        /// The template's image.
        template: String,
        /// A pod's image, and its node.
        pod: (String, String),
    },
    /// The DaemonSet is replacing its pods.
    RollingUpdate,
    /// kubeadm has upgraded the control plane, and kube-proxy not yet, or the reverse.
    HalfUpgraded {
        /// The cluster's version by kubeadm.
        cluster: String,
        /// kube-proxy's version.
        kube_proxy: String,
    },
    /// An object has a name of ours, and is not ours.
    NameInUse(String),
    /// Admission makes something else of what must hold.
    Admission(String),
}

impl ClusterRefusal {
    /// What a document, a test and a playbook know it by.
    pub fn code(&self) -> &'static str {
        match self {
            ClusterRefusal::NoDaemonSet => "no-daemonset",
            ClusterRefusal::SeveralDaemonSets(_) => "several-daemonsets",
            ClusterRefusal::NoConfigFile { .. } => "no-config-file",
            ClusterRefusal::UnusualSelector => "unusual-selector",
            ClusterRefusal::Managed { .. } => "managed",
            ClusterRefusal::SameMode(_) => "same-mode",
            ClusterRefusal::LabelledNodes(_) => "labelled-nodes",
            ClusterRefusal::OtherMode(_) => "other-mode",
            ClusterRefusal::VersionsDiffer { .. } => "versions-differ",
            ClusterRefusal::RollingUpdate => "rolling-update",
            ClusterRefusal::HalfUpgraded { .. } => "half-upgraded",
            ClusterRefusal::NameInUse(_) => "name-in-use",
            ClusterRefusal::Admission(_) => "admission",
        }
    }

    /// The next step.
    fn hint(&self) -> &'static str {
        match self {
            ClusterRefusal::NoDaemonSet | ClusterRefusal::SeveralDaemonSets(_) => {
                "name it: --daemonset NAMESPACE/NAME"
            }
            ClusterRefusal::NoConfigFile { .. } | ClusterRefusal::UnusualSelector => {
                "arrange it by hand as docs/cluster.md shows; nodes accept what verifies"
            }
            ClusterRefusal::Managed { .. } => {
                "`--render DIR` writes the manifests, to hand to what manages it"
            }
            ClusterRefusal::SameMode(_) => {
                "nothing is to be moved; `proxyshift cluster status` shows all nodes"
            }
            ClusterRefusal::LabelledNodes(_) => {
                "take the label away first: `kubectl label node NODE proxyshift.dev/mode-`"
            }
            ClusterRefusal::OtherMode(_) => "finish or undo that first",
            ClusterRefusal::VersionsDiffer { .. } => {
                "let each node take the template's version first: on the node, `proxyshift upgrade`, or \
                 delete its pod"
            }
            ClusterRefusal::RollingUpdate => "wait: `kubectl rollout status` tells when it is done",
            ClusterRefusal::HalfUpgraded { .. } => {
                "finish the upgrade first: `kubeadm upgrade apply`"
            }
            ClusterRefusal::NameInUse(_) => "rename it, or delete it if nothing needs it",
            ClusterRefusal::Admission(_) => {
                "except kube-proxy's DaemonSets from that policy or webhook"
            }
        }
    }

    /// The error about `object`.
    pub fn error(&self, object: &str) -> Error {
        Error::new(Kind::Blocked, object, self).hint(self.hint())
    }
}

impl fmt::Display for ClusterRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClusterRefusal::NoDaemonSet => {
                f.write_str("no DaemonSet has the label k8s-app=kube-proxy")
            }
            ClusterRefusal::SeveralDaemonSets(names) => {
                write!(
                    f,
                    "several DaemonSets have the label k8s-app=kube-proxy: {}",
                    names.join(", ")
                )
            }
            ClusterRefusal::NoConfigFile { why } => {
                write!(f, "its kube-proxy has no configuration in a ConfigMap: {why}")
            }
            ClusterRefusal::UnusualSelector => f.write_str("its selector is not of labels alone"),
            ClusterRefusal::Managed { by } => {
                write!(f, "{by} manages it, and would undo what others write")
            }
            ClusterRefusal::SameMode(mode) => write!(f, "its mode is {mode} already"),
            ClusterRefusal::LabelledNodes(nodes) => write!(
                f,
                "nodes have the label proxyshift.dev/mode and have not moved, so their kube-proxy would \
                 end at once: {}",
                nodes.join(", ")
            ),
            ClusterRefusal::OtherMode(mode) => write!(f, "the cluster is prepared for {mode} mode"),
            ClusterRefusal::VersionsDiffer { template, pod: (image, node) } => {
                write!(
                    f,
                    "its template has the image {template}, and the pod on {node} has {image}"
                )
            }
            ClusterRefusal::RollingUpdate => f.write_str("it is replacing its pods"),
            ClusterRefusal::HalfUpgraded { cluster, kube_proxy } => write!(
                f,
                "an upgrade is half done: kubeadm says the cluster is {cluster}, and kube-proxy is \
                 {kube_proxy}"
            ),
            ClusterRefusal::NameInUse(object) => {
                write!(f, "{object} is there, and has not the label of proxyshift")
            }
            ClusterRefusal::Admission(what) => {
                write!(f, "admission changes what must hold: {what}")
            }
        }
    }
}
