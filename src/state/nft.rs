//! Parser of `nft -j list table` and `nft -j list ruleset`. The native nf_tables objects are kept
//! unchanged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::lines;
use crate::error::{Error, Kind, Result};

/// The field of a table that nft could not list, and that the kernel's messages describe.
pub(super) const UNLISTED: &str = "unlisted";

/// The tables of one or more documents of `nft -j`, and the objects that belong to no table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NftTables {
    /// The tables, in the order in which nft lists them.
    pub tables: Vec<NftTable>,
    /// The objects that belong to no table (`metainfo`, and kinds that only a later nft has),
    /// unchanged.
    pub other: Vec<Value>,
}

/// One nf_tables table with all its objects.
#[derive(Debug, Clone, PartialEq)]
pub struct NftTable {
    /// nft's address family of the table: `ip`, `ip6`, `inet`, `arp`, `bridge`, `netdev`.
    pub family: String,
    /// The table's name.
    pub name: String,
    /// The table itself and its objects, in nft's order, each as `{"chain": {…}}`. Objects of
    /// unknown kinds are included.
    pub objects: Vec<Value>,
}

impl NftTables {
    /// Parses one document of `nft -j`, or several in a row. Errors name `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<NftTables> {
        let mut found = NftTables::default();
        let error = |cause: String| Error::new(Kind::Parse, file, cause);
        for document in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
            let document = document.map_err(|e| error(e.to_string()))?;
            let Value::Object(mut document) = document else {
                return Err(error("not a document of nft -j: no object".to_owned()));
            };
            let Some(Value::Array(objects)) = document.remove("nftables") else {
                return Err(error("not a document of nft -j: no list \"nftables\"".to_owned()));
            };
            for object in objects {
                found.push(object);
            }
        }
        Ok(found)
    }

    fn push(&mut self, object: Value) {
        let Some((family, name)) = table_of(&object) else {
            self.other.push(object);
            return;
        };
        match self.tables.iter_mut().find(|t| t.family == family && t.name == name) {
            Some(table) => table.objects.push(object),
            None => {
                let (family, name) = (family.to_owned(), name.to_owned());
                self.tables.push(NftTable { family, name, objects: vec![object] });
            }
        }
    }

    /// The table `name` of nft's address family `family`.
    pub fn get(&self, family: &str, name: &str) -> Option<&NftTable> {
        self.tables.iter().find(|table| table.family == family && table.name == name)
    }

    /// The tables that iptables-nft did not write; `xtables` has the family and name of each table
    /// that iptables-nft wrote.
    pub fn native(&self, xtables: &BTreeSet<(String, String)>) -> Vec<&NftTable> {
        let ours = |t: &&NftTable| !xtables.contains(&(t.family.clone(), t.name.clone()));
        self.tables.iter().filter(ours).collect()
    }

    /// Objects that are only in `after` (`+`) or only in `self` (`-`), compared as in
    /// [`NftTable::differences`].
    pub fn differences(&self, after: &NftTables) -> Vec<String> {
        let key = |t: &NftTable| (t.family.clone(), t.name.clone());
        let keys: BTreeSet<_> = self.tables.iter().chain(&after.tables).map(key).collect();
        let mut found = Vec::new();
        for (family, name) in keys {
            let none = NftTable { family, name, objects: vec![] };
            let side = |tables: &NftTables| {
                tables.get(&none.family, &none.name).unwrap_or(&none).meaning()
            };
            found.extend(none.compare(&side(self), &side(after)));
        }
        found
    }
}

/// What of a table is compared: one text for each object, and the rules of each chain in order.
#[derive(Default)]
struct Meaning {
    objects: Vec<String>,
    chains: BTreeMap<String, Vec<String>>,
}

impl NftTable {
    /// Whether a rule has a match or target of xtables, of which nft prints the name alone.
    /// ebtables-nft and arptables-nft write such rules.
    pub fn has_xtables_part(&self) -> bool {
        let parts = self.objects.iter().filter_map(|object| object["rule"]["expr"].as_array());
        parts.flatten().any(|part| part.get("xt").is_some())
    }

    /// Whether nft could not list the table. Of its rules, only the verdicts are known then, and of its
    /// sets, only the names.
    pub fn is_unlisted(&self) -> bool {
        self.of_kind("table").any(|table| table.contains_key(UNLISTED))
    }

    /// The objects of one kind (`chain`, `rule`, `set`), without the outer key that names the kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Map<String, Value>> {
        self.objects.iter().filter_map(move |object| object.get(kind)?.as_object())
    }

    /// Objects that are only in `after` (`+`) or only in `self` (`-`). Handles, counters, times and
    /// used quotas do not count, nor does the order of objects and of set elements. Elements that
    /// expire, and the elements of nft sets that rules fill, do not count either. The order of
    /// rules in a chain counts.
    pub fn differences(&self, after: &NftTable) -> Vec<String> {
        self.compare(&self.meaning(), &after.meaning())
    }

    fn compare(&self, before: &Meaning, after: &Meaning) -> Vec<String> {
        let table = format!("nft {} {}", self.family, self.name);
        let facts = |meaning: &Meaning| {
            let objects = meaning.objects.iter().map(|object| format!("{table} {object}"));
            let rules = meaning
                .chains
                .iter()
                .flat_map(|(chain, rules)| rules.iter().map(move |rule| (chain, rule)));
            let rules = rules.map(|(chain, rule)| format!("{table} chain {chain}: {rule}"));
            objects.chain(rules).collect()
        };
        let mut found = lines::differences(facts(before), facts(after));
        for (chain, rules) in &before.chains {
            let Some(now) = after.chains.get(chain).filter(|now| *now != rules) else { continue };
            if lines::differences(rules.clone(), now.clone()).is_empty() {
                found.push(format!("~ {table} chain {chain}: the same rules in another order"));
            }
        }
        found
    }

    fn meaning(&self) -> Meaning {
        let mut meaning = Meaning::default();
        let mut filled = BTreeSet::new();
        self.of_kind("rule")
            .flat_map(Map::values)
            .for_each(|field| find_filled(field, &mut filled));
        for object in &self.objects {
            let Some((kind, body)) = sole(object) else {
                meaning.objects.push(object.to_string());
                continue;
            };
            let mut body = body.clone();
            if let Some(body) = body.as_object_mut() {
                strip(kind, body, &filled);
            }
            let mut body = settle(body);
            body.sort_all_objects();
            let name = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
            match kind {
                "rule" => {
                    meaning.chains.entry(name("chain")).or_default().push(body.to_string());
                }
                _ => meaning.objects.push(format!("{kind} {}: {body}", name("name"))),
            }
        }
        meaning
    }
}

/// The kind and the body of an object `{"kind": body}`.
fn sole(object: &Value) -> Option<(&str, &Value)> {
    let object = object.as_object()?;
    let (kind, body) = object.iter().next()?;
    (object.len() == 1).then_some((kind.as_str(), body))
}

/// The family and name of the table that an object is or belongs to; none if it belongs to no
/// table.
fn table_of(object: &Value) -> Option<(&str, &str)> {
    let (kind, body) = sole(object)?;
    let table = if kind == "table" { "name" } else { "table" };
    Some((body.get("family")?.as_str()?, body.get(table)?.as_str()?))
}

/// Collects the names of the nft sets and maps that a rule's statements fill or empty (`{"set":
/// {"op": "add", "set": "@name", …}}`). The flag `dynamic` of a set does not suffice, because nft's
/// JSON does not always have it (1.0.6).
fn find_filled(value: &Value, filled: &mut BTreeSet<String>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| find_filled(value, filled)),
        Value::Object(fields) => {
            for kind in ["set", "map"] {
                let name = fields.get(kind).and_then(Value::as_str);
                if let (Some(_), Some(name)) = (fields.get("op"), name) {
                    filled.insert(name.trim_start_matches('@').to_owned());
                }
            }
            fields.values().for_each(|value| find_filled(value, filled));
        }
        _ => {}
    }
}

/// Removes the fields of an object that change without a writer. `filled` has the names of the nft
/// sets that rules fill.
fn strip(kind: &str, body: &mut Map<String, Value>, filled: &BTreeSet<String>) {
    body.shift_remove("handle");
    let moving: &[&str] = match kind {
        "counter" => &["packets", "bytes"],
        "quota" => &["used"],
        "set" | "map"
            if body
                .get("name")
                .and_then(Value::as_str)
                .is_some_and(|name| filled.contains(name)) =>
        {
            &["elem"]
        }
        _ => &[],
    };
    for field in moving {
        body.shift_remove(*field);
    }
}

/// The JSON value after inline counters and expiring elements are removed, and the elements of nft
/// sets are sorted.
fn settle(value: Value) -> Value {
    match value {
        Value::Array(values) => values.into_iter().map(settle).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| {
                let value = match (key.as_str(), value) {
                    ("counter" | "last", Value::Object(_)) => Value::Null,
                    ("quota", Value::Object(mut quota)) => {
                        quota.retain(|field, _| !field.starts_with("used"));
                        Value::Object(quota)
                    }
                    ("elem" | "set", Value::Array(elements)) => unordered(elements),
                    (_, value) => settle(value),
                };
                (key, value)
            })
            .collect(),
        value => value,
    }
}

/// The elements of an nft set that do not expire, sorted.
fn unordered(elements: Vec<Value>) -> Value {
    let lasting = elements.into_iter().filter(|element| !expires(element));
    let mut elements: Vec<Value> = lasting.map(settle).collect();
    elements.iter_mut().for_each(Value::sort_all_objects);
    elements.sort_by_cached_key(Value::to_string);
    Value::Array(elements)
}

/// Whether an element expires: `{"elem": {"val": …, "expires": 7}}`. An element of a map is a pair,
/// and the pair's key is of this form.
fn expires(element: &Value) -> bool {
    let key = element.as_array().and_then(|pair| pair.first()).unwrap_or(element);
    key.get("elem").is_some_and(|elem| elem.get("expires").is_some())
}

/// The input of `nft -j -f` that rebuilds tables with these objects. Each object comes after those
/// that it refers to: chains before the maps whose elements jump to them, and rules last.
pub fn rebuild<'a>(objects: impl IntoIterator<Item = &'a Value>) -> Value {
    let rank = |object: &&Value| match object.as_object().and_then(|o| o.keys().next()) {
        Some(kind) if kind == "table" => 0,
        Some(kind) if kind == "chain" => 1,
        Some(kind) if kind == "rule" => 3,
        _ => 2,
    };
    let mut objects: Vec<&Value> = objects.into_iter().collect();
    objects.sort_by_key(rank);
    let commands: Vec<Value> = objects.iter().map(|o| serde_json::json!({"add": o})).collect();
    serde_json::json!({"nftables": commands})
}

/// The networks that a match or an element names: one, or a set of them.
pub fn networks(right: &Value) -> Vec<IpNet> {
    let one = |v: &Value| match v.get("prefix") {
        Some(p) => {
            let address: IpAddr = p.get("addr")?.as_str()?.parse().ok()?;
            IpNet::new(address, u8::try_from(p.get("len")?.as_u64()?).ok()?).ok()
        }
        None => v.as_str()?.parse::<IpAddr>().ok().map(IpNet::from),
    };
    match right.get("set").and_then(Value::as_array) {
        Some(set) => set.iter().filter_map(one).collect(),
        None => one(right).into_iter().collect(),
    }
}

/// Whether nft takes `name` for a name (nft(8), "identifiers"). nft joins its arguments into one
/// script, and the kernel lets a table have any name: that of another one is a command.
pub fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-./\\".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(objects: &Value) -> NftTables {
        NftTables::parse("nft.json", &json!({ "nftables": objects }).to_string()).unwrap()
    }

    fn rule(handle: u32, port: u32, packets: u64) -> Value {
        json!({"rule": {"family": "ip", "table": "t", "chain": "c", "handle": handle, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
                "right": {"set": [port, 1]}}},
            {"counter": {"packets": packets, "bytes": 7}}, {"last": {"used": packets}},
            {"accept": null}]}})
    }

    #[test]
    fn a_number_is_the_same_when_it_is_rendered_and_read_again() {
        let text = r#"{"nftables": [{"table": {"family": "ip", "name": "t"}},
            {"quota": {"family": "ip", "table": "t", "name": "q", "val": 2.2222222222222224e97}}]}"#;
        let before = NftTables::parse("nft.json", text).unwrap();
        let rendered = json!({"nftables": before.get("ip", "t").unwrap().objects});
        let again = NftTables::parse("nft.json", &rendered.to_string()).unwrap();
        assert_eq!(before.differences(&again), [""; 0]);
    }

    #[test]
    fn nothing_is_dropped_and_native_tables_are_distinguished() {
        let text = r#"{"nftables":[{"metainfo":{"version":"1.0.6"}},
            {"table":{"family":"ip","name":"nat","handle":1}},
            {"table":{"family":"inet","name":"nat","handle":2}},
            {"tunnel":{"family":"inet","table":"nat","name":"x"}},{"future":1}]}
            {"nftables":[{"chain":{"family":"ip","table":"nat","name":"OUTPUT"}}]}"#;
        let tables = NftTables::parse("nft.json", text).unwrap();
        assert_eq!(tables.other.len(), 2);
        assert_eq!(tables.get("ip", "nat").unwrap().objects.len(), 2);
        let xtables = BTreeSet::from([("ip".to_owned(), "nat".to_owned())]);
        let native = tables.native(&xtables);
        assert_eq!(native.len(), 1);
        assert_eq!((native[0].family.as_str(), native[0].objects.len()), ("inet", 2));
        assert_eq!(native[0].of_kind("tunnel").count(), 1);
    }

    #[test]
    fn what_moves_by_itself_is_no_difference() {
        let side = |handle: u32, elem: Value, expiring: u32| {
            parse(&json!([
                {"table": {"family": "ip", "name": "t", "handle": handle}},
                rule(handle + 1, 80, u64::from(handle)),
                {"counter": {"family": "ip", "table": "t", "name": "n", "packets": handle}},
                {"set": {"family": "ip", "table": "t", "name": "s", "elem": elem}},
                {"set": {"family": "ip", "table": "t", "name": "aff", "flags": ["timeout"],
                    "elem": [{"elem": {"val": expiring, "timeout": 9, "expires": 7}}]}},
                {"set": {"family": "ip", "table": "t", "name": "dyn", "elem": [expiring]}},
                {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [
                    {"set": {"op": "add", "elem": 1, "set": "@dyn"}}]}},
            ]))
        };
        let (one, two) = (side(1, json!([1, 2]), 5), side(9, json!([2, 1]), 6));
        assert_eq!(one.differences(&two), Vec::<String>::new());
        assert_ne!(one.differences(&side(1, json!([1]), 5)), Vec::<String>::new());
    }

    #[test]
    fn rules_and_their_order_are_differences() {
        let side = |rules: &[Value]| {
            let mut objects = vec![json!({"chain": {"family": "ip", "table": "t", "name": "c"}})];
            objects.extend_from_slice(rules);
            parse(&Value::Array(objects))
        };
        let before = side(&[rule(1, 80, 0), rule(2, 81, 0)]);
        let found = before.differences(&side(&[rule(2, 81, 0), rule(1, 80, 0)]));
        assert_eq!(found, ["~ nft ip t chain c: the same rules in another order"]);
        let found = before.differences(&side(&[rule(2, 81, 0)]));
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("- nft ip t chain c: {"), "{found:?}");
        assert_eq!(before.differences(&NftTables::default()).len(), 3);
        assert_eq!(NftTables::default().differences(&before).len(), 3);
    }

    #[test]
    fn errors_name_file_and_line() {
        for (text, expected) in [
            ("{\"nftables\": [\n{\"table\": ", "nft.json: EOF while parsing a value at line 2"),
            ("[]", "nft.json: not a document of nft -j: no object"),
            ("{}", "nft.json: not a document of nft -j: no list"),
        ] {
            let error = NftTables::parse("nft.json", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
