//! One reversible change, as data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Kind, Result};
use crate::plan::leftovers::real_server_name;
use crate::plan::{Object, ObjectKind, Plan};
use crate::state::ipvs::{RealServer, Service, VirtualServer};
use crate::state::ruleset::{Chain, Ruleset, Table};
use crate::state::shared_str::StrArena;
use crate::state::shared_str::StrSlice;
use crate::state::{Backend, Family, NodeState, RulesetId};

/// A rule and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulePos {
    /// Its chain.
    pub chain: String,
    /// Its position, from 0: for a removal in the chain before the edit, for an addition in the
    /// chain after it.
    pub position: usize,
    /// Its text from `-A` on.
    pub text: StrSlice,
    /// For an addition: the rule that stands right before it; none at the top of the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A user-defined chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainText {
    /// Its name.
    pub name: StrSlice,
    /// Its rules' texts, from `-A` on, first to last.
    pub rules: Vec<StrSlice>,
}

impl ChainText {
    /// The chain with its rules, as `ruleset` has them.
    pub fn of(ruleset: &Ruleset, chain: &Chain) -> ChainText {
        let rules = chain.rules.iter().map(|r| ruleset.shared_text(r)).collect();
        ChainText { name: chain.name.clone(), rules }
    }

    /// Reads chains whose texts are stretches of one: each by itself, they take twice the room.
    fn read_together<'de, D: Deserializer<'de>>(
        list: D,
    ) -> std::result::Result<Vec<ChainText>, D::Error> {
        struct Chains(StrArena, Vec<usize>);
        impl<'de> Visitor<'de> for Chains {
            type Value = Chains;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of chains")
            }

            fn visit_seq<A: SeqAccess<'de>>(
                mut self,
                mut list: A,
            ) -> std::result::Result<Chains, A::Error> {
                while let Some(ChainText { name, rules }) = list.next_element()? {
                    self.0.push(&name);
                    rules.iter().for_each(|rule| self.0.push(rule));
                    self.1.push(rules.len());
                }
                Ok(self)
            }
        }
        let Chains(texts, lengths) =
            list.deserialize_seq(Chains(StrArena::default(), Vec::new()))?;
        let mut texts = texts.texts().map_err(D::Error::custom)?;
        let mut next = |rules| {
            let name = texts.next()?;
            Some(ChainText { name, rules: texts.by_ref().take(rules).collect() })
        };
        Ok(lengths.into_iter().filter_map(&mut next).collect())
    }
}

/// What changes in one table, in one transaction: either removals, or what undoes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEdit {
    /// The family and backend.
    pub ruleset: RulesetId,
    /// The table.
    pub table: String,
    /// Rules that go from, or come back to, chains that stay. Sorted by chain and position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RulePos>,
    /// Chains that go or come back whole, with the rules they are known to hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "ChainText::read_together")]
    pub chains: Vec<ChainText>,
}

/// An ipset as `ipset save` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDump {
    /// Its name.
    pub name: String,
    /// Its `create` line and `add` lines.
    pub lines: Vec<String>,
}

/// A native nf_tables table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativeTable {
    /// nft's name of the family: `ip`, `inet`, …
    pub family: String,
    /// Its name.
    pub name: String,
    /// Its objects, as `nft -j list table` gives them.
    pub objects: Vec<serde_json::Value>,
}

/// A link that a component made for itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpec {
    /// Its name.
    pub name: String,
    /// Its kind: `dummy`.
    pub kind: String,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Whether it is set up.
    pub up: bool,
}

/// A real server of a virtual server that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealServerRef {
    /// What its virtual server answers to.
    pub service: Service,
    /// The real server.
    pub real: RealServer,
}

/// What an edit concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Rules and chains of one xtables table.
    Table(TableEdit),
    /// A native nf_tables table.
    NativeTable(NativeTable),
    /// An ipset.
    Set(SetDump),
    /// An ipvs virtual server with its real servers.
    VirtualServer(VirtualServer),
    /// A real server of a virtual server that stays.
    RealServer(RealServerRef),
    /// A link.
    Link(LinkSpec),
}

/// Whether an edit takes away or gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The objects go.
    Remove,
    /// The objects come back.
    Add,
}

/// One reversible change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Whether it takes away or gives back.
    pub direction: Direction,
    /// What it concerns.
    pub target: Target,
}

impl Edit {
    /// How many objects it concerns.
    pub fn objects(&self) -> usize {
        match &self.target {
            Target::Table(t) => {
                t.rules.len() + t.chains.iter().map(|c| 1 + c.rules.len()).sum::<usize>()
            }
            _ => 1,
        }
    }

    /// What it does where a run is undone: something comes back, or what the run added goes.
    pub fn describe_undo(&self) -> String {
        let verb = match self.direction {
            Direction::Remove => "take out",
            Direction::Add => "put back",
        };
        format!("{verb} {}", self.target)
    }

    /// How many rules it brings.
    pub fn rules_added(&self) -> usize {
        match (&self.target, self.direction) {
            (Target::Table(t), Direction::Add) => {
                t.rules.len() + t.chains.iter().map(|c| c.rules.len()).sum::<usize>()
            }
            _ => 0,
        }
    }

    /// What it does, a line an object, for a person to judge it.
    pub fn lines(&self) -> Vec<String> {
        let Target::Table(table) = &self.target else { return vec![self.to_string()] };
        let verb = match self.direction {
            Direction::Remove => "remove",
            Direction::Add => "add",
        };
        let place = format!("{} {}", table.ruleset, table.table);
        let chains = table.chains.iter().map(|c| format!("{verb} {place} chain {}", c.name));
        let rule = |r: &RulePos| match (&r.after, self.direction) {
            (Some(after), Direction::Add) => {
                format!("{verb} {place} {} right behind {after}", r.text)
            }
            (None, Direction::Add) => format!("{verb} {place} {} at the top", r.text),
            (_, Direction::Remove) => format!("{verb} {place} {}", r.text),
        };
        table.rules.iter().map(rule).chain(chains).collect()
    }
}

impl std::fmt::Display for Edit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = match self.direction {
            Direction::Remove => "remove",
            Direction::Add => "add",
        };
        write!(f, "{verb} {}", self.target)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Table(t) => {
                let inside: usize = t.chains.iter().map(|c| c.rules.len()).sum();
                let mut what = Vec::new();
                if !t.chains.is_empty() {
                    let with = if inside > 0 {
                        format!(" ({})", count(inside, "rule"))
                    } else {
                        String::new()
                    };
                    what.push(format!("{}{with}", count(t.chains.len(), "chain")));
                }
                if !t.rules.is_empty() {
                    what.push(count(t.rules.len(), "rule"));
                }
                write!(f, "{} in {} {}", what.join(" and "), t.ruleset, t.table)
            }
            Target::NativeTable(t) => write!(f, "nft table {} {}", t.family, t.name),
            Target::Set(s) => write!(f, "ipset {}", s.name),
            Target::VirtualServer(s) => write!(f, "virtual server {}", s.service),
            Target::RealServer(r) => {
                write!(f, "real server {} of {}", r.real.address, r.service)
            }
            Target::Link(l) => write!(f, "link {}", l.name),
        }
    }
}

/// `1 rule`, `2 rules`.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The edits that carry out a plan made on `state`, in the order in which they must be applied:
/// one a table (jumps before chains inside it), then native tables, sets, virtual servers, and
/// links.
pub fn edits(plan: &Plan, state: &NodeState) -> Vec<Edit> {
    let mut edits = table_edits(plan, state);
    for object in plan.removals() {
        let target = match object.kind {
            ObjectKind::Table => native_table(object, state).map(Target::NativeTable),
            ObjectKind::Set => set_text(object, state).map(Target::Set),
            ObjectKind::VirtualServer => {
                let named = |s: &&VirtualServer| s.service.to_string() == object.name;
                state.ipvs.servers.iter().find(named).cloned().map(Target::VirtualServer)
            }
            ObjectKind::RealServer => real_server(object, state).map(Target::RealServer),
            ObjectKind::Link => link_text(object, state).map(Target::Link),
            ObjectKind::Chain | ObjectKind::Rule => None,
        };
        edits.extend(target.map(|target| Edit { direction: Direction::Remove, target }));
    }
    edits.sort_by_key(|e| match &e.target {
        Target::Table(_) => 0,
        Target::NativeTable(_) => 1,
        Target::Set(_) => 2,
        Target::VirtualServer(_) | Target::RealServer(_) => 3,
        Target::Link(_) => 4,
    });
    edits
}

fn native_table(object: &Object, state: &NodeState) -> Option<NativeTable> {
    let family = object.family.map_or("inet", Family::nft);
    let table = state.nft.tables.iter().find(|t| t.family == family && *t.name == *object.name)?;
    Some(NativeTable {
        family: table.family.clone(),
        name: table.name.clone(),
        objects: table.objects.clone(),
    })
}

fn set_text(object: &Object, state: &NodeState) -> Option<SetDump> {
    let set = state.ipsets.get(&object.name)?;
    let lines = set.render().lines().map(str::to_owned).collect();
    Some(SetDump { name: object.name.to_string(), lines })
}

fn real_server(object: &Object, state: &NodeState) -> Option<RealServerRef> {
    state.ipvs.servers.iter().find_map(|server| {
        let mut reals = server.reals.iter();
        let real = reals.find(|r| real_server_name(&server.service, r) == *object.name)?;
        Some(RealServerRef { service: server.service, real: real.clone() })
    })
}

fn link_text(object: &Object, state: &NodeState) -> Option<LinkSpec> {
    let link = state.links.iter().find(|l| l.name == object.name)?;
    let link_local = |a: &&IpNet| matches!(a, IpNet::V6(a) if a.addr().is_unicast_link_local());
    Some(LinkSpec {
        name: link.name.clone(),
        kind: link.kind.clone()?,
        // The kernel gives every link that is up a link-local address by itself.
        addresses: link.addresses.iter().filter(|a| !link_local(a)).copied().collect(),
        up: link.up,
    })
}

/// The same edits, in memory of their own: each of those that were planned keeps the whole state's
/// text, and lies scattered among what else was needed to plan it.
///
/// # Errors
/// None for edits that can be journaled.
pub fn detach(edits: Vec<Edit>) -> Result<Vec<Edit>> {
    let failed = |e| Error::new(Kind::Unexpected, "edits", e);
    let text = serde_json::to_vec(&edits).map_err(failed)?;
    drop(edits);
    serde_json::from_slice(&text).map_err(failed)
}

/// What the plan removes in one table.
#[derive(Default)]
struct Removal<'a> {
    chains: BTreeSet<&'a str>,
    rules: BTreeSet<(&'a str, usize)>,
}

fn table_edits(plan: &Plan, state: &NodeState) -> Vec<Edit> {
    let mut tables: BTreeMap<(RulesetId, &str), Removal<'_>> = BTreeMap::new();
    for object in plan.removals() {
        let (Some(id), Some(table)) = (ruleset_of(object), object.table.as_deref()) else {
            continue;
        };
        let removal = tables.entry((id, table)).or_default();
        match (object.kind, object.position) {
            (ObjectKind::Chain, _) => {
                removal.chains.insert(&object.name);
            }
            (ObjectKind::Rule, Some(position)) => {
                removal.rules.insert((&object.name, position as usize));
            }
            _ => {}
        }
    }
    let edit = |((id, name), removal): ((RulesetId, &str), Removal<'_>)| {
        let ruleset = state.rulesets.get(&id)?;
        let edit = table_edit(id, ruleset, ruleset.table(name)?, &removal);
        Some(Edit { direction: Direction::Remove, target: Target::Table(edit) })
    };
    tables.into_iter().filter_map(edit).collect()
}

/// The rule set that a row of a plan speaks of.
pub fn ruleset_of(object: &Object) -> Option<RulesetId> {
    let backend = match &*object.backend {
        "legacy" => Backend::Legacy,
        "nft" => Backend::Nft,
        _ => return None,
    };
    Some(RulesetId { family: object.family?, backend })
}

fn table_edit(id: RulesetId, ruleset: &Ruleset, table: &Table, removal: &Removal<'_>) -> TableEdit {
    let chains = table.chains.iter().filter(|c| removal.chains.contains(&*c.name));
    let at = |&(chain, position): &(&str, usize)| {
        let rule = table.chain(chain)?.rules.get(position)?;
        let text = ruleset.shared_text(rule);
        (!removal.chains.contains(chain)).then(|| RulePos {
            chain: chain.into(),
            position,
            text,
            after: None,
        })
    };
    TableEdit {
        ruleset: id,
        table: table.name.to_string(),
        rules: removal.rules.iter().filter_map(at).collect(),
        chains: chains.map(|c| ChainText::of(ruleset, c)).collect(),
    }
}
