//! What admission made of an object: webhooks and policies of a cluster may change what is sent.

use serde::Serialize;
use serde_json::Value;

use crate::cluster::intent::{ClusterWrite, WriteAction};
use crate::state::kubernetes::pointer;

/// A value that is not as it was sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdmissionChange {
    /// Where, as a path of RFC 6901.
    pub path: String,
    /// What was sent; null for nothing.
    pub sent: Value,
    /// What the server made of it; null for nothing.
    pub returned: Value,
}

/// What every object gets from the server, whoever sends it.
const OF_SERVER: [&str; 9] = [
    "/metadata/uid",
    "/metadata/resourceVersion",
    "/metadata/creationTimestamp",
    "/metadata/generation",
    "/metadata/managedFields",
    "/metadata/name",
    "/metadata/annotations/deprecated.daemonset.template.generation",
    "/spec/template/metadata/creationTimestamp",
    "/status",
];

/// What the server made of an object that was sent whole.
pub fn changes_of_object(sent: &Value, returned: &Value) -> Vec<AdmissionChange> {
    let mut found = Vec::new();
    compare(sent, returned, String::new(), &mut found);
    found.retain(|change| {
        let is_of_server = OF_SERVER.contains(&change.path.as_str());
        !is_of_server || (!change.sent.is_null() && change.path != "/status")
    });
    found
}

/// What the server made of the parts that a write sends.
pub fn changes_of_write(write: &ClusterWrite, returned: &Value) -> Vec<AdmissionChange> {
    let (changes, expected) = match &write.action {
        WriteAction::Create(sent) => return changes_of_object(sent, returned),
        WriteAction::Patch { changes, expected, .. } => (changes, expected),
    };
    let mut found = Vec::new();
    let replaced = changes.iter().map(|part| (&part.path, &part.after));
    for (path, wanted) in replaced.chain(expected.iter().map(|(path, wanted)| (path, wanted))) {
        let at = pointer(path);
        let value = returned.pointer(&at).cloned().unwrap_or_default();
        let mut here = Vec::new();
        compare(wanted, &value, at, &mut here);
        here.retain(|change| !found.contains(change));
        found.extend(here);
    }
    found
}

/// What admission makes of our Pod that it does not make of the original's, too: what all pods get
/// (`kube-api-access-…`, a priority, tolerations) tells nothing.
pub fn changes_of_pod(ours: (&Value, &Value), original: (&Value, &Value)) -> Vec<AdmissionChange> {
    let usual = changes_of_object(original.0, original.1);
    let mut found = changes_of_object(ours.0, ours.1);
    found.retain(|change| {
        let is_same = |other: &AdmissionChange| {
            other.path == change.path && plain(&other.returned) == plain(&change.returned)
        };
        !usual.iter().any(is_same)
    });
    found
}

/// The value, with one name for all volumes of a service account's token.
fn plain(value: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("kube-api-access-") => "kube-api-access".into(),
        Value::Array(list) => list.iter().map(plain).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), plain(value))).collect(),
        other => other.clone(),
    }
}

fn compare(sent: &Value, returned: &Value, path: String, found: &mut Vec<AdmissionChange>) {
    match (sent, returned) {
        (Value::Object(a), Value::Object(b)) => {
            let added = b.keys().filter(|key| !a.contains_key(*key));
            for key in a.keys().chain(added) {
                let at = path.clone() + &pointer(&[key]);
                let none = Value::Null;
                compare(a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none), at, found);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            for index in 0..a.len().max(b.len()) {
                let none = Value::Null;
                let at = format!("{path}/{index}");
                compare(a.get(index).unwrap_or(&none), b.get(index).unwrap_or(&none), at, found);
            }
        }
        _ if sent == returned || (is_nothing(sent) && is_nothing(returned)) => {}
        _ => found.push(AdmissionChange { path, sent: sent.clone(), returned: returned.clone() }),
    }
}

/// Go writes an empty list or map either way.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_server_gives_every_object_tells_nothing() {
        let sent = json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {"list": [1]}});
        let mut returned = sent.clone();
        returned["metadata"]["uid"] = json!("7");
        returned["status"] = json!({"n": 1});
        assert_eq!(changes_of_object(&sent, &returned), []);
        returned["metadata"]["labels"]["team/x"] = json!("net");
        returned["spec"]["list"] = json!([1, {"name": "sidecar"}]);
        let found = changes_of_object(&sent, &returned);
        let paths: Vec<&str> = found.iter().map(|change| change.path.as_str()).collect();
        assert_eq!(paths, ["/metadata/labels/team~1x", "/spec/list/1"]);
    }

    #[test]
    fn what_all_pods_get_tells_nothing() {
        let pod = |name: &str| json!({"spec": {"containers": [name], "volumes": [{"name": "c"}]}});
        let admitted = |name: &str, token: &str| {
            json!({"spec": {"containers": [name], "priority": 7,
                "volumes": [{"name": "c"}, {"name": format!("kube-api-access-{token}")}]}})
        };
        let original = (&pod("a"), &admitted("a", "xyz"));
        assert_eq!(changes_of_pod((&pod("b"), &admitted("b", "abc")), original), []);
        let mut other = admitted("b", "abc");
        other["spec"]["hostNetwork"] = json!(false);
        let found = changes_of_pod((&pod("b"), &other), original);
        assert_eq!(found[0].path, "/spec/hostNetwork");
    }
}
