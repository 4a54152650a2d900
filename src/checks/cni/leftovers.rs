//! Chains, rules, ipsets and native tables that a pod network, or what belongs to one, has left: its component is
//! gone or seems so, or lives in another backend. The component's rules still filter packets.

use std::collections::BTreeMap;

use super::shown;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::owners::component::Component;
use crate::owners::liveness::{self, Liveness};
use crate::plan::reason::Reason;
use crate::plan::{Action, Object};
use crate::state::object::{ObjectId, ObjectKind};

pub(super) const CHECK: Check = Check {
    id: "cni.leftovers",
    title: "chains and sets that a pod network has left",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/k3s-io/k3s/issues/5060",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let tables = facts.now.native_tables();
    if facts.now.rulesets.is_empty() && facts.now.ipsets.sets.is_empty() && tables.is_empty() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let mut rows: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
    for object in &facts.leftovers().objects {
        rows.entry(&object.owner).or_default().push(object);
    }
    let mut found = Found {
        effect:
            "nobody keeps them up to date: they drop or accept for pods that are gone, and for \
                 new ones with the same addresses or links"
                .into(),
        ..Found::default()
    };
    let mut unknown = Vec::new();
    let makers = facts.catalogue.components().iter().filter(|c| c.is_watched());
    for component in makers.filter(|c| !c.alive.processes.is_empty()) {
        let Some(rows) = rows.get(component.name.as_str()) else { continue };
        match liveness::liveness(component, facts.now) {
            Liveness::SeemsGone(evidence) | Liveness::Gone(evidence) => {
                let all = Left::of(facts, component);
                left(facts, component, &evidence, &all, rows, &mut found);
            }
            Liveness::Unknown(_) if !component.cni => {}
            Liveness::Unknown(missing) => unknown.push(format!("{}: {missing}", component.name)),
            Liveness::Alive(evidence) => {
                let is_left = |o: &&&Object| matches!(*o.reason, Reason::OwnerLeftBackend(..));
                let rows: Vec<&Object> = rows.iter().filter(is_left).copied().collect();
                if let Some(Reason::OwnerLeftBackend(_, why)) = rows.first().map(|o| &*o.reason) {
                    let evidence =
                        format!("{evidence}, but seems to have left their backend: {why}");
                    let listed = Left::listed(&rows);
                    left(facts, component, &evidence, &listed, &rows, &mut found);
                }
            }
        }
    }
    match (found.evidence.is_empty(), unknown.is_empty()) {
        (false, _) => Verdict::Found(found),
        (true, false) => Verdict::Unknown(unknown.join("; ")),
        (true, true) => Verdict::Ok("none".into()),
    }
}

/// How much a component has left.
#[derive(Default)]
struct Left {
    chains: usize,
    rules: usize,
    /// Those of the rules that drop or reject packets.
    drops: usize,
    sets: usize,
    native_tables: usize,
}

impl Left {
    /// All objects of the component, whether or not a plan lists them.
    fn of(facts: &Facts<'_>, component: &Component) -> Left {
        let name = component.name.as_str();
        let mut left = Left::default();
        for (id, ruleset) in &facts.now.rulesets {
            for table in &ruleset.tables {
                for chain in &table.chains {
                    let owner = facts.ownership.chain(*id, &table.name, &chain.name);
                    left.chains += usize::from(owner.is_some_and(|o| o.name == name));
                    let owners = facts.ownership.rule_attributions(*id, &table.name, &chain.name);
                    for (rule, owner) in chain.rules.iter().zip(owners) {
                        if facts.ownership.name(*owner) == name {
                            left.rules += 1;
                            left.drops += usize::from(drops(rule.target.as_deref()));
                        }
                    }
                }
            }
        }
        let sets = facts.now.ipsets.sets.iter();
        let its = |set: &str| facts.ownership.set(set).is_some_and(|o| o.name == name);
        left.sets = sets.filter(|set| its(&set.name)).count();
        let tables = facts.now.native_tables();
        let its = |entry| facts.catalogue.at(entry).name == name;
        let owned = |table| facts.catalogue.native_table(table).is_some_and(|(e, _)| its(e));
        left.native_tables = tables.into_iter().filter(|table| owned(table)).count();
        left
    }

    /// The objects that a plan lists.
    fn listed(rows: &[&Object]) -> Left {
        let count = |kind: ObjectKind| rows.iter().filter(|o| o.kind() == kind).count();
        let drop = |o: &&&Object| match &o.id {
            ObjectId::Rule { text, .. } => {
                drops(text.rsplit_once("-j ").and_then(|(_, to)| to.split(' ').next()))
            }
            _ => false,
        };
        Left {
            chains: count(ObjectKind::Chain),
            rules: count(ObjectKind::Rule),
            drops: rows.iter().filter(drop).count(),
            sets: count(ObjectKind::Set),
            native_tables: count(ObjectKind::Table),
        }
    }
}

fn drops(target: Option<&str>) -> bool {
    matches!(target, Some("DROP" | "REJECT"))
}

/// `1 chain`, `2 chains`.
fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Adds what a component has left, and why it is said to be left.
fn left(
    facts: &Facts<'_>,
    component: &Component,
    evidence: &str,
    all: &Left,
    rows: &[&Object],
    found: &mut Found,
) {
    let name = &component.name;
    let drops = if all.drops == 0 {
        String::new()
    } else {
        format!(", {} of them to drop or reject", all.drops)
    };
    let tables = match all.native_tables {
        0 => String::new(),
        n => format!(", {}", counted(n, "native table")),
    };
    found.evidence.push(format!(
        "{name}: {}, {}{drops}, {}{tables}; {evidence}",
        counted(all.chains, "chain"),
        counted(all.rules, "rule"),
        counted(all.sets, "ipset")
    ));
    // The evidence shows only rules in built-in chains, because packets reach the component's other
    // chains only through jumps there.
    let jumps = rows.iter().filter(|o| match &o.id {
        ObjectId::Rule { chain, .. } => chain.bytes().all(|b| b.is_ascii_uppercase()),
        _ => false,
    });
    found.evidence.extend(jumps.take(3).map(|o| shown(facts.now, o)));
    if rows.iter().any(|o| o.action == Action::Remove) {
        found.remedy.push(format!("proxyshift cleanup --owner {name}"));
    } else {
        found.remedy.push(format!("proxyshift plan -v   # what is {name}'s, and why it stays"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    const CANAL: &str = "canal-stale-flannel-1.20";

    fn without_calico() -> Node {
        Node::captured(CANAL)
            .replace("processes.json", "\"calico-node\"", "\"other\"")
            .remove("files/etc/cni/net.d/10-canal.conflist")
            .replace("addr.json", "cali02fca994756", "veth1")
    }

    #[test]
    fn calico_without_felix_is_found() {
        let Verdict::Found(found) = verdict_of(&CHECK, &without_calico().state()) else {
            panic!("not found")
        };
        assert!(found.evidence[0].starts_with("calico: "), "{:?}", found.evidence);
        assert!(found.evidence[1].contains("cali-"), "{:?}", found.evidence);
        assert_eq!(found.remedy, ["proxyshift cleanup --owner calico"]);
    }

    #[test]
    fn ok_where_they_live_and_unknown_without_processes() {
        assert_eq!(verdict_of(&CHECK, &node(CANAL)), Verdict::Ok("none".into()));
        assert_eq!(verdict_of(&CHECK, &node("docker-iptables-1.30")), Verdict::Ok("none".into()));
        let state = without_calico().remove("processes.json").state();
        let Verdict::Unknown(missing) = verdict_of(&CHECK, &state) else { panic!("known") };
        assert!(missing.contains("calico: the processes"), "{missing}");
    }
}
