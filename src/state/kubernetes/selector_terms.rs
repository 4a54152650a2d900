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

/// All terms of the spec of a pod, those that select nothing too.
pub fn selector_terms(spec: &Value) -> impl Iterator<Item = &Value> {
    let terms = SELECTOR_TERMS.iter().try_fold(spec, |at, key| at.get(key));
    terms.and_then(Value::as_array).into_iter().flatten()
}

/// Whether a term selects nothing: one without any requirement does.
pub fn selects_nothing(term: &Value) -> bool {
    let has = |key| term.get(key).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    !has("matchExpressions") && !has("matchFields")
}

/// Whether a requirement is about the label of modes.
pub fn is_of_mode(requirement: &Value) -> bool {
    requirement.get("key").and_then(Value::as_str) == Some(MODE_LABEL)
}

/// The one value of the label of modes that every term requires by `operator` (`In`, `NotIn`), among the
/// terms that select any Node. None if there is no such term, or if one of them requires another value,
/// further values, anything else of the label, or nothing of it.
pub fn mode_of_terms<'s>(spec: &'s Value, operator: &str) -> Option<&'s str> {
    let of_term = |term: &'s Value| -> Option<&'s str> {
        let requirements = term.get("matchExpressions")?.as_array()?;
        let mut own = requirements.iter().filter(|requirement| is_of_mode(requirement));
        let (only, None) = (own.next()?, own.next()) else { return None };
        let [value] = &only.get("values")?.as_array()?[..] else { return None };
        (only.get("operator")?.as_str()? == operator).then_some(value.as_str()?)
    };
    let mut values = selector_terms(spec).filter(|term| !selects_nothing(term)).map(of_term);
    let first = values.next()??;
    values.all(|value| value == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_term_that_selects_any_node_must_have_the_label_alone() {
        let own = |operator: &str, values: Value| json!({"key": MODE_LABEL, "operator": operator, "values": values});
        let term = |expressions: Value| json!({"matchExpressions": expressions});
        let other = json!({"key": "a", "operator": "Exists"});
        let one = || term(json!([other, own("NotIn", json!(["nftables"]))]));
        let field = json!({"key": "metadata.name", "operator": "In", "values": ["n"]});
        let of = |terms: &Value, operator: &str| {
            let spec = json!({"affinity": {"nodeAffinity":
                {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
            mode_of_terms(&spec, operator).map(str::to_owned)
        };
        for terms in [
            json!([one()]),
            json!([one(), one()]),
            json!([{}, one(), {"matchExpressions": []}, {"matchFields": [], "matchExpressions": null}]),
        ] {
            assert_eq!(of(&terms, "NotIn").as_deref(), Some("nftables"), "{terms}");
            assert_eq!(of(&terms, "In"), None, "{terms}");
        }
        for terms in [
            json!([]),
            json!([{}]),
            json!([one(), term(json!([other]))]),
            json!([one(), {"matchFields": [field]}]),
            json!([one(), term(json!([own("NotIn", json!(["ipvs"]))]))]),
            json!([term(json!([own("NotIn", json!(["nftables", "ipvs"]))]))]),
            json!([term(json!([own("NotIn", json!(["a"])), own("NotIn", json!(["a"]))]))]),
            json!([term(json!([own("NotIn", json!(["a"])), own("Exists", json!(null))]))]),
        ] {
            assert_eq!(of(&terms, "NotIn"), None, "{terms}");
        }
        assert_eq!(mode_of_terms(&Value::Null, "NotIn"), None);
    }
}
