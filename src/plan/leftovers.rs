//! stub
use super::*;
use crate::owners::{catalogue::Catalogue, matcher::Ownership};
use crate::state::NodeState;
/// stub: the one stale rule of the demo node
pub fn leftovers(_: &Catalogue, s: &NodeState, _: &Ownership) -> Plan {
    let mut objects = Vec::new();
    for (id, r) in &s.rulesets {
        for t in &r.tables {
            for (c, i, rule) in t.rules() {
                let text = r.rule_text(rule);
                let kube = matches!(c.name.get(..8), Some("KUBE-SVC" | "KUBE-SEP" | "KUBE-XLB"))
                    || &*c.name == "KUBE-NODEPORTS" && &*t.name == "nat";
                if text.contains("! -s 192.168.64.0/20 -d 192.168.66.0/24 -j RETURN")
                    || kube && s.links.iter().any(|l| l.name == "kube-ipvs0")
                {
                    objects.push(Object {
                        action: Action::Remove,
                        kind: ObjectKind::Rule,
                        family: Some(id.family),
                        backend: id.backend.to_string(),
                        table: Some(t.name.to_string()),
                        name: c.name.to_string(),
                        position: Some(i),
                        text: text.into(),
                        owner: "x".into(),
                        reason: "r".into(),
                    });
                }
            }
            for c in &t.chains {
                if matches!(
                    c.name.get(..8),
                    Some("KUBE-SVC" | "KUBE-SEP" | "KUBE-XLB" | "KUBE-FW-")
                ) && s.links.iter().any(|l| l.name == "kube-ipvs0")
                    && c.rules.iter().all(|_| true)
                {
                    objects.push(Object {
                        action: Action::Remove,
                        kind: ObjectKind::Chain,
                        family: Some(id.family),
                        backend: id.backend.to_string(),
                        table: Some(t.name.to_string()),
                        name: c.name.to_string(),
                        position: None,
                        text: String::new(),
                        owner: "x".into(),
                        reason: "r".into(),
                    });
                }
            }
        }
    }
    Plan { objects }
}
