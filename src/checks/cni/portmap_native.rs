//! Host ports in the tables of portmap's nftables back end (CNI plugins 1.6 and later): a rule a port,
//! in the chains `hostports` and `hostip_hostports`, with a hash of the container in its comment.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::checks::Facts;
use crate::state::nft::NftTable;

/// A rule that leads a host port to a pod.
pub(super) struct NativePort {
    /// The chain, and all that the rule matches: two rules of one key take the same packets.
    pub(super) key: (String, Vec<String>),
    /// The pod's address.
    pub(super) pod: Option<IpAddr>,
    /// The rule, as evidence.
    pub(super) shown: String,
    /// The command that deletes the rule.
    pub(super) delete: String,
}

/// The host ports of all native tables of the owner `owner`.
pub(super) fn ports(facts: &Facts<'_>, owner: &str) -> Vec<NativePort> {
    let is_its = |table: &&NftTable| {
        facts.ownership.table(&table.family, &table.name).is_some_and(|found| found.name == owner)
    };
    let tables = facts.now.native_tables().into_iter().filter(is_its);
    tables.flat_map(|table| table.of_kind("rule").filter_map(|rule| port(table, rule))).collect()
}

fn port(table: &NftTable, rule: &Map<String, Value>) -> Option<NativePort> {
    let chain = rule.get("chain")?.as_str()?;
    let expr = rule.get("expr")?.as_array()?;
    let dnat = expr.iter().find_map(|part| part.get("dnat"))?;
    let matched: Vec<&Value> = expr.iter().filter_map(|part| part.get("match")).collect();
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let conditions = matched.iter().map(|m| {
        let payload = &m["left"]["payload"];
        let (protocol, field) = (plain(&payload["protocol"]), plain(&payload["field"]));
        format!("{protocol} {field} {}", plain(&m["right"]))
    });
    let (family, name) = (&table.family, &table.name);
    let place = format!("{family} {name} {chain}");
    let handle = rule.get("handle").map(plain).unwrap_or_default();
    let to = format!("{}:{}", plain(&dnat["addr"]), plain(&dnat["port"]));
    let conditions: Vec<String> = conditions.collect();
    Some(NativePort {
        shown: format!("nft {place}, handle {handle}: {} dnat to {to}", conditions.join(" ")),
        delete: format!("nft delete rule {place} handle {handle}"),
        pod: dnat["addr"].as_str().and_then(|address| address.parse().ok()),
        key: (place, matched.iter().map(|m| m.to_string()).collect()),
    })
}
