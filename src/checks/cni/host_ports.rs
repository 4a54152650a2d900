//! The host ports that portmap's rules serve, in iptables and in tables of its own.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::state::nft::NftTable;
use crate::state::rule::Words;
use crate::state::ruleset::{Rule, Ruleset, Table};
use crate::state::{NodeState, RulesetId};

/// The chain in which portmap has a rule for each pod with host ports. The rule jumps to the pod's
/// own chain.
const PORTS: &str = "CNI-HOSTPORT-DNAT";
/// The table of portmap's nftables back end, and its chains, in the order in which they are asked.
const TABLE: &str = "cni_hostport";
const CHAINS: [&str; 2] = ["hostip_hostports", "hostports"];

/// One rule for host ports of a pod.
pub(super) struct HostPort {
    /// Where the rule is, and its text.
    pub(super) shown: String,
    /// Which rules are asked one after the other: those of one table.
    place: String,
    /// Whose the rule is: the pod's chain, or its id.
    whose: String,
    /// The packets that the rule translates.
    packets: Vec<Packets>,
    /// The addresses of the pods to which it sends them.
    pub(super) pods: Vec<IpAddr>,
}

impl HostPort {
    /// A port of `later` whose packets this rule translates first. Rules of the same pod are no
    /// rivals.
    pub(super) fn takes_from(&self, later: &HostPort) -> Option<u16> {
        if self.place != later.place || self.whose == later.whose {
            return None;
        }
        self.packets.iter().find_map(|p| later.packets.iter().find_map(|q| p.covers(q)))
    }
}

/// Packets to some ports of the node.
struct Packets {
    protocol: String,
    /// The node's address to which the ports are bound; any if there is none.
    to: Option<String>,
    first: u16,
    last: u16,
}

impl Packets {
    /// A port at which all packets of `other` are also of `self`.
    fn covers(&self, other: &Packets) -> Option<u16> {
        let address = self.to.is_none() || self.to == other.to;
        let port = self.first.max(other.first);
        (self.protocol == other.protocol && address && port <= self.last.min(other.last))
            .then_some(port)
    }
}

/// The rules for host ports, in the order in which packets meet them.
pub(super) fn host_ports(state: &NodeState) -> Vec<HostPort> {
    let mut found: Vec<HostPort> = Vec::new();
    for (id, ruleset) in &state.rulesets {
        let Some(table) = ruleset.table("nat") else { continue };
        let rules = table.chain(PORTS).into_iter().flat_map(|chain| &chain.rules);
        found.extend(rules.filter_map(|rule| of_jump(*id, ruleset, table, rule)));
    }
    for table in state.native_tables().into_iter().filter(|t| t.name == TABLE) {
        for chain in CHAINS {
            let rules = table.of_kind("rule").filter(|rule| rule["chain"] == chain);
            found.extend(rules.filter_map(|rule| of_native(table, chain, rule)));
        }
    }
    found
}

fn of_jump(id: RulesetId, ruleset: &Ruleset, table: &Table, rule: &Rule) -> Option<HostPort> {
    let target = rule.target.as_deref().filter(|target| target.starts_with("CNI-DN-"))?;
    let jump = ruleset.words(rule);
    let allowed = ports(&jump);
    let mut packets = Vec::new();
    let mut pods = Vec::new();
    for rule in table.chain(target).into_iter().flat_map(|chain| &chain.rules) {
        if rule.target.as_deref() != Some("DNAT") {
            continue;
        }
        let words = ruleset.words(rule);
        pods.extend(words.value("--to-destination").and_then(|(_, to)| address(&to)));
        // What a rule with another condition leaves is not known, so it takes nothing for certain.
        if ["-s", "-i"].iter().any(|option| words.value(option).is_some()) {
            continue;
        }
        let value = |option: &str| words.value(option).or_else(|| jump.value(option));
        let (Some((false, protocol)), to) = (value("-p"), value("-d")) else { continue };
        let to = match to {
            Some((true, _)) => continue,
            to => to.map(|(_, to)| host(&to).to_owned()),
        };
        for (first, last) in ports(&words) {
            packets.extend(allowed.iter().filter_map(|(low, high)| {
                let (first, last) = (first.max(*low), last.min(*high));
                let (protocol, to) = (protocol.to_string(), to.clone());
                (first <= last).then_some(Packets { protocol, to, first, last })
            }));
        }
    }
    Some(HostPort {
        shown: format!("{}:{}: {}", id.file(), rule.line, ruleset.rule_text(rule)),
        place: id.to_string(),
        whose: target.to_owned(),
        packets,
        pods,
    })
}

fn of_native(table: &NftTable, chain: &str, rule: &Map<String, Value>) -> Option<HostPort> {
    let parts = rule.get("expr")?.as_array()?;
    let dnat = parts.iter().find_map(|part| part.get("dnat"))?;
    let to = dnat["addr"].as_str().unwrap_or_default();
    let of = |field: &str| {
        let matches = parts.iter().filter_map(|part| part.get("match"));
        matches.filter(|m| m["op"] == "==").find_map(|m| {
            let payload = m["left"].get("payload")?;
            (payload["field"] == field).then(|| (payload["protocol"].clone(), m["right"].clone()))
        })
    };
    let range = |right: &Value| -> Option<(u16, u16)> {
        let number = |value: &Value| u16::try_from(value.as_u64()?).ok();
        match right.get("range").and_then(Value::as_array).map(Vec::as_slice) {
            Some([first, last]) => Some((number(first)?, number(last)?)),
            _ => number(right).map(|port| (port, port)),
        }
    };
    let to_host = of("daddr").and_then(|(_, to)| Some(to.as_str()?.to_owned()));
    let packets = of("dport").into_iter().flat_map(|(protocol, right)| {
        let protocol = protocol.as_str().unwrap_or_default().to_owned();
        let set = right.get("set").and_then(Value::as_array).cloned();
        let all = set.unwrap_or_else(|| vec![right]);
        let ranges: Vec<(u16, u16)> = all.iter().filter_map(range).collect();
        let to = to_host.clone();
        ranges.into_iter().map(move |(first, last)| {
            let (protocol, to) = (protocol.clone(), to.clone());
            Packets { protocol, to, first, last }
        })
    });
    let whose = rule.get("comment").and_then(Value::as_str).unwrap_or_default();
    let place = format!("{} {}", table.family, table.name);
    let handle = rule.get("handle").and_then(Value::as_u64).unwrap_or_default();
    Some(HostPort {
        shown: format!("table {place} chain {chain} handle {handle}: `{whose}` to {to}"),
        place,
        whose: whose.to_owned(),
        packets: packets.collect(),
        pods: address(to).into_iter().collect(),
    })
}

/// The ranges of ports that a rule matches; all if it names none, none if it names them by what they
/// are not.
fn ports(words: &Words<'_>) -> Vec<(u16, u16)> {
    let named = words.value("--dports").or_else(|| words.value("--dport"));
    let Some((negated, list)) = named else { return vec![(0, u16::MAX)] };
    if negated {
        return Vec::new();
    }
    let range = |part: &str| {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    list.split(',').filter_map(range).collect()
}

/// The address in `10.1.2.3/32`.
fn host(network: &str) -> &str {
    network.trim_end_matches("/32").trim_end_matches("/128")
}

/// The address in `10.1.2.3:80`, `[fd00::1]:80`, `10.1.2.3` or `fd00::1`.
fn address(to: &str) -> Option<IpAddr> {
    let bare = |text: &str| text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    bare(to).or_else(|| bare(to.rsplit_once(':')?.0))
}
