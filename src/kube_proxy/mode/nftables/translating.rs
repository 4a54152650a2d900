//! The parts of kube-proxy's tables that translate connections to some service ports, without those
//! of all others.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use super::TABLE;
use super::services::{SERVICE_MAPS, service_port};
use crate::kube_proxy::services::ServiceKey;
use crate::state::nft::{NftTable, NftTables};
use crate::state::{Family, NodeState};

/// kube-proxy's tables, with what `ports` need.
pub(super) fn rules(state: &NodeState, ports: &BTreeSet<ServiceKey>) -> NodeState {
    let tables = Family::ALL.into_iter().filter_map(|family| {
        let table = state.nft.get(family.nft(), TABLE)?;
        Some(Reachable { table, family, ports }.table())
    });
    let nft = NftTables { tables: tables.collect(), other: Vec::new() };
    NodeState { nft, ..NodeState::default() }
}

/// What of a table the hooks lead to, for some service ports.
struct Reachable<'a> {
    table: &'a NftTable,
    family: Family,
    ports: &'a BTreeSet<ServiceKey>,
}

impl<'a> Reachable<'a> {
    fn table(&self) -> NftTable {
        let reached = self.names();
        let is_kept = |object: &&Value| {
            let kept = |(kind, field): (&str, &str)| {
                let name = object.get(kind).and_then(|body| body.get(field));
                name.is_none_or(|name| name.as_str().is_some_and(|name| reached.contains(name)))
            };
            [("chain", "name"), ("set", "name"), ("map", "name"), ("rule", "chain")]
                .into_iter()
                .all(kept)
        };
        let NftTable { family, name, objects } = self.table;
        let objects = objects.iter().filter(is_kept).map(|object| self.without_others(object));
        NftTable { family: family.clone(), name: name.clone(), objects: objects.collect() }
    }

    /// The names of the chains, sets and maps.
    fn names(&self) -> BTreeSet<&'a str> {
        let mut parts: HashMap<&str, Vec<&Value>> = HashMap::new();
        let mut waiting = Vec::new();
        for (kind, field, content) in [
            ("chain", "name", ""),
            ("set", "name", "elem"),
            ("map", "name", "elem"),
            ("rule", "chain", "expr"),
        ] {
            for object in self.table.of_kind(kind) {
                let name = object.get(field).and_then(Value::as_str).unwrap_or_default();
                waiting.extend(object.contains_key("hook").then_some(name));
                parts.entry(name).or_default().extend(object.get(content));
            }
        }
        let mut reached: BTreeSet<&str> = waiting.iter().copied().collect();
        while let Some(part) = waiting.pop() {
            let mut named = Vec::new();
            for content in parts.get(part).into_iter().flatten() {
                match content.as_array().filter(|_| SERVICE_MAPS.contains(&part)) {
                    Some(all) => {
                        let wanted = all.iter().filter(|element| self.is_wanted(element));
                        wanted.for_each(|element| names(element, &mut named));
                    }
                    None => names(content, &mut named),
                }
            }
            waiting.extend(named.into_iter().filter(|name| reached.insert(name)));
        }
        reached
    }

    /// Whether an element of a map that dispatches is for one of the ports, or for none.
    fn is_wanted(&self, element: &Value) -> bool {
        let key = element.get(0).map(|key| key.pointer("/elem/val").unwrap_or(key));
        let port = key.and_then(|k| service_port(self.family, k.get("concat")?.as_array()?));
        port.is_none_or(|port| self.ports.contains(&port))
    }

    /// The object; if it is a map that dispatches, without the elements of other ports.
    fn without_others(&self, object: &Value) -> Value {
        let name = object.pointer("/map/name").and_then(Value::as_str);
        let Some(map) = object["map"]
            .as_object()
            .filter(|_| name.is_some_and(|name| SERVICE_MAPS.contains(&name)))
        else {
            return object.clone();
        };
        let mut fields = Map::new();
        for (field, value) in map {
            let value = match value.as_array().filter(|_| field == "elem") {
                Some(all) => all.iter().filter(|one| self.is_wanted(one)).cloned().collect(),
                None => value.clone(),
            };
            // nft reads no empty list.
            if value.as_array().is_none_or(|all| !all.is_empty()) {
                fields.insert(field.clone(), value);
            }
        }
        serde_json::json!({ "map": fields })
    }
}

/// The names of the chains, sets and maps that rules or elements name: `{"target": "chain"}`, `@set`.
fn names<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.extend(text.strip_prefix('@')),
        Value::Array(values) => values.iter().for_each(|value| names(value, found)),
        Value::Object(fields) => {
            found.extend(fields.get("target").and_then(Value::as_str));
            fields.values().for_each(|value| names(value, found));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kube_proxy::services::Location;
    use crate::state::ipvs::Protocol;

    #[test]
    fn what_the_wanted_ports_need_is_kept_and_nothing_else() {
        let object = |kind: &str, name: &str, mut body: Value| {
            body["family"] = json!("ip");
            body["table"] = json!(TABLE);
            body[if kind == "rule" { "chain" } else { "name" }] = json!(name);
            json!({ kind: body })
        };
        let to = |chain: &str| json!({"goto": {"target": chain}});
        let element = |address: &str, chain: &str| json!([{"elem": {"val": {"concat": [address, "tcp", 80]}, "comment": "c"}}, to(chain)]);
        let objects = vec![
            json!({"table": {"family": "ip", "name": TABLE}}),
            object("chain", "nat-prerouting", json!({"hook": "prerouting"})),
            object("chain", "services", json!({})),
            object("chain", "service-a", json!({})),
            object("chain", "endpoint-a", json!({})),
            object("chain", "service-b", json!({})),
            object("chain", "left", json!({})),
            object("set", "affinity-a", json!({})),
            object("set", "affinity-b", json!({})),
            object(
                "map",
                "service-ips",
                json!({"elem": [
                element("10.96.0.1", "service-a"), element("10.96.0.2", "service-b")]}),
            ),
            object("map", "no-endpoint-services", json!({"elem": [element("10.96.0.3", "x")]})),
            object("rule", "nat-prerouting", json!({"expr": [{"jump": {"target": "services"}}]})),
            object("rule", "services", json!({"expr": [{"vmap": {"data": "@service-ips"}}]})),
            object(
                "rule",
                "services",
                json!({"expr": [{"vmap": {"data": "@no-endpoint-services"}}]}),
            ),
            object(
                "rule",
                "service-a",
                json!({"expr": [{"vmap": {"data": {"set": [
                [0, to("endpoint-a")]]}}}]}),
            ),
            object("rule", "endpoint-a", json!({"expr": [{"set": {"set": "@affinity-a"}}]})),
            object("rule", "service-b", json!({"expr": [{"set": {"set": "@affinity-b"}}]})),
        ];
        let table = NftTable { family: "ip".into(), name: TABLE.into(), objects };
        let nft = NftTables { tables: vec![table], other: Vec::new() };
        let state = NodeState { nft, ..NodeState::default() };
        let location = Location::Address("10.96.0.1".parse().unwrap());
        let port = ServiceKey { location, port: 80, protocol: Protocol::Tcp };
        let kept = rules(&state, &[port].into());
        let table = kept.nft.get("ip", TABLE).unwrap();
        let named = |kind, field| {
            let all = table.of_kind(kind).map(|o| o[field].as_str().unwrap());
            all.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(named("chain", "name"), "nat-prerouting services service-a endpoint-a");
        assert_eq!(named("set", "name"), "affinity-a");
        assert_eq!(named("map", "name"), "service-ips no-endpoint-services");
        let rules = "nat-prerouting services services service-a endpoint-a";
        assert_eq!(named("rule", "chain"), rules);
        let mut maps = table.of_kind("map");
        assert_eq!(maps.next().unwrap()["elem"].as_array().unwrap().len(), 1);
        assert_eq!(maps.next().unwrap().get("elem"), None);
    }
}
