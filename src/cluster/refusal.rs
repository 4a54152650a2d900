//! Why a cluster is not arranged: each reason by its name, with the next step.

use std::fmt;

use crate::error::{Error, Kind};
use crate::state::kube_proxy::Mode;

/// A reason not to touch a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
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

impl Refusal {
    /// What a document, a test and a playbook know it by.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::NoDaemonSet => "no-daemonset",
            Refusal::SeveralDaemonSets(_) => "several-daemonsets",
            Refusal::NoConfigFile { .. } => "no-config-file",
            Refusal::UnusualSelector => "unusual-selector",
            Refusal::Managed { .. } => "managed",
            Refusal::SameMode(_) => "same-mode",
            Refusal::LabelledNodes(_) => "labelled-nodes",
            Refusal::OtherMode(_) => "other-mode",
            Refusal::VersionsDiffer { .. } => "versions-differ",
            Refusal::RollingUpdate => "rolling-update",
            Refusal::HalfUpgraded { .. } => "half-upgraded",
            Refusal::NameInUse(_) => "name-in-use",
            Refusal::Admission(_) => "admission",
        }
    }

    /// The next step.
    fn hint(&self) -> &'static str {
        match self {
            Refusal::NoDaemonSet | Refusal::SeveralDaemonSets(_) => {
                "name it: --daemonset NAMESPACE/NAME"
            }
            Refusal::NoConfigFile { .. } | Refusal::UnusualSelector => {
                "arrange it by hand as docs/cluster.md shows; nodes accept what verifies"
            }
            Refusal::Managed { .. } => {
                "`--render DIR` writes the manifests, to hand to what manages it"
            }
            Refusal::SameMode(_) => {
                "nothing is to be moved; `proxyshift cluster status` shows all nodes"
            }
            Refusal::LabelledNodes(_) => {
                "take the label away first: `kubectl label node NODE proxyshift.dev/mode-`"
            }
            Refusal::OtherMode(_) => "finish or undo that first",
            Refusal::VersionsDiffer { .. } => {
                "let each node take the template's version first: on the node, `proxyshift upgrade`, or \
                 delete its pod"
            }
            Refusal::RollingUpdate => "wait: `kubectl rollout status` tells when it is done",
            Refusal::HalfUpgraded { .. } => "finish the upgrade first: `kubeadm upgrade apply`",
            Refusal::NameInUse(_) => "rename it, or delete it if nothing needs it",
            Refusal::Admission(_) => "except kube-proxy's DaemonSets from that policy or webhook",
        }
    }

    /// The error about `object`.
    pub fn error(&self, object: &str) -> Error {
        Error::new(Kind::Blocked, object, self).hint(self.hint())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoDaemonSet => f.write_str("no DaemonSet has the label k8s-app=kube-proxy"),
            Refusal::SeveralDaemonSets(names) => {
                write!(
                    f,
                    "several DaemonSets have the label k8s-app=kube-proxy: {}",
                    names.join(", ")
                )
            }
            Refusal::NoConfigFile { why } => {
                write!(f, "its kube-proxy has no configuration in a ConfigMap: {why}")
            }
            Refusal::UnusualSelector => f.write_str("its selector is not of labels alone"),
            Refusal::Managed { by } => {
                write!(f, "{by} manages it, and would undo what others write")
            }
            Refusal::SameMode(mode) => write!(f, "its mode is {mode} already"),
            Refusal::LabelledNodes(nodes) => write!(
                f,
                "nodes have the label proxyshift.dev/mode and have not moved, so their kube-proxy would \
                 end at once: {}",
                nodes.join(", ")
            ),
            Refusal::OtherMode(mode) => write!(f, "the cluster is prepared for {mode} mode"),
            Refusal::VersionsDiffer { template, pod: (image, node) } => {
                write!(
                    f,
                    "its template has the image {template}, and the pod on {node} has {image}"
                )
            }
            Refusal::RollingUpdate => f.write_str("it is replacing its pods"),
            Refusal::HalfUpgraded { cluster, kube_proxy } => write!(
                f,
                "an upgrade is half done: kubeadm says the cluster is {cluster}, and kube-proxy is \
                 {kube_proxy}"
            ),
            Refusal::NameInUse(object) => {
                write!(f, "{object} is there, and has not the label of proxyshift")
            }
            Refusal::Admission(what) => write!(f, "admission changes what must hold: {what}"),
        }
    }
}
