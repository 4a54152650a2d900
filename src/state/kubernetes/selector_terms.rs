//! The terms by which the spec of a pod selects Nodes, and what they require of the label of modes
//! (<https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#node-affinity>).

use serde_json::Value;

use super::names::MODE_LABEL;

/// Where the terms are in the spec of a pod.
pub const SELECTOR_TERMS: [&str; 4] = [
    "affinity",
    "nodeAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "nodeSelectorTerms",
];

/// The terms of which a Node must fulfil one.
pub fn selector_terms(spec: &Value) -> impl Iterator<Item = &Value> {
    let terms = SELECTOR_TERMS.iter().try_fold(spec, |at, key| at.get(key));
    terms.and_then(Value::as_array).into_iter().flatten()
}

/// What a term requires of the label of modes.
pub fn mode_requirements(term: &Value) -> impl Iterator<Item = &Value> {
    let all = term.get("matchExpressions").and_then(Value::as_array);
    all.into_iter().flatten().filter(|requirement| is_of_mode(requirement))
}

/// Whether a requirement is about the label of modes.
pub fn is_of_mode(requirement: &Value) -> bool {
    requirement.get("key").and_then(Value::as_str) == Some(MODE_LABEL)
}
