//! The fields that are used of a cluster's objects.
//!
//! The fields and their defaults are those of k8s.io/api (core/v1, apps/v1). What is absent and what is
//! null mean the same. What is copied as a whole is kept as JSON.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::state::api_objects::nullable;
use crate::state::kubernetes::{ApiKind, ObjectRef};

/// What every object has.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectMeta {
    /// Its name.
    pub name: String,
    /// Its namespace; empty for a kind that has none.
    pub namespace: String,
    /// Tells it from a later object of the same name.
    pub uid: String,
    /// Its version, which nobody but the API server interprets.
    pub resource_version: String,
    /// Grows with each change of its spec.
    pub generation: i64,
    /// When it was made, in UTC.
    #[serde(deserialize_with = "nullable")]
    pub creation_timestamp: String,
    /// When it began to be deleted, in UTC.
    pub deletion_timestamp: Option<String>,
    /// Its labels.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    /// The objects that it belongs to.
    #[serde(deserialize_with = "nullable")]
    pub owner_references: Vec<OwnerReference>,
    /// Who wrote which of its fields.
    #[serde(deserialize_with = "nullable")]
    pub managed_fields: Vec<ManagedFields>,
}

impl ObjectMeta {
    /// The object that made it, and looks after it.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller == Some(true))
    }

    /// The object's reference.
    pub fn reference(&self, kind: ApiKind) -> ObjectRef {
        let namespace = Some(self.namespace.clone()).filter(|namespace| !namespace.is_empty());
        ObjectRef { kind, namespace, name: self.name.clone() }
    }
}

/// An object that another belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OwnerReference {
    /// Its kind: `DaemonSet`.
    pub kind: String,
    /// Its name, in the same namespace.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Whether it made the object, and looks after it.
    pub controller: Option<bool>,
}

/// Who wrote some fields of an object.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ManagedFields {
    /// The program: `kubeadm`.
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: String,
    /// Which part of the object, such as `status`; empty for the object itself.
    pub subresource: String,
    /// When, in UTC.
    #[serde(deserialize_with = "nullable")]
    pub time: String,
}

/// A condition of an object's status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Condition {
    r#type: String,
    status: String,
}

fn is_true(conditions: &[Condition], wanted: &str) -> bool {
    conditions.iter().any(|c| c.r#type == wanted && c.status == "True")
}

/// A Node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClusterNode {
    /// Its name, labels and annotations.
    pub metadata: ObjectMeta,
    #[serde(deserialize_with = "nullable")]
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct NodeStatus {
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
}

impl ClusterNode {
    /// Whether it runs Linux; a Node that does not say so yet counts as one.
    pub fn is_linux(&self) -> bool {
        self.metadata.labels.get("kubernetes.io/os").is_none_or(|os| os == "linux")
    }

    /// Whether its kubelet says that it is ready.
    pub fn is_ready(&self) -> bool {
        is_true(&self.status.conditions, "Ready")
    }
}

/// A Pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClusterPod {
    /// Its name, uid, labels, owner, and whether it is being deleted.
    pub metadata: ObjectMeta,
    /// What it should be.
    pub spec: PodSpec,
    /// What it is.
    #[serde(deserialize_with = "nullable")]
    pub status: PodStatus,
}

impl ClusterPod {
    /// Whether it has neither ended nor is about to.
    pub fn is_alive(&self) -> bool {
        let has_ended = matches!(self.status.phase, PodPhase::Succeeded | PodPhase::Failed);
        !has_ended && self.metadata.deletion_timestamp.is_none()
    }

    /// Whether it is ready, which for kube-proxy means that its process has started.
    pub fn is_ready(&self) -> bool {
        is_true(&self.status.conditions, "Ready")
    }

    /// The ids of its containers, as the container runtime has them.
    pub fn container_ids(&self) -> impl Iterator<Item = &str> {
        let all = self.status.container_statuses.iter();
        all.filter_map(|status| status.id.split_once("://")).map(|(_, id)| id)
    }

    /// How far it is, and what one of its containers waits for: `Pending: ErrImagePull`.
    pub fn progress(&self) -> String {
        let mut all = self.status.container_statuses.iter();
        let reason = all.find_map(|status| Some(&status.state.waiting.as_ref()?.reason));
        match reason.filter(|reason| !reason.is_empty()) {
            Some(reason) => format!("{:?}: {reason}", self.status.phase),
            None => format!("{:?}", self.status.phase),
        }
    }

    /// The ConfigMaps that it mounts.
    pub fn config_maps(&self) -> impl Iterator<Item = &str> {
        self.spec.volumes.iter().filter_map(|v| v.config_map.as_ref()).map(|c| c.name.as_str())
    }
}

/// The images of a Pod's containers, by the containers' names.
pub type PodImages = BTreeMap<String, String>;

/// The spec of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// The Node that it is on; empty before it is scheduled.
    #[serde(deserialize_with = "nullable")]
    pub node_name: String,
    /// The service account that it has.
    #[serde(deserialize_with = "nullable")]
    pub service_account_name: String,
    /// Its containers.
    #[serde(deserialize_with = "nullable")]
    pub containers: Vec<PodContainer>,
    /// Its volumes.
    #[serde(deserialize_with = "nullable")]
    pub volumes: Vec<PodVolume>,
}

impl PodSpec {
    /// The images of its containers.
    pub fn images(&self) -> PodImages {
        self.containers.iter().map(|c| (c.name.clone(), c.image.clone())).collect()
    }
}

/// A container of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodContainer {
    /// Its name.
    pub name: String,
    /// Its image.
    #[serde(deserialize_with = "nullable")]
    pub image: String,
    /// Its command.
    #[serde(deserialize_with = "nullable")]
    pub command: Vec<String>,
    /// The arguments of its command.
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
}

/// A volume of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodVolume {
    /// Its name.
    pub name: String,
    config_map: Option<VolumeConfigMap>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct VolumeConfigMap {
    name: String,
}

/// The status of a Pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// How far it is.
    #[serde(deserialize_with = "nullable")]
    pub phase: PodPhase,
    /// When the kubelet began with it, in UTC.
    #[serde(deserialize_with = "nullable")]
    pub start_time: String,
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<Condition>,
    #[serde(deserialize_with = "nullable")]
    container_statuses: Vec<ContainerStatus>,
}

/// What a container of a Pod is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    /// `containerd://9f8e…`.
    #[serde(rename = "containerID", deserialize_with = "nullable")]
    id: String,
    #[serde(deserialize_with = "nullable")]
    state: ContainerState,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<WaitingState>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct WaitingState {
    #[serde(deserialize_with = "nullable")]
    reason: String,
}

/// How far a Pod is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum PodPhase {
    /// It waits for a Node, or for its containers.
    Pending,
    /// It runs.
    Running,
    /// All containers have ended well.
    Succeeded,
    /// A container has ended otherwise: kube-proxy after SIGTERM too.
    Failed,
    /// Not known.
    #[default]
    #[serde(other)]
    Unknown,
}

/// A ConfigMap.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ConfigMapObject {
    /// Its name and labels.
    pub metadata: ObjectMeta,
    /// Whether it can never change.
    pub immutable: Option<bool>,
    /// Its texts.
    #[serde(deserialize_with = "nullable")]
    pub data: BTreeMap<String, String>,
}

/// A DaemonSet.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct DaemonSet {
    /// Its name, labels, annotations, generation, and who wrote it.
    pub metadata: ObjectMeta,
    /// What it should be.
    pub spec: DaemonSetSpec,
    /// How far it is.
    #[serde(deserialize_with = "nullable")]
    pub status: DaemonSetStatus,
}

/// The spec of a DaemonSet.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DaemonSetSpec {
    /// Which pods are its own.
    pub selector: Value,
    /// What its pods are made of: `metadata` and `spec`, whole.
    pub template: Value,
    /// How a change of the template reaches its pods: `type` and more, whole.
    pub update_strategy: Value,
    /// How many old templates are kept.
    pub revision_history_limit: Option<i64>,
    /// How long a pod must be ready to count as available, in seconds.
    pub min_ready_seconds: Option<i64>,
}

/// The status of a DaemonSet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DaemonSetStatus {
    /// The generation that its controller knows.
    pub observed_generation: i64,
    /// On how many Nodes its pods should be.
    pub desired_number_scheduled: i64,
    /// How many pods are of the present template.
    pub updated_number_scheduled: i64,
    /// How many pods are ready.
    pub number_ready: i64,
}

impl DaemonSet {
    /// The spec of its pods, parsed; the default for what is none.
    pub fn pod_spec(&self) -> PodSpec {
        let spec = self.spec.template.get("spec").cloned().unwrap_or_default();
        serde_json::from_value(spec).unwrap_or_default()
    }

    /// Whether a change of its template reaches no pod that is there.
    pub fn is_on_delete(&self) -> bool {
        self.strategy() == "OnDelete"
    }

    /// The name of its update strategy, by which a change of its template reaches its pods.
    pub fn strategy(&self) -> &str {
        self.spec.update_strategy.get("type").and_then(Value::as_str).unwrap_or("RollingUpdate")
    }
}

/// An object of any kind, as JSON, with what every object has.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct AnyObject {
    /// Its name and labels.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// All but the metadata.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}
