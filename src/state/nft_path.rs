//! What native tables do to forwarded packets that conntrack calls INVALID.
//!
//! A verdict `accept` ends one base chain only: each later base chain at the same hook, of whatever
//! table, is asked too, and a drop is final (nft(8), "VERDICT STATEMENTS"). So whether such a packet
//! passes is found table by table.

mod condition;
mod rule_text;

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use self::condition::{Conditions, Holds, Matched};
pub use self::rule_text::rule_text;
use super::Family;
use super::nft::NftTable;

/// Where conntrack has its hook in prerouting (NF_IP_PRI_CONNTRACK). What comes earlier knows of no
/// packet whether it is INVALID.
const CONNTRACK: i64 = -200;

/// Statements that neither select packets nor decide on them.
const NEUTRAL: [&str; 11] = [
    "counter",
    "last",
    "log",
    "mangle",
    "notrack",
    "flow",
    "dup",
    "secmark",
    "ct helper",
    "ct timeout",
    "ct expectation",
];

/// One of the ways in which the packets of an exception are told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PacketSide {
    /// Those from a network.
    From(ipnet::IpNet),
    /// Those to a network.
    To(ipnet::IpNet),
    /// Those that enter by an interface.
    Enters(String),
    /// Those that leave by an interface.
    Leaves(String),
}

/// Forwarded INVALID packets of one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPackets {
    /// Their address family.
    pub family: Family,
    /// Which of them; all if it is not set.
    pub side: Option<PacketSide>,
}

/// What of a table drops INVALID packets: a rule, or the policy of a base chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NativeDrop {
    /// The table's address family, as nft names it.
    pub family: String,
    /// The table.
    pub table: String,
    /// The chain that drops.
    pub chain: String,
    /// The base chain by which the packets come there.
    pub base: String,
    /// The hook of that base chain: `forward`.
    pub hook: String,
    /// The rule's handle; none for a policy.
    pub handle: Option<u64>,
    /// The rule, about as nft prints it, or `policy drop`.
    pub text: String,
    /// What is known of the packets that come there.
    pub reach: DropReach,
}

/// Which packets a drop takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReach {
    /// Those that are INVALID, or of these those that the rule and the ones before it select.
    Invalid,
    /// All that nothing before accepts, and nothing before accepts INVALID ones.
    Everything,
    /// All that nothing before accepts. Whether that accepts INVALID ones is not known.
    Unaccepted,
}

/// What a table drops of these packets, the first thing in each base chain that they pass. A condition
/// that cannot be decided counts as one that may hold.
pub fn drops(table: &NftTable, packets: &InvalidPackets) -> Vec<NativeDrop> {
    if !is_passed(&table.family, packets.family) {
        return Vec::new();
    }
    let mut rules: BTreeMap<&str, Vec<&Map<String, Value>>> = BTreeMap::new();
    for rule in table.of_kind("rule") {
        rules.entry(text(rule, "chain")).or_default().push(rule);
    }
    let mut found = Vec::new();
    for base in table.of_kind("chain").filter(|chain| is_on_the_way(&table.family, chain)) {
        let conditions = Conditions { table, packets };
        let mut walk = NativeWalk {
            table,
            conditions,
            rules: &rules,
            base,
            may_accept: false,
            visited: HashSet::new(),
            found: Vec::new(),
        };
        walk.base();
        found.extend(walk.found);
    }
    found
}

/// Whether [`drops`] needs the elements of the table's sets, which may be many thousands: if a rule
/// names the state INVALID, or decides by the state in a named map.
pub fn needs_elements(table: &NftTable) -> bool {
    table.of_kind("rule").filter_map(|rule| rule.get("expr")).any(|all| {
        let statements = all.as_array().into_iter().flatten();
        let mut maps = statements.map(|statement| &statement["vmap"]);
        all.to_string().contains("\"invalid\"")
            || maps
                .any(|map| map["data"].is_string() && map["key"].to_string().contains("\"state\""))
    })
}

/// Whether packets of an address family pass the tables of a family. To a bridge, they are frames.
fn is_passed(table: &str, packets: Family) -> bool {
    table == packets.nft() || matches!(table, "inet" | "bridge")
}

/// Whether forwarded INVALID packets pass this base chain. Those of type nat they do not, for they
/// belong to no connection.
fn is_on_the_way(family: &str, chain: &Map<String, Value>) -> bool {
    let priority = chain.get("prio").and_then(Value::as_i64).unwrap_or(0);
    let is_after_conntrack = match text(chain, "hook") {
        "prerouting" => family == "bridge" || priority > CONNTRACK,
        "forward" | "postrouting" => true,
        // What a bridge hands up to be forwarded, and what comes back to it.
        "input" | "output" => family == "bridge",
        _ => false,
    };
    is_after_conntrack && text(chain, "type") != "nat"
}

fn text<'a>(body: &'a Map<String, Value>, field: &str) -> &'a str {
    body.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// How packets leave a rule or a chain.
#[derive(PartialEq, Eq)]
enum Flow {
    /// They may come to what follows.
    Next,
    /// None comes to the rest of the chain; they go back to the one that jumped there.
    Back,
    /// None comes to the rest of the base chain.
    Over,
}

/// How packets come to a rule.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Path {
    /// Whether all of them do.
    certain: bool,
    /// Whether they were selected because they are INVALID.
    as_invalid: bool,
}

struct NativeWalk<'a> {
    table: &'a NftTable,
    conditions: Conditions<'a>,
    rules: &'a BTreeMap<&'a str, Vec<&'a Map<String, Value>>>,
    base: &'a Map<String, Value>,
    /// Whether a rule was passed that may accept some of the packets.
    may_accept: bool,
    /// The chains that were walked on a path that not all packets take. To walk them again adds
    /// nothing.
    visited: HashSet<(String, Path)>,
    found: Vec<NativeDrop>,
}

impl<'a> NativeWalk<'a> {
    fn base(&mut self) {
        // Which packets a bridge sees is not known: frames between its ports, or those of routed packets.
        let certain = self.table.family != "bridge";
        let name = text(self.base, "name");
        let flow = self.chain(name, Path { certain, as_invalid: false });
        if certain && flow != Flow::Over && text(self.base, "policy") == "drop" {
            self.drop(name, None, Path { certain, as_invalid: false });
        }
    }

    fn chain(&mut self, name: &'a str, path: Path) -> Flow {
        if !path.certain && !self.visited.insert((name.to_owned(), path)) {
            return Flow::Next;
        }
        for rule in self.rules.get(name).into_iter().flatten() {
            match self.rule(rule, path) {
                Flow::Next => {}
                // A caller goes on after the jump.
                Flow::Back => return Flow::Next,
                Flow::Over => return Flow::Over,
            }
        }
        Flow::Next
    }

    fn rule(&mut self, rule: &'a Map<String, Value>, mut path: Path) -> Flow {
        let statements = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
        for (kind, body) in statements.filter_map(Value::as_object).flatten() {
            match kind.as_str() {
                "match" => {
                    let Matched { holds, as_invalid } = self.conditions.of_match(body);
                    match holds {
                        Holds::Never => return Flow::Next,
                        Holds::Maybe => path.certain = false,
                        Holds::Always => {}
                    }
                    path.as_invalid |= as_invalid;
                }
                "vmap" => return self.verdict_map(rule, body, path),
                known if NEUTRAL.contains(&known) => {}
                "accept" | "drop" | "reject" | "return" | "jump" | "goto" | "queue"
                | "continue" => {
                    return self.verdict(rule, kind, body, path);
                }
                // A limit, a quota, a set that is added to, a match of xtables, and what is not known.
                _ => path.certain = false,
            }
        }
        Flow::Next
    }

    fn verdict(
        &mut self,
        rule: &'a Map<String, Value>,
        kind: &str,
        body: &'a Value,
        path: Path,
    ) -> Flow {
        let target = || body.get("target").and_then(Value::as_str).unwrap_or_default();
        let ends = |flow: Flow| if path.certain { flow } else { Flow::Next };
        match kind {
            "drop" | "reject" => {
                self.drop(text(rule, "chain"), Some(rule), path);
                ends(Flow::Over)
            }
            // Who reads the queue decides.
            "accept" | "queue" => {
                self.may_accept |= !path.certain;
                ends(Flow::Over)
            }
            "return" => ends(Flow::Back),
            "jump" => match self.chain(target(), path) {
                Flow::Over => ends(Flow::Over),
                _ => Flow::Next,
            },
            "goto" => match self.chain(target(), path) {
                Flow::Over => ends(Flow::Over),
                _ => ends(Flow::Back),
            },
            _ => Flow::Next,
        }
    }

    fn verdict_map(&mut self, rule: &'a Map<String, Value>, map: &'a Value, path: Path) -> Flow {
        let Some(elements) = self.conditions.elements(&map["data"]) else {
            // Its elements are not in the listing: any verdict, on any of the packets.
            self.may_accept = true;
            return Flow::Next;
        };
        for pair in elements.iter().filter_map(Value::as_array) {
            let [key, verdict] = &pair[..] else { continue };
            let Matched { holds, as_invalid } = self.conditions.of_key(&map["key"], key);
            if holds == Holds::Never {
                continue;
            }
            let certain = path.certain && holds == Holds::Always;
            let path = Path { certain, as_invalid: path.as_invalid || as_invalid };
            let verdict = verdict.as_object().and_then(|v| v.iter().next());
            let Some((kind, body)) = verdict else { continue };
            let flow = self.verdict(rule, kind, body, path);
            if holds == Holds::Always {
                return flow;
            }
        }
        Flow::Next
    }

    /// Notes a drop, unless it takes only packets that were selected for something else, as the rules
    /// of any firewall do.
    fn drop(&mut self, chain: &str, rule: Option<&Map<String, Value>>, path: Path) {
        let reach = match (path.as_invalid, path.certain) {
            (true, _) => DropReach::Invalid,
            (false, true) if self.may_accept => DropReach::Unaccepted,
            (false, true) => DropReach::Everything,
            (false, false) => return,
        };
        // The first one of a kind is enough: who lets the packets pass there is told of the next.
        if self.found.iter().any(|known| known.reach == reach) {
            return;
        }
        self.found.push(NativeDrop {
            family: self.table.family.clone(),
            table: self.table.name.clone(),
            chain: chain.to_owned(),
            base: text(self.base, "name").to_owned(),
            hook: text(self.base, "hook").to_owned(),
            handle: rule.and_then(|rule| rule.get("handle")?.as_u64()),
            text: rule.map_or_else(|| "policy drop".to_owned(), rule_text),
            reach,
        });
    }
}

#[cfg(test)]
mod tests;
