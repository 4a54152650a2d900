//! Detects kube-proxy as a pod of a DaemonSet, and reads how the cluster is arranged for its Node.
//!
//! A Node moves by its label [`MODE_LABEL`]: one DaemonSet passes over the Nodes that have it, and
//! another has its pods there alone (`proxyshift cluster prepare`). Whatever made them, what is read
//! here is what counts.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arrangement::{
    ArrangedPair, ArrangementReader, BEFORE, PREPARE, config_key, difference,
};
use super::kind::{Origin, ReadController};
use super::unsupported::RKE2;
use crate::api::read;
use crate::error::{Error, Kind, Result};
use crate::node::kubelet;
use crate::state::cgroup;
use crate::state::cluster_facts::address_in;
use crate::state::kube_proxy::controller::{ConfigMapKey, DaemonSetPair, ModeDaemonSet};
use crate::state::kube_proxy::{CommandLine, ConfigSource, Controller, Delivery};
use crate::state::kubernetes::{
    ApiKind, ClusterNode, ClusterPod, ConfigMapObject, MODE_LABEL, ObjectRef, OwnerReference,
    pod_of_process,
};
use crate::state::tools::Process;

/// The pod of a DaemonSet in which a kube-proxy runs, as the API server has it.
pub(super) struct RunningPod {
    pub(super) kubeconfig: PathBuf,
    /// The name of this Node.
    pub(super) node: String,
    pub(super) pod: ClusterPod,
    /// The DaemonSet.
    pub(super) owner: OwnerReference,
    /// All pods of this Node.
    pods: Vec<ClusterPod>,
}

impl RunningPod {
    /// The pod of the process that `origin` describes; none if it is in no pod that a DaemonSet has made.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub(super) fn of(origin: &Origin<'_>) -> Result<Option<RunningPod>> {
        let is_other = matches!(origin.delivery, Delivery::Rke2 | Delivery::Managed(_))
            || origin.root.join(RKE2).exists();
        if !cgroup::may_be_pod(&origin.cgroups) || is_other {
            return Ok(None);
        }
        let Some(kubeconfig) = kubelet::kubeconfig(origin.root)? else { return Ok(None) };
        let node = kubelet::node_name(&kubeconfig)?;
        let pods = pods_of_node(&kubeconfig, &node, BEFORE)?;
        let Some(pod) = pod_of_process(&pods, &origin.cgroups).cloned() else { return Ok(None) };
        let owner = pod.metadata.controller().filter(|owner| owner.kind == "DaemonSet").cloned();
        Ok(owner.map(|owner| RunningPod { kubeconfig, node, pod, owner, pods }))
    }

    /// Reads how the cluster is arranged around the pod. `config` is the path of kube-proxy's configuration
    /// in the container.
    pub(super) fn reader(&self, config: &str) -> ArrangementReader<'_> {
        let (kubeconfig, key) = (&self.kubeconfig, config_key(config));
        ArrangementReader { kubeconfig, namespace: &self.pod.metadata.namespace, key }
    }
}

pub(super) fn detect(origin: &Origin<'_>) -> Result<Option<Controller>> {
    let Some(config) = &origin.config else { return Ok(None) };
    let Some(running) = RunningPod::of(origin)? else { return Ok(None) };
    let (reader, owner) = (running.reader(config), &running.owner);
    let node = reader.node(&running.node)?;
    let label = node.metadata.labels.get(MODE_LABEL).cloned();
    // The other's name is this one's with the mode.
    let name = match &label {
        None => owner.name.as_str(),
        Some(mode) => owner.name.strip_suffix(&format!("-{mode}")).ok_or_else(|| {
            let cause = format!("runs here, where the Node has the label {MODE_LABEL}={mode}");
            contested(&reader.reference(&owner.name), cause)
        })?,
    };
    let ArrangedPair { unlabelled, labelled, .. } = reader.arrangement(name)?;
    let is_moved = label.is_some();
    let (current, other) = if is_moved { (labelled, unlabelled) } else { (unlabelled, labelled) };
    if current.uid != owner.uid || current.label != label {
        let cause = format!(
            "has no pod here, where the Node has the label {MODE_LABEL}={}",
            label.as_deref().unwrap_or("(none)")
        );
        return Err(contested(&reader.reference(&current.name), cause));
    }
    let pair = DaemonSetPair {
        node: node.metadata.name,
        node_uid: node.metadata.uid,
        namespace: running.pod.metadata.namespace.clone(),
        kubeconfig: running.kubeconfig.clone(),
        current,
        other,
    };
    let own: Vec<&str> = pair.own(&running.pods).map(|pod| pod.metadata.name.as_str()).collect();
    if own.len() != 1 {
        let cause = format!("kube-proxy has {} pods on this Node: {}", own.len(), own.join(", "));
        return Err(contested(&reader.reference(name), cause));
    }
    Ok(Some(Controller::DaemonSet(Box::new(pair))))
}

/// The pods of this Node, in all namespaces.
///
/// # Errors
/// [`Kind::Blocked`] when they cannot be read `within` that time.
pub fn pods_of_node(kubeconfig: &Path, node: &str, within: Duration) -> Result<Vec<ClusterPod>> {
    let selector = format!("spec.nodeName={node}");
    let selectors = [("fieldSelector", selector.as_str())];
    kubelet::request(kubeconfig, within, |client| {
        read::list_of_kind(client, ApiKind::Pod, None, &selectors)
    })
    .map_err(|failure| kubelet::error(&format!("the pods of Node {node}"), &failure))
}

/// The error that somebody has changed what was arranged.
pub fn contested(named: &ObjectRef, cause: String) -> Error {
    Error::new(Kind::Contested, named.to_string(), cause)
        .hint("`proxyshift cluster status` says what is not as it was arranged")
}

impl DaemonSetPair {
    /// The pods of both that have neither ended nor are about to.
    pub fn own<'a>(&'a self, pods: &'a [ClusterPod]) -> impl Iterator<Item = &'a ClusterPod> {
        let sets = [&self.current, &self.other];
        let is_own = move |pod: &&ClusterPod| {
            let owner = pod.metadata.controller();
            owner.is_some_and(|owner| sets.iter().any(|set| set.uid == owner.uid))
        };
        pods.iter().filter(|pod| pod.is_alive()).filter(is_own)
    }

    /// The Node as it is now.
    ///
    /// # Errors
    /// [`Kind::Contested`] for a Node that was registered anew; [`Kind::Blocked`] when it cannot be
    /// read `within` that time.
    pub fn read_node(&self, within: Duration) -> Result<ClusterNode> {
        let named = ObjectRef::of_cluster(ApiKind::Node, &self.node);
        let node: ClusterNode =
            kubelet::request(&self.kubeconfig, within, |client| read::read(client, &named))
                .map_err(|failure| kubelet::error(&named.to_string(), &failure))?;
        if node.metadata.uid == self.node_uid {
            return Ok(node);
        }
        Err(contested(&named, "was registered anew meanwhile".into()))
    }

    /// The text of the configuration of one of both.
    fn read_text(&self, set: &ModeDaemonSet) -> Result<Option<String>> {
        let ConfigMapKey { namespace, name, key } = &set.config_map;
        let named = ObjectRef::new(ApiKind::ConfigMap, namespace, name);
        let map: Option<ConfigMapObject> = kubelet::request(&self.kubeconfig, BEFORE, |client| {
            read::read_if_there(client, &named)
        })
        .map_err(|failure| kubelet::error(&named.to_string(), &failure).hint(PREPARE))?;
        Ok(map.and_then(|mut map| map.data.remove(key)))
    }

    /// Succeeds if the cluster is arranged as it was found, so that the label moves kube-proxy from the
    /// configuration `from` to one that means `to`, and back.
    ///
    /// # Errors
    /// [`Kind::Blocked`] or [`Kind::Contested`], naming what is not.
    pub fn verify(&self, from: &str, to: &str) -> Result<()> {
        let key = self.current.config_map.key.clone();
        let reader =
            ArrangementReader { kubeconfig: &self.kubeconfig, namespace: &self.namespace, key };
        let is_moved = self.current.label.is_some();
        let [first, second] =
            if is_moved { [&self.other, &self.current] } else { [&self.current, &self.other] };
        let ArrangedPair { unlabelled, labelled, texts } = reader.arrangement(&first.name)?;
        for (now, before) in [(&unlabelled, first), (&labelled, second)] {
            if now != before {
                let cause = "has been changed since this run was planned".to_owned();
                return Err(contested(&reader.reference(&before.name), cause));
            }
        }
        let [mut old, mut new] = texts;
        if is_moved {
            std::mem::swap(&mut old, &mut new);
        }
        for (set, text, wanted) in [(&self.current, old, from), (&self.other, new, to)] {
            if let Some(key) = difference(&text, wanted, &[])? {
                let cause = format!("its `{key}` is not what the plan says");
                return Err(
                    Error::new(Kind::Blocked, set.config_map.to_string(), cause).hint(PREPARE)
                );
            }
        }
        Ok(())
    }
}

impl ReadController for DaemonSetPair {
    /// Any pod's kube-proxy: of which DaemonSet a pod is, only the API server knows.
    fn owns(&self, text: &str) -> bool {
        cgroup::may_be_pod(&cgroup::paths(text))
    }

    fn config_source(&self, _: &Process, _: CommandLine) -> Result<ConfigSource> {
        Ok(ConfigSource::ConfigMap(Box::new(self.current.config_map.clone())))
    }

    fn api_server(&self) -> Result<Option<IpAddr>> {
        let server = kubelet::access(&self.kubeconfig)?.server;
        Ok(address_in(&server))
    }

    /// The configuration of the DaemonSet that the Node's label selects.
    fn read_config(&self, _: &ConfigSource) -> Result<Option<String>> {
        let node = self.read_node(BEFORE)?;
        let label = node.metadata.labels.get(MODE_LABEL).map(String::as_str);
        match self.of_label(label) {
            Some(set) => self.read_text(set),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::state::kube_proxy::Mode;

    #[test]
    fn a_pod_is_own_by_its_owner_s_uid_alone() {
        let set = |name: &str, uid: &str| ModeDaemonSet {
            name: name.into(),
            uid: uid.into(),
            label: None,
            config_map: ConfigMapKey {
                namespace: "kube-system".into(),
                name: name.into(),
                key: "config.conf".into(),
            },
            mode: Mode::Iptables,
        };
        let pair = DaemonSetPair {
            kubeconfig: "/k".into(),
            node: "n".into(),
            node_uid: "0".into(),
            namespace: "kube-system".into(),
            current: set("kube-proxy", "1"),
            other: set("kube-proxy-nftables", "2"),
        };
        let pod = |name: &str, owner: serde_json::Value, phase: &str| -> ClusterPod {
            let labels = json!({"k8s-app": "kube-proxy"});
            let metadata = json!({
                "name": name, "namespace": "kube-system", "labels": labels, "ownerReferences": [owner],
            });
            let pod = json!({"metadata": metadata, "status": {"phase": phase}});
            serde_json::from_value(pod).unwrap()
        };
        let owner = |uid: &str, controller: bool| json!({"kind": "DaemonSet", "name": "kube-proxy", "uid": uid, "controller": controller});
        let mut all = vec![
            pod("kube-proxy-1", owner("1", true), "Running"),
            pod("kube-proxy-2", owner("2", true), "Pending"),
            pod("kube-proxy-3", owner("3", true), "Running"),
            pod("kube-proxy-4", owner("1", false), "Running"),
            pod("kube-proxy-5", owner("1", true), "Failed"),
        ];
        all.push(pod("kube-proxy-6", json!({}), "Running"));
        let own: Vec<&str> = pair.own(&all).map(|pod| pod.metadata.name.as_str()).collect();
        assert_eq!(own, ["kube-proxy-1", "kube-proxy-2"]);
    }
}
