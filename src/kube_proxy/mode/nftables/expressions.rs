//! What the expressions of kube-proxy's rules say, in nft's JSON.

use std::net::SocketAddr;

use serde_json::Value;

use crate::kube_proxy::reach::PodSource;
use crate::state::nft::{self, NftTable};

/// How the table of a family tells pods: by what masquerades all others, or leads pods past the policy
/// `Local`.
pub(super) fn pods(table: &NftTable) -> PodSource {
    let rules = table.of_kind("rule").filter_map(|rule| rule.get("expr")?.as_array());
    let mut found = rules.filter_map(|expr| {
        let goes_on = expr.iter().find_map(target).is_some_and(|to| to.starts_with("service-"));
        let operator = if goes_on { "==" } else { "!=" };
        let mut own = expr.iter().filter(|_| goes_on || marks(expr));
        own.find_map(|statement| source(statement, operator))
    });
    found.next().unwrap_or(PodSource::Unknown)
}

/// Which pods a statement matches with this operator.
fn source(statement: &Value, operator: &str) -> Option<PodSource> {
    let matched = statement.get("match").filter(|m| m["op"] == operator)?;
    let left = &matched["left"];
    if left.pointer("/payload/field").is_some_and(|field| field == "saddr") {
        let networks = nft::networks(&matched["right"]);
        return (!networks.is_empty()).then_some(PodSource::Networks(networks));
    }
    let link = left.pointer("/meta/key").is_some_and(|key| key == "iifname");
    Some(PodSource::Link(matched["right"].as_str().filter(|_| link)?.to_owned()))
}

/// The chain that a jump or goto leads to.
pub(super) fn target(statement: &Value) -> Option<&str> {
    let verdict = statement.get("goto").or_else(|| statement.get("jump"))?;
    verdict.get("target")?.as_str().filter(|t| *t != "mark-for-masquerade")
}

/// True if the statement matches the source of packets: traffic of pods, of the node, or of one
/// client.
pub(super) fn by_source(statement: &Value) -> bool {
    let Some(left) = statement.pointer("/match/left") else { return false };
    let is = |pointer: &str, value: &str| left.pointer(pointer).is_some_and(|v| v == value);
    is("/payload/field", "saddr") || is("/meta/key", "iifname") || left.get("fib").is_some()
}

/// True if the rule marks connections so that they are masqueraded: by itself (from 1.36 on), or by
/// the chain for that.
pub(super) fn marks(expr: &[Value]) -> bool {
    expr.iter().any(|statement| {
        let to = statement.pointer("/jump/target").is_some_and(|to| to == "mark-for-masquerade");
        to || statement.pointer("/mangle/key/meta/key").is_some_and(|key| key == "mark")
    })
}

/// The affinity set (an nft set) that the statement matches.
pub(super) fn affinity(statement: &Value) -> Option<&str> {
    statement.pointer("/match/right")?.as_str()?.strip_prefix('@')
}

/// The endpoints that a `dnat` leads to: one address and port, or a map of `address . port` from
/// which each connection gets one. kube-proxy writes such maps for services without affinity
/// (1.37.2; 1.34.4 has a chain for every endpoint).
pub(super) fn endpoints(dnat: &Value) -> Vec<SocketAddr> {
    let endpoint = |address: &Value, port: &Value| {
        let port = u16::try_from(port.as_u64()?).ok()?;
        Some(SocketAddr::new(address.as_str()?.parse().ok()?, port))
    };
    let mapped = |entry: &Value| {
        let concat = entry.get(1)?.get("concat")?;
        endpoint(concat.get(0)?, concat.get(1)?)
    };
    match dnat.pointer("/addr/map/data/set").and_then(Value::as_array) {
        Some(entries) => entries.iter().filter_map(mapped).collect(),
        None => {
            let one = dnat.get("addr").zip(dnat.get("port"));
            one.and_then(|(address, port)| endpoint(address, port)).into_iter().collect()
        }
    }
}
