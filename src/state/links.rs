//! Parsers of `ip -j -d addr`, `ip -j route show table all` and `ip -j rule`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::lines;
use crate::error::{Error, Kind, LONGEST_NAME, Result, shortened};

/// Fields in a link's `info_data` that change without a writer: timers, and what a bridge or a bond
/// elects.
const MOVING_DATA: &[&str] = &[
    "ad_info",
    "active_slave",
    "bridge_id",
    "gc_timer",
    "hello_timer",
    "root_id",
    "root_path_cost",
    "root_port",
    "tcn_timer",
    "topology_change",
    "topology_change_detected",
    "topology_change_timer",
];

/// Fields of a routing rule that change without a writer, because they only say whether the rule's
/// link exists.
const MOVING_RULE: &[&str] = &["iif_detached", "oif_detached"];

/// A network link with its addresses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Link {
    /// The link's name: `docker0`.
    pub name: String,
    /// The link's kind: `bridge`, `veth`, `dummy`, `vxlan`; none for hardware and `lo`.
    pub kind: Option<String>,
    /// Whether the link is set up (flag `UP`), which does not mean that packets pass.
    pub up: bool,
    /// The size of the largest packet, in bytes.
    pub mtu: u32,
    /// The hardware address; none for links without one.
    pub mac: Option<String>,
    /// The name of the bridge or bond that the link belongs to.
    pub master: Option<String>,
    /// The link's addresses, each with the prefix length of its network.
    pub addresses: Vec<IpNet>,
    /// The fields that only this kind of link has (`linkinfo.info_data`), unchanged.
    pub data: Map<String, Value>,
}

/// A route of any routing table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Route {
    /// The route's type: `unicast`, `local`, `broadcast`, `blackhole`.
    #[serde(rename = "type", default = "unicast")]
    pub kind: String,
    /// The destination as `ip` prints it: `default`, `10.0.0.0/24`, `10.0.0.7`.
    pub dst: String,
    /// The address of the next hop; none for a route without a gateway.
    pub gateway: Option<IpAddr>,
    /// The name of the outgoing link.
    pub dev: Option<String>,
    /// The routing table: `main`, `local`, or a number.
    #[serde(default = "main")]
    pub table: String,
    /// What made the route: `kernel`, `bird`, `dhcp`; `boot` means an operator with `ip`.
    #[serde(default = "boot")]
    pub protocol: String,
    /// The route's scope: `global`, `link`, `host`.
    #[serde(default = "global")]
    pub scope: String,
    /// The preferred source address.
    pub prefsrc: Option<IpAddr>,
    /// The metric; of two routes to one destination the lower metric wins.
    pub metric: Option<u32>,
    /// A next hop of the other address family (`{"family": "inet6", "host": "fe80::1"}`),
    /// unchanged.
    pub via: Option<Value>,
    /// The list of next hops of a route that has several, unchanged.
    pub nexthops: Option<Value>,
}

/// A routing rule, which says for which packets a routing table is looked up.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PolicyRule {
    /// The rule's priority; the rule with the lowest number is tried first.
    pub priority: u32,
    /// The routing table to look up; none if the rule has another action.
    pub table: Option<String>,
    /// All other fields of the rule (`src`, `fwmark`, `iif`, `action`), unchanged.
    #[serde(flatten)]
    pub selector: Map<String, Value>,
}

// The values of the fields that `ip` omits without `-d` (details).

fn unicast() -> String {
    "unicast".to_owned()
}

fn boot() -> String {
    "boot".to_owned()
}

fn global() -> String {
    "global".to_owned()
}

fn main() -> String {
    "main".to_owned()
}

/// A link as `ip` prints it. Some versions of `ip` print `{}` for a link that was filtered out.
#[derive(Deserialize)]
struct RawLink {
    ifname: Option<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    mtu: u32,
    address: Option<String>,
    master: Option<String>,
    #[serde(default)]
    linkinfo: RawInfo,
    #[serde(default)]
    addr_info: Vec<RawAddress>,
}

#[derive(Deserialize, Default)]
struct RawInfo {
    info_kind: Option<String>,
    #[serde(default)]
    info_data: Map<String, Value>,
}

#[derive(Deserialize)]
struct RawAddress {
    local: Option<IpAddr>,
    prefixlen: Option<u8>,
}

/// Parses `ip -j -d addr`. Errors name `file` and the line.
pub fn parse_links(file: &str, text: &str) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    for raw in list::<RawLink>(file, text)? {
        let Some(name) = raw.ifname else { continue };
        named(file, raw.master.iter().chain([&name]))?;
        let mut addresses = Vec::new();
        for address in raw.addr_info {
            let (Some(local), Some(length)) = (address.local, address.prefixlen) else { continue };
            let address = IpNet::new(local, length).map_err(|_| {
                let cause = format!("{name} has {local} with a network of {length} bits");
                Error::new(Kind::Parse, file, cause)
            })?;
            addresses.push(address);
        }
        links.push(Link {
            name,
            kind: raw.linkinfo.info_kind,
            up: raw.flags.iter().any(|flag| flag == "UP"),
            mtu: raw.mtu,
            mac: raw.address,
            master: raw.master,
            addresses,
            data: raw.linkinfo.info_data,
        });
    }
    Ok(links)
}

/// Parses `ip -j route show table all`. Errors name `file` and the line.
pub fn parse_routes(file: &str, text: &str) -> Result<Vec<Route>> {
    let routes = list::<Route>(file, text)?;
    named(file, routes.iter().filter_map(|route| route.dev.as_ref()))?;
    for word in routes.iter().flat_map(|r| [&r.kind, &r.dst, &r.table, &r.protocol, &r.scope]) {
        if !word.chars().all(|c| c.is_ascii_alphanumeric() || "_.:/-".contains(c)) {
            let cause = format!("{:?} is no word of a route", shortened(word, LONGEST_NAME));
            return Err(Error::new(Kind::Parse, file, cause));
        }
    }
    Ok(routes)
}

/// Refuses names that the kernel gives to no link. They would be more than a name to the programs
/// that they are handed to.
fn named<'a>(file: &str, names: impl IntoIterator<Item = &'a String>) -> Result<()> {
    match names.into_iter().find(|name| !is_link_name(name)) {
        Some(name) => {
            let cause = format!("{:?} is no name of a link", shortened(name, LONGEST_NAME));
            Err(Error::new(Kind::Parse, file, cause))
        }
        None => Ok(()),
    }
}

/// The kernel's rule for names of links (`dev_valid_name` in net/core/dev.c). It allows all other
/// bytes, even control characters.
fn is_link_name(name: &str) -> bool {
    (1..=15).contains(&name.chars().count())
        && ![".", ".."].contains(&name)
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_ascii_whitespace() || c == '\u{b}')
}

/// Parses `ip -j rule`. Errors name `file` and the line.
pub fn parse_rules(file: &str, text: &str) -> Result<Vec<PolicyRule>> {
    list(file, text)
}

/// Whether a name of a link consists of the usual characters.
pub fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.@+".contains(c))
}

fn list<T: DeserializeOwned>(file: &str, text: &str) -> Result<Vec<T>> {
    serde_json::from_str(text).map_err(|e| Error::new(Kind::Parse, file, e))
}

impl Link {
    /// The networks of the link's addresses, without IPv6 link-local ones: for docker0,
    /// `172.17.0.0/16`.
    pub fn networks(&self) -> Vec<IpNet> {
        let local =
            |net: &IpNet| matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
        self.addresses.iter().filter(|net| !local(net)).map(IpNet::trunc).collect()
    }

    fn facts(&self) -> Vec<String> {
        let name = &self.name;
        let text = |field: &Option<String>| field.clone().unwrap_or_else(|| "none".to_owned());
        let mut facts = vec![format!(
            "link {name} kind {} {} mtu {} mac {} master {}",
            text(&self.kind),
            if self.up { "up" } else { "down" },
            self.mtu,
            text(&self.mac),
            text(&self.master),
        )];
        facts.extend(self.addresses.iter().map(|address| format!("link {name} address {address}")));
        let set = self.data.iter().filter(|(field, _)| !MOVING_DATA.contains(&field.as_str()));
        facts.extend(set.map(|(field, value)| format!("link {name} {field} {value}")));
        facts
    }
}

impl Route {
    /// The route's destination as a network; none for `default`.
    pub fn network(&self) -> Option<IpNet> {
        let address = |_| self.dst.parse::<IpAddr>().map(IpNet::from);
        self.dst.parse().or_else(address).ok()
    }

    fn fact(&self) -> String {
        let Route { kind, dst, table, protocol, scope, .. } = self;
        let mut fact =
            format!("route {kind} {dst} table {table} protocol {protocol} scope {scope}");
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                fact.push_str(&format!(" {name} {value}"));
            }
        };
        add("gateway", self.gateway.map(|gateway| gateway.to_string()));
        add("via", self.via.as_ref().map(Value::to_string));
        add("dev", self.dev.clone());
        add("prefsrc", self.prefsrc.map(|address| address.to_string()));
        add("metric", self.metric.map(|metric| metric.to_string()));
        add("nexthops", self.nexthops.clone().map(without_flags));
        fact
    }
}

/// Next hops without their `flags`, which only tell the momentary state of the link.
fn without_flags(mut hops: Value) -> String {
    for hop in hops.as_array_mut().into_iter().flatten() {
        if let Some(hop) = hop.as_object_mut() {
            hop.shift_remove("flags");
        }
    }
    hops.to_string()
}

impl PolicyRule {
    fn fact(&self) -> String {
        let mut selector = self.selector.clone();
        selector.retain(|field, _| !MOVING_RULE.contains(&field.as_str()));
        selector.sort_keys();
        let table = self.table.as_deref().unwrap_or("none");
        format!("rule {} table {table} {}", self.priority, Value::Object(selector))
    }
}

/// Links and addresses that are only in `after` (`+`) or only in `before` (`-`). Indexes,
/// operational states, lifetimes, statistics, timers and elected bridges do not count.
pub fn link_differences(before: &[Link], after: &[Link]) -> Vec<String> {
    let facts = |links: &[Link]| links.iter().flat_map(Link::facts).collect();
    lines::differences(facts(before), facts(after))
}

/// Routes that are only in `after` (`+`) or only in `before` (`-`). The state of the links and
/// remaining lifetimes do not count.
pub fn route_differences(before: &[Route], after: &[Route]) -> Vec<String> {
    let facts = |routes: &[Route]| routes.iter().map(Route::fact).collect();
    lines::differences(facts(before), facts(after))
}

/// Routing rules that are only in `after` (`+`) or only in `before` (`-`).
pub fn rule_differences(before: &[PolicyRule], after: &[PolicyRule]) -> Vec<String> {
    let facts = |rules: &[PolicyRule]| rules.iter().map(PolicyRule::fact).collect();
    lines::differences(facts(before), facts(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_command() {
        for name in ["a\\nnetns add z", "a b", "a/b", "a:b", "..", "", "sixteen-letters-"] {
            let links = format!("[{{\"ifname\": \"{name}\"}}]");
            assert!(parse_links("addr.json", &links).is_err(), "{name}");
            let routes = format!("[{{\"dst\": \"default\", \"dev\": \"{name}\"}}]");
            assert!(parse_routes("route.json", &routes).is_err(), "{name}");
        }
        let routes = "[{\"dst\": \"default\\nnetns exec z sh\", \"dev\": \"eth0\"}]";
        assert!(parse_routes("route.json", routes).is_err());
        for name in ["eth0", "a\u{fffd}", "\\u001b[31m", "br-1@x", "#x", "help"] {
            let links = format!("[{{\"ifname\": \"{name}\"}}]");
            assert!(parse_links("addr.json", &links).is_ok(), "{name}");
        }
        assert!(is_plain("br-0a1b") && is_plain("eth0.5") && !is_plain("#x") && !is_plain("-x"));
    }

    fn bridge(index: u32, timer: f32, lifetime: u32, state: &str, address: &str) -> Vec<Link> {
        let text = format!(
            r#"[{{}},{{"ifindex":{index},"ifname":"docker0","flags":["NO-CARRIER","UP"],"mtu":1500,
            "operstate":"{state}","address":"02:42:f6:01:90:30","stats64":{{"rx":{{"bytes":{index}}}}},
            "linkinfo":{{"info_kind":"bridge","info_data":{{"stp_state":0,"gc_timer":{timer}}}}},
            "addr_info":[{{"family":"inet","local":"{address}","prefixlen":16,
                "valid_life_time":{lifetime}}},
                {{"family":"inet6","local":"fe80::1","prefixlen":64}}]}}]"#
        );
        parse_links("addr.json", &text).unwrap()
    }

    #[test]
    fn a_bridge_and_its_networks() {
        let links = bridge(2, 43.28, 7, "DOWN", "172.17.0.1");
        assert_eq!(links.len(), 1);
        let link = &links[0];
        assert_eq!((link.name.as_str(), link.kind.as_deref()), ("docker0", Some("bridge")));
        assert!(link.up);
        assert_eq!(link.networks(), ["172.17.0.0/16".parse().unwrap()]);
        assert_eq!(link.addresses.len(), 2);
    }

    #[test]
    fn what_moves_by_itself_is_no_difference() {
        let before = bridge(2, 43.28, 7, "DOWN", "172.17.0.1");
        let after = bridge(9, 1.5, 6, "UP", "172.17.0.1");
        assert_eq!(link_differences(&before, &after), Vec::<String>::new());
        let after = bridge(2, 43.28, 7, "DOWN", "172.18.0.1");
        assert_eq!(
            link_differences(&before, &after),
            ["- link docker0 address 172.17.0.1/16", "+ link docker0 address 172.18.0.1/16"]
        );
    }

    #[test]
    fn routes_and_rules() {
        let routes = |metric: u32, flag: &str| {
            let text = format!(
                r#"[{{"dst":"default","gateway":"10.9.0.1","dev":"n1","metric":{metric},"flags":[]}},
                {{"type":"local","dst":"10.9.0.2","dev":"n1","table":"local","flags":["{flag}"]}},
                {{"dst":"10.0.0.0/24","nexthops":[{{"dev":"a","flags":["{flag}"]}}],"cache":[]}}]"#
            );
            parse_routes("route.json", &text).unwrap()
        };
        let detailed = r#"[{"type":"unicast","dst":"10.0.0.0/24","dev":"a","table":"main",
            "protocol":"boot","scope":"global"}]"#;
        let plain = parse_routes("route.json", r#"[{"dst":"10.0.0.0/24","dev":"a"}]"#).unwrap();
        assert_eq!(parse_routes("route.json", detailed).unwrap(), plain);
        let before = routes(1, "");
        assert_eq!((before[0].network(), before[0].table.as_str()), (None, "main"));
        assert_eq!(before[1].network(), Some("10.9.0.2/32".parse().unwrap()));
        assert_eq!(before[2].network(), Some("10.0.0.0/24".parse().unwrap()));
        assert!(route_differences(&before, &routes(1, "linkdown")).is_empty());
        assert_eq!(route_differences(&before, &routes(2, "")).len(), 2);

        let rules = |more: &str| {
            let text =
                format!(r#"[{{"priority":100,"src":"all","fwmark":"0x1"{more},"table":"7"}}]"#);
            parse_rules("rule.json", &text).unwrap()
        };
        assert_eq!(rules("")[0].selector["fwmark"], "0x1");
        assert!(rule_differences(&rules(""), &rules(r#","iif_detached":null"#)).is_empty());
        assert_eq!(rule_differences(&rules(""), &rules(r#","iif":"n1""#)).len(), 2);
    }

    #[test]
    fn errors_name_file_and_line() {
        let error = parse_links("addr.json", "[{\"ifname\": \"a\"},\n{\"ifna").unwrap_err();
        assert_eq!(error.object, "addr.json");
        assert!(error.cause.contains("at line 2"), "{error}");
        let text = r#"[{"ifname":"a","addr_info":[{"local":"10.0.0.1","prefixlen":33}]}]"#;
        let error = parse_links("addr.json", text).unwrap_err().to_string();
        assert_eq!(error, "addr.json: a has 10.0.0.1 with a network of 33 bits");
        assert!(parse_routes("route.json", r#"[{"dev":"a"}]"#).is_err());
    }
}
