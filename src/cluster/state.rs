//! What a cluster has of kube-proxy, as the API server says at one moment.

use std::collections::BTreeMap;

use crate::cluster::refusal::ClusterRefusal;
use crate::state::kubernetes::{
    AnyObject, ApiKind, ClusterNode, ClusterPod, ConfigMapObject, DaemonSet, MANAGED_BY,
    MODE_LABEL, ObjectMeta, ObjectRef,
};

/// What a cluster has of kube-proxy.
#[derive(Debug, Clone, Default)]
pub struct ClusterState {
    /// The original DaemonSet.
    pub original: DaemonSet,
    /// The DaemonSets of ours in its namespace.
    pub ours: Vec<DaemonSet>,
    /// The ConfigMaps of its namespace that are used, by name.
    pub config_maps: BTreeMap<String, ConfigMapObject>,
    /// Other objects whose names are ours.
    pub others: BTreeMap<ObjectRef, AnyObject>,
    /// All Nodes.
    pub nodes: Vec<ClusterNode>,
    /// The pods of the namespace that a DaemonSet of these looks after.
    pub pods: Vec<ClusterPod>,
    /// The version of the cluster, by kubeadm's own ConfigMap: `v1.37.2`.
    pub kubeadm_version: Option<String>,
}

/// Which of the DaemonSets with kube-proxy's label is the original.
///
/// # Errors
/// [`ClusterRefusal::NoDaemonSet`] and [`ClusterRefusal::SeveralDaemonSets`].
pub fn original_of(all: Vec<DaemonSet>) -> Result<DaemonSet, ClusterRefusal> {
    let mut originals: Vec<DaemonSet> =
        all.into_iter().filter(|daemon_set| !is_ours(&daemon_set.metadata)).collect();
    match originals.len() {
        1 => Ok(originals.remove(0)),
        0 => Err(ClusterRefusal::NoDaemonSet),
        _ => {
            let names = originals.iter().map(|d| d.metadata.reference(ApiKind::DaemonSet));
            let names = names
                .map(|named| format!("{}/{}", named.namespace.unwrap_or_default(), named.name));
            Err(ClusterRefusal::SeveralDaemonSets(names.collect()))
        }
    }
}

/// Whether an object is ours, by its labels.
pub fn is_ours(metadata: &ObjectMeta) -> bool {
    metadata.labels.get(MANAGED_BY.0).is_some_and(|by| by == MANAGED_BY.1)
        && metadata.labels.contains_key(MODE_LABEL)
}

impl ClusterState {
    /// The Nodes that run Linux.
    pub fn linux_nodes(&self) -> impl Iterator<Item = &ClusterNode> {
        self.nodes.iter().filter(|node| node.is_linux())
    }

    /// The pods of a DaemonSet on a Node that have not ended.
    pub fn pods_on<'s>(
        &'s self,
        node: &'s str,
        of: &'s DaemonSet,
    ) -> impl Iterator<Item = &'s ClusterPod> {
        self.pods.iter().filter(move |pod| {
            let is_its = pod.metadata.controller().is_some_and(|o| o.uid == of.metadata.uid);
            is_its && pod.spec.node_name == node && pod.is_alive()
        })
    }
}
