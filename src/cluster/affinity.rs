//! The node affinity of a DaemonSet's template, and our part of it.

use serde_json::{Map, Value, json};

use crate::state::kube_proxy::Mode;
use crate::state::kubernetes::{
    MODE_LABEL, SELECTOR_TERMS, is_of_mode, mode_of_terms, selects_nothing,
};

/// Which Nodes our expression leaves to a DaemonSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Those without the label, or with another value.
    Original,
    /// Those that the label names for the mode.
    Ours,
}

impl Side {
    fn operator(self) -> &'static str {
        match self {
            Side::Original => "NotIn",
            Side::Ours => "In",
        }
    }
}

/// Whether pods of this spec go to all Nodes but those that the label names for the mode.
pub fn excludes(spec: &Value, mode: Mode) -> bool {
    mode_of_terms(spec, Side::Original.operator()) == Some(mode.name())
}

/// Whether pods of this spec go only to Nodes that the label names for the mode.
pub fn requires(spec: &Value, mode: Mode) -> bool {
    mode_of_terms(spec, Side::Ours.operator()) == Some(mode.name())
}

/// The spec of a pod without any requirement about the label of modes.
pub(super) fn without_ours(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let mut emptied = false;
    if let Some(Value::Array(terms)) =
        SELECTOR_TERMS.iter().try_fold(&mut spec, |at, key| at.get_mut(key))
    {
        for term in terms.iter_mut() {
            let had_any = !selects_nothing(term);
            if let Some(Value::Array(list)) = term.get_mut("matchExpressions") {
                list.retain(|expression| !is_of_mode(expression));
                if list.is_empty() {
                    let _ = term.as_object_mut().map(|term| term.remove("matchExpressions"));
                }
            }
            // A term that was ours alone selected all other Nodes.
            emptied |= had_any && selects_nothing(term);
        }
    }
    // What stays of it is what was there before: the parts that are empty now go.
    if emptied {
        for depth in (1..=SELECTOR_TERMS.len()).rev() {
            let (name, above) = (SELECTOR_TERMS[depth - 1], &SELECTOR_TERMS[..depth - 1]);
            let Some(Value::Object(parent)) =
                above.iter().try_fold(&mut spec, |at, key| at.get_mut(key))
            else {
                break;
            };
            let is_last = depth == SELECTOR_TERMS.len();
            let goes = match parent.get(name) {
                Some(Value::Array(terms)) if is_last => terms.iter().any(selects_nothing),
                Some(Value::Object(part)) => part.is_empty(),
                _ => false,
            };
            if !goes {
                break;
            }
            parent.shift_remove(name);
        }
    }
    spec
}

/// The spec of a pod with our requirement in each of its terms, in place of any such one.
pub(super) fn with_ours(spec: &Value, mode: Mode, side: Side) -> Value {
    let mut spec = without_ours(spec);
    let ours = json!({"key": MODE_LABEL, "operator": side.operator(), "values": [mode.name()]});
    let mut at = &mut spec;
    for key in &SELECTOR_TERMS[..SELECTOR_TERMS.len() - 1] {
        at = child(at, key);
    }
    let Value::Object(required) = at else { return spec };
    let terms =
        required.entry(SELECTOR_TERMS[SELECTOR_TERMS.len() - 1]).or_insert_with(|| json!([]));
    match terms {
        Value::Array(terms) if !terms.is_empty() => {
            for term in terms.iter_mut().filter(|term| !selects_nothing(term)) {
                if let Value::Object(term) = term {
                    let list = term.entry("matchExpressions").or_insert_with(|| json!([]));
                    if let Value::Array(list) = list {
                        list.push(ours.clone());
                    }
                }
            }
        }
        terms => *terms = json!([{"matchExpressions": [ours]}]),
    }
    spec
}

/// The object below `key`, which is made if there is none.
fn child<'v>(at: &'v mut Value, key: &str) -> &'v mut Value {
    if !at.is_object() {
        *at = Value::Object(Map::new());
    }
    let object = at.as_object_mut().expect("made above");
    let below = object.entry(key).or_insert(Value::Null);
    if !below.is_object() {
        *below = Value::Object(Map::new());
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::kubernetes::selector_terms;

    const MODE: Mode = Mode::Nftables;

    fn spec(terms: Value) -> Value {
        let required = json!({"nodeSelectorTerms": terms});
        let node = json!({"requiredDuringSchedulingIgnoredDuringExecution": required});
        json!({"hostNetwork": true, "affinity": {"nodeAffinity": node}})
    }

    #[test]
    fn a_spec_without_affinity_gets_one_term_and_loses_it_again() {
        let plain = json!({"hostNetwork": true});
        let with = with_ours(&plain, MODE, Side::Original);
        let wanted = json!([{"matchExpressions": [
            {"key": "proxyshift.dev/mode", "operator": "NotIn", "values": ["nftables"]}]}]);
        assert_eq!(with, spec(wanted));
        assert!(excludes(&with, MODE) && !requires(&with, MODE) && !excludes(&plain, MODE));
        assert!(!excludes(&with, Mode::Ipvs));
        assert_eq!(with_ours(&with, MODE, Side::Original), with);
        assert_eq!(without_ours(&with), plain);
        let ours = with_ours(&with, MODE, Side::Ours);
        assert!(requires(&ours, MODE) && !excludes(&ours, MODE));
        // What is beside it stays.
        let preferred = json!({"affinity": {"nodeAffinity": {"preferred": [1]}}});
        assert_eq!(without_ours(&with_ours(&preferred, MODE, Side::Ours)), preferred);
    }

    #[test]
    fn each_term_that_selects_any_node_gets_ours() {
        let zone = json!({"key": "zone", "operator": "In", "values": ["a"]});
        let before = spec(json!([
            {"matchExpressions": [zone]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]},
            {},
        ]));
        let with = with_ours(&before, MODE, Side::Original);
        assert!(excludes(&with, MODE));
        let terms: Vec<&Value> = selector_terms(&with).collect();
        assert_eq!(terms[0]["matchExpressions"].as_array().map(Vec::len), Some(2));
        assert_eq!(terms[1]["matchExpressions"].as_array().map(Vec::len), Some(1));
        // With a requirement in it, it would select Nodes.
        assert_eq!(terms[2], &json!({}));
        assert_eq!(without_ours(&with), before);
        // A term that others added later lets pods through.
        let mut later = with.clone();
        later["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            ["nodeSelectorTerms"]
            .as_array_mut()
            .unwrap()
            .push(json!({"matchExpressions": [zone]}));
        assert!(!excludes(&later, MODE));
    }
}
