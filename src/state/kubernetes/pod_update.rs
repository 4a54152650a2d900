//! Another version of kube-proxy that waits in a DaemonSet.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::PodImages;
use crate::state::kube_proxy::controller::ConfigMapKey;

/// Another image in the template of a DaemonSet, which by its update strategy OnDelete reaches the pod of
/// this Node once that is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodUpdate {
    /// The path of the kubelet's kubeconfig, by whose credentials the node acts.
    pub kubeconfig: PathBuf,
    /// The name of the Node.
    pub node: String,
    /// The namespace of the DaemonSet.
    pub namespace: String,
    /// The name of the DaemonSet.
    pub daemon_set: String,
    /// The uid of the DaemonSet.
    pub daemon_set_uid: String,
    /// The ConfigMap with kube-proxy's configuration, in the same mode before and after.
    pub config_map: ConfigMapKey,
    /// The name of the pod.
    pub pod: String,
    /// The uid of the pod.
    pub pod_uid: String,
    /// The images of the pod.
    pub from: PodImages,
    /// The images of the template.
    pub to: PodImages,
}

impl PodUpdate {
    /// What changes: `kube-proxy: registry.k8s.io/kube-proxy:v1.36.3 → registry.k8s.io/kube-proxy:v1.37.2`.
    pub fn changes(&self) -> String {
        let names = self.from.keys().chain(self.to.keys().filter(|k| !self.from.contains_key(*k)));
        let changed = names.filter(|name| self.from.get(*name) != self.to.get(*name));
        let image = |images: &PodImages, name| {
            images.get(name).cloned().unwrap_or_else(|| "none".to_owned())
        };
        let all: Vec<String> = changed
            .map(|name| format!("{name}: {} → {}", image(&self.from, name), image(&self.to, name)))
            .collect();
        all.join(", ")
    }
}

impl fmt::Display for PodUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DaemonSet {}/{}", self.namespace, self.daemon_set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_named_container_by_container() {
        let images = |all: &[(&str, &str)]| {
            all.iter().map(|(name, image)| ((*name).to_owned(), (*image).to_owned())).collect()
        };
        let update = PodUpdate {
            kubeconfig: "/etc/kubernetes/kubelet.conf".into(),
            node: "n".into(),
            namespace: "kube-system".into(),
            daemon_set: "kube-proxy".into(),
            daemon_set_uid: "1".into(),
            config_map: ConfigMapKey {
                namespace: "kube-system".into(),
                name: "kube-proxy".into(),
                key: "config.conf".into(),
            },
            pod: "kube-proxy-x".into(),
            pod_uid: "2".into(),
            from: images(&[("kube-proxy", "a:1"), ("same", "b:1"), ("old", "c:1")]),
            to: images(&[("kube-proxy", "a:2"), ("same", "b:1"), ("new", "d:1")]),
        };
        let expected = "kube-proxy: a:1 → a:2, old: c:1 → none, new: none → d:1";
        assert_eq!(update.changes(), expected);
        assert_eq!(update.to_string(), "DaemonSet kube-system/kube-proxy");
        let text = serde_json::to_string(&update).unwrap();
        assert_eq!(serde_json::from_str::<PodUpdate>(&text).unwrap(), update);
    }
}
