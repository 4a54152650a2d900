//! The objects of an arrangement: what they should be, and whether they are.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cluster::affinity::{Side, excludes, requires, with_ours, without_ours};
use crate::cluster::config::{ConfigLocation, container};
use crate::cluster::refusal::ClusterRefusal;
use crate::state::kube_proxy::{ConfigEdit, ConfigSource, Mode};
use crate::state::kubernetes::{
    ApiKind, ConfigMapObject, DaemonSet, MANAGED_BY, MODE_LABEL, ObjectRef, name_for_mode,
};

/// The annotation of our DaemonSet that tells which template it was made of.
pub(super) const MADE_OF: &str = "proxyshift.dev/made-of";

/// The group of all nodes' own credentials.
const NODES: &str = "system:nodes";

/// What an arrangement should be: all its objects, made of the original DaemonSet and its ConfigMap.
pub(super) struct Arrangement<'s> {
    pub(super) original: &'s DaemonSet,
    pub(super) config_map: &'s ConfigMapObject,
    pub(super) location: ConfigLocation,
    pub(super) mode: Mode,
}

impl Arrangement<'_> {
    pub(super) fn namespace(&self) -> &str {
        &self.original.metadata.namespace
    }

    /// An object in the original's namespace.
    pub(super) fn named(&self, kind: ApiKind, name: impl Into<String>) -> ObjectRef {
        ObjectRef::new(kind, self.namespace(), name)
    }

    /// The name of our DaemonSet.
    pub(super) fn name(&self) -> String {
        name_for_mode(&self.original.metadata.name, self.mode)
    }

    fn metadata(&self, object: &ObjectRef, labels: &BTreeMap<String, String>) -> Value {
        let mut labels = labels.clone();
        labels.insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
        labels.insert(MODE_LABEL.into(), self.mode.name().into());
        let mut metadata = json!({"name": object.name, "labels": labels});
        if let Some(namespace) = &object.namespace {
            metadata["namespace"] = json!(namespace);
        }
        metadata
    }

    fn object(&self, object: &ObjectRef, rest: Value) -> Value {
        let mut whole = json!({
            "apiVersion": object.kind.api_version(), "kind": object.kind.to_string(),
            "metadata": self.metadata(object, &BTreeMap::new()),
        });
        if let (Value::Object(whole), Value::Object(rest)) = (&mut whole, rest) {
            whole.extend(rest);
        }
        whole
    }

    /// The template of the original, with our requirement.
    pub(super) fn original_template(&self) -> Value {
        let mut template = self.original.spec.template.clone();
        template["spec"] = with_ours(&template["spec"], self.mode, Side::Original);
        template
    }

    /// The texts of our ConfigMap: the original's, in the other mode.
    ///
    /// # Errors
    /// [`ClusterRefusal::NoConfigFile`] for a configuration in a form that is not edited.
    pub(super) fn config_data(&self) -> Result<BTreeMap<String, String>, ClusterRefusal> {
        let mut data = self.config_map.data.clone();
        let text = data.get(&self.location.key).cloned().unwrap_or_default();
        let edit = ConfigEdit { mode: self.mode, exclude: Vec::new() };
        let source = ConfigSource::File(self.location.key.clone().into());
        let edited = source.edit(&text, &edit);
        let edited = edited.map_err(|e| ClusterRefusal::NoConfigFile { why: e.to_string() })?;
        data.insert(self.location.key.clone(), edited);
        Ok(data)
    }

    /// The name of our ConfigMap, which tells its content: another content is another ConfigMap.
    pub(super) fn config_name(&self, data: &BTreeMap<String, String>) -> String {
        let text = serde_json::to_vec(data).unwrap_or_default();
        format!("{}-{}", name_for_mode(&self.config_map.metadata.name, self.mode), digest(&text))
    }

    pub(super) fn config_object(&self, data: &BTreeMap<String, String>) -> (ObjectRef, Value) {
        let named = self.named(ApiKind::ConfigMap, self.config_name(data));
        let object = self.object(&named, json!({"immutable": true, "data": data}));
        (named, object)
    }

    /// Our DaemonSet.
    pub(super) fn daemon_set(&self, config_name: &str) -> (ObjectRef, Value) {
        let named = self.named(ApiKind::DaemonSet, self.name());
        let original = &self.original.spec;
        let mut template = original.template.clone();
        template["spec"] = with_ours(&without_ours(&template["spec"]), self.mode, Side::Ours);
        template["spec"]["volumes"][self.location.volume]["configMap"]["name"] = json!(config_name);
        let mut selector = original.selector.clone();
        if let Some(Value::Object(labels)) = selector.get_mut("matchLabels") {
            for (key, value) in labels {
                let own = format!("{}-{}", value.as_str().unwrap_or_default(), self.mode);
                template["metadata"]["labels"][key.as_str()] = json!(own);
                *value = json!(own);
            }
        }
        let mut spec = json!({
            "selector": selector, "template": template, "updateStrategy": {"type": "OnDelete"},
        });
        if let Some(limit) = original.revision_history_limit {
            spec["revisionHistoryLimit"] = json!(limit);
        }
        if let Some(seconds) = original.min_ready_seconds.filter(|seconds| *seconds > 0) {
            spec["minReadySeconds"] = json!(seconds);
        }
        // The server has keys in another order than we add them.
        let mut sorted = spec.clone();
        sorted.sort_all_objects();
        let made_of = digest(sorted.to_string().as_bytes());
        let mut metadata = self.metadata(&named, &self.original.metadata.labels);
        metadata["annotations"] = json!({MADE_OF: made_of});
        let object = json!({
            "apiVersion": named.kind.api_version(), "kind": "DaemonSet",
            "metadata": metadata, "spec": spec,
        });
        (named, object)
    }

    /// The rights of nodes: what they need to verify the arrangement, and the endpoints that the bridge
    /// follows. They may write none of it.
    pub(super) fn rights(&self, config_name: &str) -> [(ObjectRef, Value); 4] {
        let own = format!("proxyshift:{}", self.original.metadata.name);
        let follow = format!("{own}:endpoints");
        let subjects = json!([
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": NODES}]);
        let role = self.named(ApiKind::Role, &own);
        let binding = self.named(ApiKind::RoleBinding, &own);
        let cluster_role = ObjectRef::of_cluster(ApiKind::ClusterRole, &follow);
        let cluster_binding = ObjectRef::of_cluster(ApiKind::ClusterRoleBinding, &follow);
        let role_ref = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
        let rules = json!([
            {"apiGroups": ["apps"], "resources": ["daemonsets"], "verbs": ["get"],
             "resourceNames": [self.original.metadata.name, self.name()]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"],
             "resourceNames": [self.config_map.metadata.name, config_name]},
        ]);
        let follows = json!([
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
             "verbs": ["list", "watch"]}]);
        let bound = |role: Value| json!({"roleRef": role, "subjects": subjects});
        [
            (role.clone(), self.object(&role, json!({"rules": rules}))),
            (binding.clone(), self.object(&binding, bound(role_ref("Role", &own)))),
            (cluster_role.clone(), self.object(&cluster_role, json!({"rules": follows}))),
            (
                cluster_binding.clone(),
                self.object(&cluster_binding, bound(role_ref("ClusterRole", &follow))),
            ),
        ]
    }

    /// The name of the ConfigMap that keeps what the original was.
    pub(super) fn record_name(original: &str) -> String {
        format!("proxyshift-{original}")
    }

    /// The ConfigMap that keeps the original's affinity and strategy.
    pub(super) fn record(&self) -> (ObjectRef, Value) {
        let named = self.named(ApiKind::ConfigMap, Self::record_name(&self.original.metadata.name));
        let spec = without_ours(&self.original.spec.template["spec"]);
        let original = json!({
            "daemonSet": self.original.metadata.name, "uid": self.original.metadata.uid,
            "affinity": spec.get("affinity"), "updateStrategy": self.original.spec.update_strategy,
        });
        let data = json!({"original.json": original.to_string()});
        let object = self.object(&named, json!({"data": data}));
        (named, object)
    }

    /// A Pod as our DaemonSet would make it, or the original.
    pub(super) fn pod(&self, daemon_set: &Value) -> (ObjectRef, Value) {
        let template = &daemon_set["spec"]["template"];
        let mut metadata = template["metadata"].clone();
        metadata["generateName"] = json!(format!("{}-", self.name()));
        metadata["namespace"] = json!(self.namespace());
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"],
        });
        (self.named(ApiKind::Pod, format!("{}-…", self.name())), pod)
    }
}

/// The first ten digits of a text's SHA-256.
fn digest(text: &[u8]) -> String {
    Sha256::digest(text).iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

/// What is not as it must be before any node moves, or while one has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ArrangementFlaw {
    /// The original would put a pod on Nodes that have moved.
    OriginalNotExcluded,
    /// The original replaces pods when its template changes.
    OriginalRolls,
    /// Ours would put a pod on Nodes that have not moved.
    OursNotRestricted,
    /// Ours replaces pods when its template changes.
    OursRolls,
    /// The two have different images.
    ImagesDiffer,
}

impl ArrangementFlaw {
    /// As it reads after "the arrangement does not hold:".
    pub fn sentence(self) -> &'static str {
        match self {
            ArrangementFlaw::OriginalNotExcluded => {
                "the original DaemonSet does not pass over nodes that have moved"
            }
            ArrangementFlaw::OriginalRolls => {
                "the original DaemonSet replaces its pods when its template changes"
            }
            ArrangementFlaw::OursNotRestricted => {
                "the DaemonSet of the other mode does not keep to nodes that have moved"
            }
            ArrangementFlaw::OursRolls => {
                "the DaemonSet of the other mode replaces its pods when its template changes"
            }
            ArrangementFlaw::ImagesDiffer => "the two DaemonSets have different images",
        }
    }
}

/// What is not as it must be, so that one Node at a time goes from `original` to `ours` by its label, and
/// no other pod ends; empty if all is.
pub fn verify(original: &DaemonSet, ours: &DaemonSet, mode: Mode) -> Vec<ArrangementFlaw> {
    let spec = |daemon_set: &DaemonSet| daemon_set.spec.template["spec"].clone();
    let image = |daemon_set: &DaemonSet| container(daemon_set).map(|container| container.image);
    let flaws = [
        (!excludes(&spec(original), mode), ArrangementFlaw::OriginalNotExcluded),
        (!original.is_on_delete(), ArrangementFlaw::OriginalRolls),
        (!requires(&spec(ours), mode), ArrangementFlaw::OursNotRestricted),
        (!ours.is_on_delete(), ArrangementFlaw::OursRolls),
        (image(original) != image(ours), ArrangementFlaw::ImagesDiffer),
    ];
    flaws.into_iter().filter_map(|(is_wrong, flaw)| is_wrong.then_some(flaw)).collect()
}
