//! A change to objects of the kernel, as data: a removal or an addition.

use std::fmt;

use ipnet::IpNet;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::state::ipvs::{RealServer, VirtualServer, VirtualServerId};
use crate::state::object::{ObjectId, RealServerId, TableId};
use crate::state::ruleset::{Chain, Ruleset};
use crate::state::shared_str::StrArena;
use crate::state::shared_str::StrSlice;
use crate::state::{Family, RulesetId};

/// A rule and its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulePos {
    /// Its chain.
    pub chain: String,
    /// Its position, from 0: for a removal, in the chain before the edit; for an addition, in the
    /// chain after it.
    pub position: usize,
    /// Its text from `-A` on.
    pub text: StrSlice,
    /// For an addition: the rule right before it; `None` at the top of the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A user-defined chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainText {
    /// Its name.
    pub name: StrSlice,
    /// The texts of its rules, from `-A` on, first to last.
    pub rules: Vec<StrSlice>,
}

impl ChainText {
    /// The text of a chain and its rules in `ruleset`.
    pub fn of(ruleset: &Ruleset, chain: &Chain) -> ChainText {
        let rules = chain.rules.iter().map(|r| ruleset.shared_text(r)).collect();
        ChainText { name: chain.name.clone(), rules }
    }

    /// Reads chains with texts that are slices of one string. Separate strings take twice the
    /// memory.
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

/// The changes in one table, in one transaction: removals, or additions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEdit {
    /// The family and backend.
    pub ruleset: RulesetId,
    /// The table.
    pub table: String,
    /// Rules that are removed from, or added to, chains that remain. Sorted by chain and position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RulePos>,
    /// Chains that are removed or added as a whole, with the rules they hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "ChainText::read_together")]
    pub chains: Vec<ChainText>,
}

/// An ipset as `ipset save` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDump {
    /// Its family.
    pub family: Family,
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
    /// Its objects, as `nft -j list table` prints them.
    pub objects: Vec<serde_json::Value>,
}

/// A link that a component made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpec {
    /// Its name.
    pub name: String,
    /// Its kind: `dummy`.
    pub kind: String,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Whether it is up.
    pub up: bool,
}

/// A real server of a virtual server that remains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealServerRef {
    /// The id of its virtual server.
    pub service: VirtualServerId,
    /// The real server.
    pub real: RealServer,
}

/// The object of an edit.
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
    /// A real server of a virtual server that remains.
    RealServer(RealServerRef),
    /// A link.
    Link(LinkSpec),
}

/// The direction of an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The objects are removed.
    Remove,
    /// The objects are added.
    Add,
}

/// One reversible change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Removal or addition.
    pub direction: Direction,
    /// The objects.
    pub target: Target,
}

impl TableEdit {
    /// Its table's id.
    pub fn id(&self) -> TableId {
        TableId { ruleset: self.ruleset, name: self.table.as_str().into() }
    }
}

impl Target {
    /// The id of the object; `None` for rules and chains of a table.
    pub fn id(&self) -> Option<ObjectId> {
        Some(match self {
            Target::Table(_) => return None,
            Target::NativeTable(t) => ObjectId::NativeTable {
                family: t.family.as_str().into(),
                name: t.name.as_str().into(),
            },
            Target::Set(set) => {
                ObjectId::Set { family: set.family, name: set.name.as_str().into() }
            }
            Target::VirtualServer(server) => ObjectId::VirtualServer(server.service),
            Target::RealServer(real) => ObjectId::RealServer(Box::new(RealServerId {
                service: real.service,
                address: real.real.address,
            })),
            Target::Link(link) => ObjectId::Link { name: link.name.as_str().into() },
        })
    }
}

impl Edit {
    /// The number of objects it changes.
    pub fn objects(&self) -> usize {
        match &self.target {
            Target::Table(t) => {
                t.rules.len() + t.chains.iter().map(|c| 1 + c.rules.len()).sum::<usize>()
            }
            _ => 1,
        }
    }

    /// Describes the edit as the undo of a run: an object is added again, or an addition is
    /// removed.
    pub fn describe_undo(&self) -> String {
        let verb = match self.direction {
            Direction::Remove => "take out",
            Direction::Add => "put back",
        };
        format!("{verb} {}", self.target)
    }

    /// The number of rules it adds.
    pub fn rules_added(&self) -> usize {
        match (&self.target, self.direction) {
            (Target::Table(t), Direction::Add) => {
                t.rules.len() + t.chains.iter().map(|c| c.rules.len()).sum::<usize>()
            }
            _ => 0,
        }
    }

    /// Describes the edit for a person, one line an object.
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
            other => other.id().map_or(Ok(()), |id| id.fmt(f)),
        }
    }
}

/// `1 rule`, `2 rules`.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
