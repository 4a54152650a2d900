//! What is to be written so that a cluster's nodes can move one by one; or why it must not be.

use serde_json::{Value, json};

use crate::cluster::arrangement::{Arrangement, ArrangementFlaw as Flaw, MADE_OF, verify};
use crate::cluster::config::{ConfigLocation, container};
use crate::cluster::refusal::ClusterRefusal;
use crate::cluster::state::{ClusterState, is_ours};
use crate::state::kube_proxy::Mode;
use crate::state::kubernetes::{
    ApiKind, ClusterNode, ClusterPod, DaemonSet, JsonPatch, MODE_LABEL, ObjectRef, manager,
    name_for_mode,
};

/// One write, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterWrite {
    /// What is written.
    pub object: ObjectRef,
    /// What it is for, as it reads after a colon.
    pub reason: &'static str,
    /// How.
    pub action: WriteAction,
}

/// How an object is written.
#[derive(Debug, Clone, PartialEq)]
pub enum WriteAction {
    /// It is made.
    Create(Value),
    /// Parts of it are replaced, if nobody has changed these meanwhile.
    Patch {
        /// The patch, with its tests.
        patch: JsonPatch,
        /// What is replaced.
        changes: Vec<PartChange>,
        /// What the object should have then, where more than what is replaced matters.
        expected: Vec<(Vec<&'static str>, Value)>,
    },
}

/// A part of an object that is replaced.
#[derive(Debug, Clone, PartialEq)]
pub struct PartChange {
    /// Where, in parts: `spec`, `updateStrategy`.
    pub path: Vec<&'static str>,
    /// What is there; null for nothing.
    pub before: Value,
    /// What will be there.
    pub after: Value,
}

/// What is to be written, in the order in which it is safe to end after any of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Intent {
    /// The original DaemonSet.
    pub original: ObjectRef,
    /// Its mode.
    pub from: Mode,
    /// The mode that nodes can move to.
    pub to: Mode,
    /// The writes; none if all is there.
    pub writes: Vec<ClusterWrite>,
    /// All objects of ours, as they should be, whether they are there or not.
    pub objects: Vec<(ObjectRef, Value)>,
    /// A Pod as the original makes it, and one as ours does.
    pub pods: [(ObjectRef, Value); 2],
}

/// What to write so that nodes of the cluster can move to the mode `to` one by one. What manages the
/// original counts only if it is `written` to.
///
/// # Errors
/// All reasons not to.
pub fn decide(
    state: &ClusterState,
    to: Mode,
    written: bool,
) -> Result<Intent, Vec<ClusterRefusal>> {
    let original = &state.original;
    let mut refusals = Vec::new();
    if let Some(by) = manager(&original.metadata).filter(|_| written) {
        refusals.push(ClusterRefusal::Managed { by });
    }
    refusals.extend(versions(state));
    refusals.extend(others(state, to));
    let arrangement = arrangement(state, to);
    if let Err(refusal) = &arrangement {
        refusals.push(refusal.clone());
    }
    let Ok((arrangement, from)) = arrangement else { return Err(refusals) };
    let data = match arrangement.config_data() {
        Ok(data) => data,
        Err(refusal) => return Err([refusals, vec![refusal]].concat()),
    };
    let (config, config_object) = arrangement.config_object(&data);
    let (named, daemon_set) = arrangement.daemon_set(&config.name);
    let (record, record_object) = arrangement.record();
    let rights = arrangement.rights(&config.name);
    let pods = [
        arrangement.pod(&json!({"spec": {"template": arrangement.original_template()}})),
        arrangement.pod(&daemon_set),
    ];
    let mut writes = Vec::new();
    writes.extend(once(state, &record, &record_object, "what the original was, for undo"));
    writes.extend(original_write(&arrangement));
    writes.extend(once(state, &config, &config_object, "the configuration of the other mode"));
    match state.ours.iter().find(|ours| ours.metadata.name == named.name) {
        None => writes.extend(once(
            state,
            &named,
            &daemon_set,
            "kube-proxy in the other mode, on nodes with the label",
        )),
        Some(ours) => writes.extend(our_write(original, ours, &named, &daemon_set, to)),
    }
    for (object, wanted) in &rights {
        writes.extend(right_write(state, object, wanted));
    }
    for write in &writes {
        if matches!(write.action, WriteAction::Create(_)) && is_in_use(state, &write.object) {
            refusals.push(ClusterRefusal::NameInUse(write.object.to_string()));
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let mut objects = vec![(record, record_object), (config, config_object), (named, daemon_set)];
    objects.extend(rights);
    let original = original.metadata.reference(ApiKind::DaemonSet);
    Ok(Intent { original, from, to, writes, objects, pods })
}

/// The arrangement for the mode, and the original's mode.
fn arrangement(state: &ClusterState, to: Mode) -> Result<(Arrangement<'_>, Mode), ClusterRefusal> {
    let original = &state.original;
    let location = ConfigLocation::of(original)?;
    let none = || ClusterRefusal::NoConfigFile {
        why: format!("there is no ConfigMap {}", location.config_map),
    };
    let config_map = state.config_maps.get(&location.config_map).ok_or_else(none)?;
    let from = location.config(config_map)?.mode();
    if from == to {
        return Err(ClusterRefusal::SameMode(to));
    }
    let selector = &original.spec.selector;
    let labels = selector.get("matchLabels").and_then(Value::as_object);
    let others = selector.get("matchExpressions").and_then(Value::as_array);
    if labels.is_none_or(serde_json::Map::is_empty) || others.is_some_and(|list| !list.is_empty()) {
        return Err(ClusterRefusal::UnusualSelector);
    }
    Ok((Arrangement { original, config_map, location, mode: to }, from))
}

/// What stands in the way of versions: an upgrade under way, or half done.
fn versions(state: &ClusterState) -> Vec<ClusterRefusal> {
    let mut refusals = Vec::new();
    let original = &state.original;
    let status = &original.status;
    let rolls = status.observed_generation < original.metadata.generation
        || status.updated_number_scheduled < status.desired_number_scheduled;
    if !original.is_on_delete() && rolls {
        refusals.push(ClusterRefusal::RollingUpdate);
    }
    let Some(container) = container(original) else { return refusals };
    let image_of = |pod: &ClusterPod| {
        let its = pod.spec.containers.iter().find(|c| c.name == container.name);
        its.map(|c| c.image.clone()).unwrap_or_default()
    };
    // What ours have is told by `status`: they are made anew of the original.
    let uid = &original.metadata.uid;
    let is_its = |pod: &&ClusterPod| {
        pod.is_alive() && pod.metadata.controller().is_some_and(|owner| owner.uid == *uid)
    };
    let differing = state.pods.iter().filter(is_its).find(|pod| image_of(pod) != container.image);
    if let Some(pod) = differing.filter(|_| refusals.is_empty()) {
        let template = container.image.clone();
        let pod = (image_of(pod), pod.spec.node_name.clone());
        refusals.push(ClusterRefusal::VersionsDiffer { template, pod });
    }
    // A tag that is no version, or a digest, tells nothing.
    let tag = container.image.rsplit_once(':').map(|(_, tag)| tag.to_owned());
    let tag = tag.filter(|tag| tag.starts_with('v') && tag.matches('.').count() == 2);
    if let (Some(cluster), Some(kube_proxy)) = (&state.kubeadm_version, tag)
        && *cluster != kube_proxy
    {
        let cluster = cluster.clone();
        refusals.push(ClusterRefusal::HalfUpgraded { cluster, kube_proxy });
    }
    refusals
}

/// What others have done of the same: labels, and an arrangement for another mode.
fn others(state: &ClusterState, to: Mode) -> Vec<ClusterRefusal> {
    let mut refusals = Vec::new();
    let name = name_for_mode(&state.original.metadata.name, to);
    let ours = state.ours.iter().find(|ours| ours.metadata.name == name);
    let other = state.ours.iter().filter_map(|ours| {
        let mode: Mode = ours.metadata.labels.get(MODE_LABEL)?.parse().ok()?;
        (mode != to && ours.metadata.name == name_for_mode(&state.original.metadata.name, mode))
            .then_some(mode)
    });
    refusals.extend(other.map(ClusterRefusal::OtherMode));
    let has_moved = |node: &&ClusterNode| {
        let is_of_mode = node.metadata.labels.get(MODE_LABEL).is_some_and(|to_| to_ == to.name());
        let pods = |ours| state.pods_on(&node.metadata.name, ours).next().is_some();
        is_of_mode && ours.is_some_and(pods)
    };
    let labelled = state.linux_nodes().filter(|n| n.metadata.labels.contains_key(MODE_LABEL));
    let stuck: Vec<String> =
        labelled.filter(|node| !has_moved(node)).map(|node| node.metadata.name.clone()).collect();
    if !stuck.is_empty() {
        refusals.push(ClusterRefusal::LabelledNodes(stuck));
    }
    refusals
}

/// Whether somebody else's object has the name.
fn is_in_use(state: &ClusterState, object: &ObjectRef) -> bool {
    match object.kind {
        ApiKind::ConfigMap => state.config_maps.contains_key(&object.name),
        _ => state.others.contains_key(object),
    }
}

/// Makes an object, if there is none of ours. What it is never changes.
fn once(
    state: &ClusterState,
    object: &ObjectRef,
    wanted: &Value,
    reason: &'static str,
) -> Option<ClusterWrite> {
    let is_there = match object.kind {
        ApiKind::ConfigMap => {
            state.config_maps.get(&object.name).is_some_and(|found| is_ours(&found.metadata))
        }
        _ => false,
    };
    let action = WriteAction::Create(wanted.clone());
    (!is_there).then(|| ClusterWrite { object: object.clone(), reason, action })
}

/// Gives the original our requirement, and keeps it from replacing its pods because of that. Both at
/// once: there is no moment in which the template has changed and the strategy has not.
fn original_write(arrangement: &Arrangement<'_>) -> Option<ClusterWrite> {
    let original = arrangement.original;
    let template = arrangement.original_template();
    let before = &original.spec.template["spec"];
    let after = &template["spec"];
    let mut changes = Vec::new();
    if !original.is_on_delete() {
        changes.push(PartChange {
            path: vec!["spec", "updateStrategy"],
            before: original.spec.update_strategy.clone(),
            after: json!({"type": "OnDelete"}),
        });
    }
    if before["affinity"] != after["affinity"] {
        changes.push(PartChange {
            path: vec!["spec", "template", "spec", "affinity"],
            before: before["affinity"].clone(),
            after: after["affinity"].clone(),
        });
    }
    if changes.is_empty() {
        return None;
    }
    // That there is none yet cannot be tested, so the whole spec is.
    let patch = JsonPatch::of_uid(&original.metadata.uid)
        .test(&["spec", "updateStrategy"], original.spec.update_strategy.clone())
        .test(&["spec", "template", "spec"], before.clone());
    let patch = changes.iter().fold(patch, |patch, part| patch.add(&part.path, part.after.clone()));
    let expected = vec![(vec!["spec", "template"], template)];
    Some(ClusterWrite {
        object: original.metadata.reference(ApiKind::DaemonSet),
        reason: "passes over nodes with the label; no pod ends because of that",
        action: WriteAction::Patch { patch, changes, expected },
    })
}

/// Makes ours anew of the original, if it was made of something else or does not hold. Its pods stay as
/// they are until somebody deletes them.
fn our_write(
    original: &DaemonSet,
    ours: &DaemonSet,
    named: &ObjectRef,
    wanted: &Value,
    to: Mode,
) -> Option<ClusterWrite> {
    let made_of = ours.metadata.annotations.get(MADE_OF).map(String::as_str);
    let is_of_it = made_of == wanted["metadata"]["annotations"][MADE_OF].as_str();
    let of_original = |flaw: &Flaw| matches!(flaw, Flaw::OriginalNotExcluded | Flaw::OriginalRolls);
    if is_of_it && verify(original, ours, to).iter().all(of_original) {
        return None;
    }
    let changes = vec![
        PartChange {
            path: vec!["spec", "updateStrategy"],
            before: ours.spec.update_strategy.clone(),
            after: wanted["spec"]["updateStrategy"].clone(),
        },
        PartChange {
            path: vec!["spec", "template"],
            before: ours.spec.template.clone(),
            after: wanted["spec"]["template"].clone(),
        },
        PartChange {
            path: vec!["metadata", "annotations", MADE_OF],
            before: made_of.map_or(Value::Null, Value::from),
            after: wanted["metadata"]["annotations"][MADE_OF].clone(),
        },
    ];
    let patch = JsonPatch::of_uid(&ours.metadata.uid)
        .test(&["spec", "template"], ours.spec.template.clone());
    let patch = if ours.metadata.annotations.is_empty() {
        patch.add(&["metadata", "annotations"], json!({}))
    } else {
        patch
    };
    let changes: Vec<PartChange> =
        changes.into_iter().filter(|part| part.before != part.after).collect();
    let patch = changes.iter().fold(patch, |patch, part| patch.add(&part.path, part.after.clone()));
    Some(ClusterWrite {
        object: named.clone(),
        reason: "made anew of the original, which has changed",
        action: WriteAction::Patch { patch, changes, expected: Vec::new() },
    })
}

/// Makes or corrects a right of nodes.
fn right_write(state: &ClusterState, object: &ObjectRef, wanted: &Value) -> Option<ClusterWrite> {
    let reason = "nodes may read what they verify, and write none of it";
    let part = match object.kind {
        ApiKind::Role | ApiKind::ClusterRole => "rules",
        _ => "subjects",
    };
    let found = state.others.get(object).filter(|found| {
        let same_role = found.rest.get("roleRef") == wanted.get("roleRef");
        is_ours(&found.metadata) && same_role
    });
    let Some(found) = found else {
        let action = WriteAction::Create(wanted.clone());
        return Some(ClusterWrite { object: object.clone(), reason, action });
    };
    let before = found.rest.get(part).cloned().unwrap_or_default();
    if before == wanted[part] {
        return None;
    }
    let after = wanted[part].clone();
    let patch = JsonPatch::of_uid(&found.metadata.uid).add(&[part], after.clone());
    let changes = vec![PartChange { path: vec![part], before, after }];
    let action = WriteAction::Patch { patch, changes, expected: Vec::new() };
    Some(ClusterWrite { object: object.clone(), reason, action })
}

/// The objects whose names an arrangement would take besides DaemonSets and ConfigMaps: to be read
/// before [`decide`].
pub fn names_taken(original: &DaemonSet, to: Mode) -> Vec<ObjectRef> {
    let metadata = &original.metadata;
    let own = format!("proxyshift:{}", metadata.name);
    let follow = format!("{own}:endpoints");
    vec![
        ObjectRef::new(ApiKind::DaemonSet, &metadata.namespace, name_for_mode(&metadata.name, to)),
        ObjectRef::new(ApiKind::Role, &metadata.namespace, &own),
        ObjectRef::new(ApiKind::RoleBinding, &metadata.namespace, &own),
        ObjectRef::of_cluster(ApiKind::ClusterRole, &follow),
        ObjectRef::of_cluster(ApiKind::ClusterRoleBinding, &follow),
    ]
}

/// The ConfigMaps that an arrangement reads, or would take the names of: to be read before [`decide`].
pub fn config_maps_read(original: &DaemonSet) -> Vec<String> {
    let record = Arrangement::record_name(&original.metadata.name);
    let used = ConfigLocation::of(original).ok().map(|location| location.config_map);
    used.into_iter().chain([record]).collect()
}
