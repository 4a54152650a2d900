//! Services, read from the maps and chains of kube-proxy's own nf_tables tables.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::Value;

use super::TABLE;
use crate::kube_proxy::mode::ServiceFilter;
use crate::kube_proxy::services::{Location, ServiceKey, ServicePort, Services, protocol};
use crate::state::nft::NftTable;
use crate::state::{Family, NodeState};

/// The greatest depth to which chains are followed. kube-proxy's chains go from an external chain
/// through a service chain or a local chain to an endpoint chain.
const DEPTH: usize = 4;

/// The node's services that `wanted` accepts.
pub(super) fn read(state: &NodeState, wanted: &ServiceFilter<'_>) -> Services {
    let mut found = Services::new();
    for family in Family::ALL {
        if let Some(table) = state.nft.get(family.nft(), TABLE) {
            Reader::of(table, family).read(&mut found, wanted);
        }
    }
    found
}

struct Reader<'a> {
    table: &'a NftTable,
    family: Family,
    /// The expressions of each rule, keyed by chain name.
    chains: HashMap<&'a str, Vec<&'a Vec<Value>>>,
    /// The timeout of each affinity set in seconds, keyed by the name of the nft set.
    timeouts: HashMap<&'a str, u32>,
}

impl<'a> Reader<'a> {
    fn of(table: &'a NftTable, family: Family) -> Reader<'a> {
        let mut chains: HashMap<_, Vec<_>> = HashMap::new();
        for rule in table.of_kind("rule") {
            let chain = rule.get("chain").and_then(Value::as_str);
            let expr = rule.get("expr").and_then(Value::as_array);
            if let (Some(chain), Some(expr)) = (chain, expr) {
                chains.entry(chain).or_default().push(expr);
            }
        }
        let timeout = |set: &'a serde_json::Map<String, Value>| {
            let seconds = set.get("timeout")?.as_u64()?;
            Some((set.get("name")?.as_str()?, u32::try_from(seconds).ok()?))
        };
        let timeouts = table.of_kind("set").filter_map(timeout).collect();
        Reader { table, family, chains, timeouts }
    }

    fn read(&self, found: &mut Services, wanted: &ServiceFilter<'_>) {
        for map in self.table.of_kind("map") {
            let kind = map.get("name").and_then(Value::as_str).unwrap_or_default();
            let known = [
                "service-ips",
                "service-nodeports",
                "no-endpoint-services",
                "no-endpoint-nodeports",
                "firewall-ips",
            ];
            let Some(elements) = map.get("elem").filter(|_| known.contains(&kind)) else {
                continue;
            };
            for element in elements.as_array().into_iter().flatten() {
                let Some((key, comment, target)) = self.element(element) else { continue };
                let name = comment.map(str::to_owned).or_else(|| name(target));
                if !wanted(&key, name.as_deref()) {
                    continue;
                }
                let service = found.entry(key).or_default();
                service.name = service.name.take().or(name);
                match kind {
                    "firewall-ips" => self.ranges(target, service),
                    _ => self.follow(target, service, DEPTH),
                }
            }
        }
    }

    /// Reads an element of a verdict map: `[{"concat": ["10.96.0.10", "udp", 53]}, {"goto":
    /// {"target": "…"}}]`. If the key has a comment, nft wraps the key in an `elem`.
    fn element(&self, element: &'a Value) -> Option<(ServiceKey, Option<&'a str>, &'a str)> {
        let key = element.get(0)?;
        let verdict = element.get(1)?;
        let inner = key.get("elem");
        let comment = inner.and_then(|e| e.get("comment")).and_then(Value::as_str);
        let concat = inner.and_then(|e| e.get("val")).unwrap_or(key).get("concat")?.as_array()?;
        let (location, rest) = match &concat[..] {
            [address, rest @ ..] if rest.len() == 2 => {
                (Location::Address(address.as_str()?.parse().ok()?), rest)
            }
            rest => (Location::Node(self.family), rest),
        };
        let [name, port] = rest else { return None };
        let protocol = protocol(name.as_str()?)?;
        let port = u16::try_from(port.as_u64()?).ok()?;
        Some((ServiceKey { location, port, protocol }, comment, target(verdict)?))
    }

    /// Adds the endpoints that a chain leads to. Rules that match a source are skipped.
    fn follow(&self, chain: &str, service: &mut ServicePort, depth: usize) {
        if depth == 0 {
            return;
        }
        for expr in self.chains.get(chain).into_iter().flatten() {
            if let Some(set) = expr.iter().find_map(affinity) {
                service.affinity = self.timeouts.get(set).copied().or(service.affinity);
                continue;
            }
            if expr.iter().any(by_source) {
                continue;
            }
            for statement in *expr {
                if let Some(to) = target(statement) {
                    self.follow(to, service, depth - 1);
                }
                if let Some(choices) = statement.pointer("/vmap/data/set").and_then(Value::as_array)
                {
                    for to in choices.iter().filter_map(|c| target(c.get(1)?)) {
                        self.follow(to, service, depth - 1);
                    }
                }
                service.backends.extend(statement.get("dnat").into_iter().flat_map(endpoints));
            }
        }
    }

    /// Adds the source ranges that a service's firewall chain accepts.
    fn ranges(&self, chain: &str, service: &mut ServicePort) {
        let networks = |right: &Value| -> Vec<IpNet> {
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
        };
        for statement in self.chains.get(chain).into_iter().flatten().copied().flatten() {
            let right = statement.pointer("/match/right").filter(|_| by_source(statement));
            service.source_ranges.extend(right.map(networks).into_iter().flatten());
        }
    }
}

/// The chain that a jump or goto leads to.
fn target(statement: &Value) -> Option<&str> {
    let verdict = statement.get("goto").or_else(|| statement.get("jump"))?;
    verdict.get("target")?.as_str().filter(|t| *t != "mark-for-masquerade")
}

/// True if the statement matches the source of packets: traffic of pods, of the node, or of one
/// client.
fn by_source(statement: &Value) -> bool {
    let Some(left) = statement.pointer("/match/left") else { return false };
    let field = left.pointer("/payload/field").and_then(Value::as_str);
    field == Some("saddr") || left.get("fib").is_some()
}

/// The affinity set (an nft set) that the statement matches.
fn affinity(statement: &Value) -> Option<&str> {
    statement.pointer("/match/right")?.as_str()?.strip_prefix('@')
}

/// The endpoints that a `dnat` leads to: one address and port, or a map of `address . port` from
/// which each connection gets one. kube-proxy writes such maps for services without affinity
/// (1.37.2; 1.34.4 has a chain for every endpoint).
fn endpoints(dnat: &Value) -> Vec<SocketAddr> {
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

/// The service name in a chain's name: `shop/web:http` of `service-KHN6ECMT-shop/web/tcp/http`.
fn name(chain: &str) -> Option<String> {
    let mut parts = chain.splitn(3, '-').nth(2)?.split('/');
    let (namespace, service) = (parts.next()?, parts.next()?);
    let port = parts.nth(1).unwrap_or_default();
    let colon = if port.is_empty() { "" } else { ":" };
    Some(format!("{namespace}/{service}{colon}{port}"))
}
