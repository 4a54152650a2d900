//! Whether a condition of a native rule holds for INVALID packets.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::{InvalidPackets, PacketSide};
use crate::state::Family;
use crate::state::nft::{NftTable, networks};

/// For how many of the packets a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Never,
    /// For some, or it cannot be decided.
    Maybe,
    Always,
}

impl Holds {
    fn from_bool(holds: bool) -> Holds {
        if holds { Holds::Always } else { Holds::Never }
    }

    fn inverted(self) -> Holds {
        match self {
            Holds::Never => Holds::Always,
            Holds::Maybe => Holds::Maybe,
            Holds::Always => Holds::Never,
        }
    }

    fn and(self, other: Holds) -> Holds {
        match (self, other) {
            (Holds::Never, _) | (_, Holds::Never) => Holds::Never,
            (Holds::Always, Holds::Always) => Holds::Always,
            _ => Holds::Maybe,
        }
    }
}

/// For how many packets a condition holds, and whether it selects them because they are INVALID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matched {
    pub(super) holds: Holds,
    pub(super) as_invalid: bool,
}

impl From<Holds> for Matched {
    fn from(holds: Holds) -> Matched {
        Matched { holds, as_invalid: false }
    }
}

/// The states of conntrack, each with its bit (linux/netfilter/nf_conntrack_common.h).
const STATES: [(&str, u64); 5] =
    [("invalid", 1), ("established", 2), ("related", 4), ("new", 8), ("untracked", 64)];

const INVALID: u64 = 1;

/// What is known of the packets, and the table whose named sets the conditions refer to.
pub(super) struct Conditions<'a> {
    pub(super) table: &'a NftTable,
    pub(super) packets: &'a InvalidPackets,
}

impl<'a> Conditions<'a> {
    /// A statement `match`.
    pub(super) fn of_match(&self, body: &'a Value) -> Matched {
        let (left, right) = (&body["left"], &body["right"]);
        let op = body["op"].as_str().unwrap_or_default();
        if let Some(mask) = state_mask(left) {
            return of_state(mask, op, right);
        }
        match op {
            "==" | "in" => self.of_key(left, right),
            // Packets that lack the field match neither way: those of no connection, of another family.
            "!=" | "!" => match self.of_key(left, right).holds {
                _ if self.lacks(left) => Holds::Never.into(),
                holds => holds.inverted().into(),
            },
            _ if self.lacks(left) => Holds::Never.into(),
            _ => Holds::Maybe.into(),
        }
    }

    /// Whether a field is one of the values that `right` names: one, or a set of them.
    pub(super) fn of_key(&self, left: &Value, right: &'a Value) -> Matched {
        if self.lacks(left) {
            return Holds::Never.into();
        }
        let Some(values) = self.values(right) else { return Holds::Maybe.into() };
        let mut found = Matched::from(Holds::Never);
        for value in values {
            let one = self.of_value(left, value);
            match one.holds {
                Holds::Never => {}
                Holds::Maybe => {
                    found.holds = Holds::Maybe;
                    found.as_invalid |= one.as_invalid;
                }
                Holds::Always => return one,
            }
        }
        found
    }

    /// The elements of an anonymous set or map, or of a named one of the table. `None` if they are not
    /// in the listing, or if packets add to them.
    pub(super) fn elements(&self, set: &'a Value) -> Option<&'a Vec<Value>> {
        if let Some(name) = set.as_str() {
            let name = name.strip_prefix('@')?;
            let kinds = ["set", "map"].into_iter();
            let mut named = kinds.flat_map(|kind| self.table.of_kind(kind));
            let named = named.find(|set| set.get("name").and_then(Value::as_str) == Some(name))?;
            let flags = named.get("flags").map_or(String::new(), Value::to_string);
            let is_fixed = !flags.contains("dynamic") && !flags.contains("timeout");
            return if is_fixed { named.get("elem")?.as_array() } else { None };
        }
        set.get("set")?.as_array()
    }

    fn values(&self, right: &'a Value) -> Option<Vec<&'a Value>> {
        let is_named = right.as_str().is_some_and(|name| name.starts_with('@'));
        match right {
            Value::Array(values) => Some(values.iter().collect()),
            _ if is_named || right.get("set").is_some() => {
                Some(self.elements(right)?.iter().collect())
            }
            value => Some(vec![value]),
        }
    }

    /// Whether the packets have no such field, so that a rule that tests it does not match. A packet
    /// that is INVALID belongs to no connection.
    fn lacks(&self, left: &Value) -> bool {
        let of_connection = left["ct"]["key"].as_str().is_some_and(|key| key != "state");
        let other = match self.packets.family {
            Family::Ipv4 => ["ip6", "icmpv6"],
            Family::Ipv6 => ["ip", "icmp"],
        };
        let protocol = left["payload"]["protocol"].as_str();
        let parts = left["concat"].as_array().into_iter().flatten();
        of_connection
            || protocol.is_some_and(|protocol| other.contains(&protocol))
            || parts.into_iter().any(|part| self.lacks(part))
    }

    fn of_value(&self, left: &Value, value: &'a Value) -> Matched {
        let value = value.get("elem").map_or(value, |elem| &elem["val"]);
        if let Some(parts) = left["concat"].as_array() {
            let values = value["concat"].as_array().into_iter().flatten();
            let all = parts.iter().zip(values).map(|(left, value)| self.of_value(left, value));
            let whole = Matched::from(Holds::Always);
            return all.fold(whole, |a, b| Matched {
                holds: a.holds.and(b.holds),
                as_invalid: a.as_invalid || b.as_invalid,
            });
        }
        if left["ct"]["key"] == "state" {
            return of_state(u64::MAX, "==", value);
        }
        if let Some(key) = left["meta"]["key"].as_str() {
            return self.of_meta(key, value).into();
        }
        self.of_address(left, value).into()
    }

    fn of_meta(&self, key: &str, value: &Value) -> Holds {
        let value = value.as_str().unwrap_or_default();
        match key {
            "nfproto" => Holds::from_bool(match self.packets.family {
                Family::Ipv4 => value == "ipv4",
                Family::Ipv6 => value == "ipv6",
            }),
            "protocol" => Holds::from_bool(value == self.packets.family.nft()),
            // Nobody forwards what comes from the loopback.
            "iif" | "iifname" | "oif" | "oifname" if value == "lo" => Holds::Never,
            "iif" | "iifname" => match &self.packets.side {
                Some(PacketSide::Enters(name)) => Holds::from_bool(is_interface(value, name)),
                _ => Holds::Maybe,
            },
            "oif" | "oifname" => match &self.packets.side {
                Some(PacketSide::Leaves(name)) => Holds::from_bool(is_interface(value, name)),
                _ => Holds::Maybe,
            },
            _ => Holds::Maybe,
        }
    }

    fn of_address(&self, left: &Value, value: &Value) -> Holds {
        let network = match (left["payload"]["field"].as_str(), &self.packets.side) {
            (Some("saddr"), Some(PacketSide::From(network)))
            | (Some("daddr"), Some(PacketSide::To(network))) => network,
            _ => return Holds::Maybe,
        };
        let (first, last) = match value["range"].as_array().map(Vec::as_slice) {
            Some([first, last]) => (address(first), address(last)),
            _ => match networks(value)[..] {
                [of] => (Some(of.network()), Some(of.broadcast())),
                _ => (None, None),
            },
        };
        let (Some(first), Some(last)) = (first, last) else { return Holds::Maybe };
        within(network, first, last)
    }
}

/// Whether a network is within a range of addresses, or apart from it.
fn within(network: &IpNet, first: IpAddr, last: IpAddr) -> Holds {
    let (begin, end) = (network.network(), network.broadcast());
    if first <= begin && end <= last {
        Holds::Always
    } else if end < first || last < begin {
        Holds::Never
    } else {
        Holds::Maybe
    }
}

fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

/// Whether a name, or its beginning before a `*`, is that of an interface.
fn is_interface(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |beginning| name.starts_with(beginning))
}

/// The mask of `ct state`, or of `ct state & MASK`; none if `left` is another field.
fn state_mask(left: &Value) -> Option<u64> {
    if left["ct"]["key"] == "state" {
        return Some(u64::MAX);
    }
    let [field, mask] = &left["&"].as_array()?[..] else { return None };
    (field["ct"]["key"] == "state").then(|| bits(mask)).flatten()
}

/// The bits of a list of states: `invalid`, `["invalid", "new"]`, `{"|": [..]}`, a number.
fn bits(states: &Value) -> Option<u64> {
    match states {
        Value::Number(number) => number.as_u64(),
        Value::String(name) => STATES.iter().find(|(state, _)| state == name).map(|(_, bit)| *bit),
        Value::Array(all) => all.iter().map(bits).try_fold(0, |sum, bit| Some(sum | bit?)),
        Value::Object(of) => bits(of.get("|")?),
        _ => None,
    }
}

/// A comparison of `ct state & mask`, of packets whose state is INVALID. It selects them as INVALID
/// unless it is of all states but some.
fn of_state(mask: u64, op: &str, right: &Value) -> Matched {
    let state = INVALID & mask;
    let holds = match (op, right["set"].as_array()) {
        ("==" | "in", Some(set)) => set.iter().any(|one| bits(one) == Some(state)),
        ("!=", Some(set)) => set.iter().all(|one| bits(one) != Some(state)),
        (op, _) => match (op, bits(right)) {
            ("in", Some(right)) => state & right != 0,
            ("!", Some(right)) => state & right == 0,
            ("==", Some(right)) => state == right,
            ("!=", Some(right)) => state != right,
            _ => return Holds::Maybe.into(),
        },
    };
    let as_invalid = holds && matches!(op, "==" | "in") && state != 0;
    Matched { holds: Holds::from_bool(holds), as_invalid }
}
