//! Services, read from the maps and chains of kube-proxy's own nf_tables tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value};

use super::TABLE;
use super::expressions::{affinity, by_source, endpoints, marks, target};
use crate::kube_proxy::mode::ServiceFilter;
use crate::kube_proxy::reach::{NoEndpoint, Reach};
use crate::kube_proxy::services::{
    Location, ServiceKey, ServicePort, Services, StickyClients, protocol,
};
use crate::state::nft::{NftTable, networks};
use crate::state::{Family, NodeState};

/// The maps that have an element for each service port.
pub(super) const SERVICE_MAPS: [&str; 5] = [
    "service-ips",
    "service-nodeports",
    "no-endpoint-services",
    "no-endpoint-nodeports",
    "firewall-ips",
];

/// The set of the addresses at which NodePorts answer.
const NODE_PORT_ADDRESSES: &str = "nodeport-ips";

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

/// Whether NodePorts are answered at any address. The set of these is not there where it is all of the
/// node's (`MatchAll` in syncProxyRules of kube-proxy); one that holds nothing leaves none.
pub(super) fn answer_node_ports(state: &NodeState, family: Family) -> bool {
    let Some(table) = state.nft.get(family.nft(), TABLE) else { return true };
    set(table, NODE_PORT_ADDRESSES).is_none_or(|set| elements(set).next().is_some())
}

/// Which endpoint each client of a service stays with: who is in the affinity set of an endpoint that a
/// rule of the service asks. The first of these rules decides.
pub(super) fn sticky_clients(state: &NodeState) -> StickyClients {
    let mut found = StickyClients::new();
    for family in Family::ALL {
        let Some(table) = state.nft.get(family.nft(), TABLE) else { continue };
        let (reader, sets) = (Reader::of(table, family), clients_of_sets(table));
        if sets.is_empty() {
            continue;
        }
        for (kind, element) in reader.map_elements() {
            let Some((key, _, Some(chain))) = reader.element(element) else { continue };
            if kind != "firewall-ips" {
                let mut clients = BTreeMap::new();
                reader.stay(chain, &sets, &mut clients, DEPTH);
                if !clients.is_empty() {
                    found.insert(key, clients);
                }
            }
        }
    }
    found
}

/// The addresses that are elements of nft sets, by the name of the set, without empty ones.
fn clients_of_sets(table: &NftTable) -> HashMap<&str, Vec<IpAddr>> {
    let clients = table.of_kind("set").filter_map(|set| {
        let name = set.get("name")?.as_str()?;
        let clients = elements(set).filter_map(|element| element.as_str()?.parse().ok());
        Some((name, clients.collect::<Vec<IpAddr>>()))
    });
    clients.filter(|(_, clients)| !clients.is_empty()).collect()
}

fn set<'a>(table: &'a NftTable, name: &str) -> Option<&'a Map<String, Value>> {
    table.of_kind("set").find(|set| set.get("name").is_some_and(|n| n == name))
}

/// The elements of an nft set, without the counters and comments that they may have.
fn elements(set: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let elements = set.get("elem").and_then(Value::as_array);
    elements.into_iter().flatten().map(|e| e.pointer("/elem/val").unwrap_or(e))
}

struct Reader<'a> {
    table: &'a NftTable,
    family: Family,
    /// The expressions of each rule, keyed by chain name.
    chains: HashMap<&'a str, Vec<&'a Vec<Value>>>,
    /// The timeout of each affinity set in seconds, keyed by the name of the nft set.
    timeouts: HashMap<&'a str, u32>,
    /// Whether everything that goes to a ClusterIP is masqueraded, by one rule for all (from 1.36 on).
    masquerades_all: bool,
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
        let timeout = |set: &'a Map<String, Value>| {
            let seconds = set.get("timeout")?.as_u64()?;
            Some((set.get("name")?.as_str()?, u32::try_from(seconds).ok()?))
        };
        let timeouts = table.of_kind("set").filter_map(timeout).collect();
        let shared = chains.get("services").into_iter().flatten();
        let masquerades_all =
            shared.filter(|expr| marks(expr)).any(|expr| !expr.iter().any(by_source));
        Reader { table, family, chains, timeouts, masquerades_all }
    }

    fn read(&self, found: &mut Services, wanted: &ServiceFilter<'_>) {
        for (kind, element) in self.map_elements() {
            let Some((key, comment, target)) = self.element(element) else { continue };
            let name = comment.map(str::to_owned).or_else(|| name(target?));
            if !wanted(&key, name.as_deref()) {
                continue;
            }
            let service = found.entry(key).or_default();
            service.name = service.name.take().or(name);
            match (kind, target) {
                ("firewall-ips", Some(chain)) => self.ranges(chain, service),
                (_, Some(chain)) => {
                    self.follow(chain, service, DEPTH);
                    // The chain that refuses what has no endpoint leads nowhere.
                    if chain.contains('/') {
                        service.reach = self.reach(chain);
                    }
                }
                (_, None) => service.without = NoEndpoint::Drop,
            }
        }
        self.allowed(found);
        let addresses = self.elements(NODE_PORT_ADDRESSES).filter_map(|e| e.as_str()?.parse().ok());
        let addresses: BTreeSet<IpAddr> = addresses.collect();
        let own = |key: &ServiceKey| key.location == Location::Node(self.family);
        for (_, service) in found.iter_mut().filter(|(key, _)| own(key)) {
            service.node_addresses.clone_from(&addresses);
        }
    }

    /// The elements of the maps of services, each with the name of its map.
    fn map_elements(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let maps = self.table.of_kind("map").filter_map(|map| {
            let name = map.get("name")?.as_str().filter(|name| SERVICE_MAPS.contains(name))?;
            Some((name, map.get("elem")?.as_array()?))
        });
        maps.flat_map(|(name, elements)| elements.iter().map(move |element| (name, element)))
    }

    fn elements(&self, name: &str) -> impl Iterator<Item = &'a Value> {
        set(self.table, name).into_iter().flat_map(elements)
    }

    /// Adds the source ranges of 1.29, which has them in one set: `10.0.0.1 . tcp . 80 . 10.0.0.0/8`.
    fn allowed(&self, found: &mut Services) {
        for element in self.elements("firewall-allow") {
            let Some([address @ .., range]) = element["concat"].as_array().map(Vec::as_slice)
            else {
                continue;
            };
            let Some(service) =
                service_port(self.family, address).and_then(|key| found.get_mut(&key))
            else {
                continue;
            };
            service.source_ranges.extend(networks(range));
        }
    }

    /// Reads an element of a verdict map: `[{"concat": ["10.96.0.10", "udp", 53]}, {"goto":
    /// {"target": "…"}}]`. If the key has a comment, nft wraps the key in an `elem`. There is no chain
    /// if packets are dropped: no endpoint of a policy `Local` is on this node.
    fn element(
        &self,
        element: &'a Value,
    ) -> Option<(ServiceKey, Option<&'a str>, Option<&'a str>)> {
        let key = element.get(0)?;
        let verdict = element.get(1)?;
        let inner = key.get("elem");
        let comment = inner.and_then(|e| e.get("comment")).and_then(Value::as_str);
        let concat = inner.and_then(|e| e.get("val")).unwrap_or(key).get("concat")?.as_array()?;
        let target = target(verdict);
        let serves = target.is_some() || verdict.get("drop").is_some();
        serves.then_some((service_port(self.family, concat)?, comment, target))
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

    /// Adds who stays with an endpoint that a chain leads to: pods too, whom a rule of their own leads
    /// on.
    fn stay(
        &self,
        chain: &str,
        sets: &HashMap<&str, Vec<IpAddr>>,
        clients: &mut BTreeMap<IpAddr, SocketAddr>,
        depth: usize,
    ) {
        if depth == 0 {
            return;
        }
        for expr in self.chains.get(chain).into_iter().flatten() {
            let Some(to) = expr.iter().find_map(target) else { continue };
            let Some(set) = expr.iter().find_map(affinity) else {
                self.stay(to, sets, clients, depth - 1);
                continue;
            };
            let mut own = ServicePort::default();
            self.follow(to, &mut own, 1);
            let Some(endpoint) = own.backends.first() else { continue };
            for client in sets.get(set).into_iter().flatten() {
                clients.entry(*client).or_insert(*endpoint);
            }
        }
    }

    /// From where the service port is reached whose map leads to this chain. The rule of
    /// `masqueradeAll` matches the address of the service; the rule for clients that are no pods
    /// matches their address or link too.
    fn reach(&self, chain: &str) -> Reach {
        let rules = || self.chains.get(chain).into_iter().flatten();
        if rules().any(|expr| marks(expr) && !expr.iter().any(by_source)) {
            return Reach::Everyone;
        }
        if !chain.starts_with("external-") {
            return if self.masquerades_all { Reach::Everyone } else { Reach::Cluster };
        }
        let mut everywhere = ServicePort::default();
        let goes_on = |expr: &&&Vec<Value>| expr.iter().any(by_source);
        if let Some(to) = rules().filter(goes_on).find_map(|expr| expr.iter().find_map(target)) {
            self.follow(to, &mut everywhere, DEPTH);
        }
        Reach::Local { everywhere: Some(everywhere.backends) }
    }

    /// Adds the source ranges that a service's firewall chain accepts.
    fn ranges(&self, chain: &str, service: &mut ServicePort) {
        for statement in self.chains.get(chain).into_iter().flatten().copied().flatten() {
            let right = statement.pointer("/match/right").filter(|_| by_source(statement));
            service.source_ranges.extend(right.map(networks).into_iter().flatten());
        }
    }
}

/// The service port of a protocol and a port, which may have an address before them.
pub(super) fn service_port(family: Family, concat: &[Value]) -> Option<ServiceKey> {
    let (location, rest) = match concat {
        [address, rest @ ..] if rest.len() == 2 => {
            (Location::Address(address.as_str()?.parse().ok()?), rest)
        }
        rest => (Location::Node(family), rest),
    };
    let [name, port] = rest else { return None };
    let protocol = protocol(name.as_str()?)?;
    let port = u16::try_from(port.as_u64()?).ok()?;
    Some(ServiceKey { location, port, protocol })
}

/// The service name in a chain's name: `shop/web:http` of `service-KHN6ECMT-shop/web/tcp/http`.
fn name(chain: &str) -> Option<String> {
    let mut parts = chain.splitn(3, '-').nth(2)?.split('/');
    let (namespace, service) = (parts.next()?, parts.next()?);
    let port = parts.nth(1).unwrap_or_default();
    let colon = if port.is_empty() { "" } else { ":" };
    Some(format!("{namespace}/{service}{colon}{port}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::state::nft::NftTables;

    /// The services of a table `ip kube-proxy` with these objects, each as one line.
    fn services(objects: &Value) -> Vec<String> {
        let text = json!({ "nftables": objects }).to_string();
        let state =
            NodeState { nft: NftTables::parse("nft.json", &text).unwrap(), ..NodeState::default() };
        let line = |(key, service): (&ServiceKey, &ServicePort)| {
            let ServicePort { name, backends, source_ranges, node_addresses, .. } = service;
            format!("{key} {name:?} {backends:?} {source_ranges:?} {node_addresses:?}")
        };
        read(&state, &|_, _| true).iter().map(line).collect()
    }

    fn object(kind: &str, name: &str, mut body: Value) -> Value {
        body["family"] = json!("ip");
        body["table"] = json!("kube-proxy");
        body[if kind == "rule" { "chain" } else { "name" }] = json!(name);
        json!({ kind: body })
    }

    /// What 1.29 writes for a load balancer with source ranges, as its own tests have it: the ranges
    /// are elements of one set, and NodePorts answer on every address of the node.
    #[test]
    fn the_ranges_of_1_29_are_in_one_set() {
        let service = "service-ULMVA6XW-ns1/svc1/tcp/p80";
        let external = "external-ULMVA6XW-ns1/svc1/tcp/p80";
        let endpoint = "endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80";
        let to = |chain: &str| json!({"goto": {"target": chain}});
        let objects = json!([
            {"table": {"family": "ip", "name": "kube-proxy"}},
            object("set", "firewall", json!({"elem": [{"concat": ["1.2.3.4", "tcp", 80]}]})),
            object("set", "firewall-allow", json!({"elem": [
                {"concat": ["1.2.3.4", "tcp", 80, {"prefix": {"addr": "203.0.113.0", "len": 25}}]},
                {"elem": {"val": {"concat": ["1.2.3.4", "tcp", 80, "192.0.2.7"]}, "comment": "x"}},
                {"concat": ["1.2.3.9", "tcp", 80, "192.0.2.7"]},
            ]})),
            object("map", "service-ips", json!({"elem": [
                [{"concat": ["172.30.0.41", "tcp", 80]}, to(service)],
                [{"concat": ["1.2.3.4", "tcp", 80]}, to(external)],
            ]})),
            object("map", "service-nodeports", json!({"elem": [
                [{"concat": ["tcp", 3001]}, to(external)],
            ]})),
            object("rule", external, json!({"expr": [{"jump": {"target": "mark-for-masquerade"}}]})),
            object("rule", external, json!({"expr": [to(service)]})),
            object("rule", service, json!({"expr": [{"vmap": {"key": {"numgen": {"mode": "random",
                "mod": 1, "offset": 0}}, "data": {"set": [[0, to(endpoint)]]}}}]})),
            object("rule", endpoint, json!({"expr": [
                {"dnat": {"addr": "10.180.0.1", "port": 8080}}]})),
        ]);
        assert_eq!(
            services(&objects),
            [
                "1.2.3.4:80/tcp Some(\"ns1/svc1:p80\") {10.180.0.1:8080} \
                 {192.0.2.7/32, 203.0.113.0/25} {}",
                "172.30.0.41:80/tcp Some(\"ns1/svc1:p80\") {10.180.0.1:8080} {} {}",
                "node port 3001/tcp Some(\"ns1/svc1:p80\") {10.180.0.1:8080} {} {}",
            ]
        );
    }

    /// No endpoint of a policy `Local` is on the node: packets are dropped, and the service is there.
    #[test]
    fn what_is_dropped_is_a_service_without_endpoints() {
        let key = |concat: Value| json!({"elem": {"val": {"concat": concat}, "comment": "ns/s:p"}});
        let objects = json!([
            object("set", "nodeport-ips", json!({"elem": ["10.0.0.1", "10.0.0.2"]})),
            object(
                "map",
                "no-endpoint-services",
                json!({"elem": [
                    [key(json!(["1.2.3.4", "udp", 53])), {"drop": null}],
                    [key(json!(["10.96.0.1", "sctp", 7])), {"goto": {"target": "reject-chain"}}],
                    [key(json!(["10.96.0.2", "tcp", 7])), {"accept": null}],
                ]})
            ),
            object(
                "map",
                "no-endpoint-nodeports",
                json!({"elem": [
                    [key(json!(["tcp", 30000])), {"drop": null}],
                ]})
            ),
        ]);
        assert_eq!(
            services(&objects),
            [
                "1.2.3.4:53/udp Some(\"ns/s:p\") {} {} {}",
                "10.96.0.1:7/sctp Some(\"ns/s:p\") {} {} {}",
                "node port 30000/tcp Some(\"ns/s:p\") {} {} {10.0.0.1, 10.0.0.2}",
            ]
        );
    }
}
