//! An edit as data: objects of the kernel that are removed or added.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::state::ipvs::{RealServer, VirtualServer, VirtualServerId};
use crate::state::nft_messages::TableMessage;
use crate::state::object::{ObjectId, RealServerId, TableId};
use crate::state::prerequisite::Prerequisite;
use crate::state::rule::Words;
use crate::state::ruleset::{Chain, Ruleset};
use crate::state::shared_str::StrArena;
use crate::state::shared_str::StrSlice;
use crate::state::{Family, RulesetId};

/// A rule of a table edit, with its chain and position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RulePos {
    /// The name of the chain that holds the rule.
    pub chain: String,
    /// The rule's position in its chain, from 0. For a removal this counts in the chain before the
    /// edit, for an addition in the chain after the edit.
    pub position: usize,
    /// The rule's text as iptables-save prints it, from `-A` on.
    pub text: StrSlice,
    /// The text of the rule right above this rule. `None` for a removal, and for a rule at the top
    /// of the chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A user-defined chain with its rules, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainText {
    /// The chain's name.
    pub name: StrSlice,
    /// The texts of the chain's rules, each from `-A` on, first to last.
    pub rules: Vec<StrSlice>,
}

impl ChainText {
    /// The name and rules of `chain`, whose text is in `ruleset`.
    pub fn of(ruleset: &Ruleset, chain: &Chain) -> ChainText {
        let rules = chain.rules.iter().map(|r| ruleset.shared_text(r)).collect();
        ChainText { name: chain.name.clone(), rules }
    }

    /// Deserializes chains so that all their texts are slices of one string, because separate
    /// strings take twice the memory.
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

/// What is removed from, or added to, one xtables table in one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEdit {
    /// The address family and backend of the table.
    pub ruleset: RulesetId,
    /// The table's name, such as `nat`.
    pub table: String,
    /// Rules that are removed from, or added to, chains that remain. Sorted by chain, then by
    /// position.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RulePos>,
    /// Chains that are removed or added as a whole, with the rules in them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[serde(deserialize_with = "ChainText::read_together")]
    pub chains: Vec<ChainText>,
}

/// An ipset, as `ipset save` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDump {
    /// The address family of the ipset's entries.
    pub family: Family,
    /// The ipset's name.
    pub name: String,
    /// The ipset's `create` line, then its `add` lines.
    pub lines: Vec<String>,
}

/// A native nf_tables table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativeTable {
    /// nft's name of the family: `ip`, `inet`, …
    pub family: String,
    /// The table's name.
    pub name: String,
    /// The table's objects, as `nft -j list table` prints them.
    pub objects: Vec<serde_json::Value>,
    /// The messages that make the table again; none if the table was captured without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<TableMessage>,
}

/// A link that a component made, with what is needed to add it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpec {
    /// The link's name: `kube-ipvs0`.
    pub name: String,
    /// The link's kind: `dummy`.
    pub kind: String,
    /// The link's addresses, with their prefix lengths.
    pub addresses: Vec<IpNet>,
    /// Whether the link is up.
    pub up: bool,
}

/// A real server that is removed from, or added to, a virtual server that remains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealServerRef {
    /// The id of the virtual server.
    pub service: VirtualServerId,
    /// The real server, with its options.
    pub real: RealServer,
}

/// What an edit removes or adds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Rules and chains of one xtables table.
    Table(TableEdit),
    /// A native nf_tables table.
    NativeTable(NativeTable),
    /// An ipset with its entries.
    Set(SetDump),
    /// An ipvs virtual server with its real servers.
    VirtualServer(VirtualServer),
    /// A real server of a virtual server that remains.
    RealServer(RealServerRef),
    /// A link with its addresses.
    Link(LinkSpec),
}

/// Whether an edit removes or adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The edit removes its objects.
    Remove,
    /// The edit adds its objects.
    Add,
}

/// One reversible change of kernel objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Whether the objects are removed or added.
    pub direction: Direction,
    /// The objects that are removed or added.
    pub target: Target,
}

impl TableEdit {
    /// The id of the edited table.
    pub fn id(&self) -> TableId {
        TableId { ruleset: self.ruleset, name: self.table.as_str().into() }
    }

    /// What the rules of this edit name and the kernel must hold before it takes them.
    pub fn prerequisites(&self) -> BTreeSet<Prerequisite> {
        let rules = self.rules.iter().map(|rule| &rule.text);
        let rules = rules.chain(self.chains.iter().flat_map(|chain| &chain.rules));
        rules.flat_map(|text| Words::of_rule(text).prerequisites()).collect()
    }
}

impl Target {
    /// The id of the object that is removed or added; `None` for rules and chains of an xtables
    /// table.
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
    /// The number of objects that the edit removes or adds.
    pub fn objects(&self) -> usize {
        match &self.target {
            Target::Table(t) => {
                t.rules.len() + t.chains.iter().map(|c| 1 + c.rules.len()).sum::<usize>()
            }
            _ => 1,
        }
    }

    /// Describes this edit as a step of an undo: an edit that adds puts an object back, and an edit
    /// that removes takes an addition out.
    pub fn describe_undo(&self) -> String {
        let verb = match self.direction {
            Direction::Remove => "take out",
            Direction::Add => "put back",
        };
        format!("{verb} {}", self.target)
    }

    /// The number of rules that the edit adds; 0 for a removal.
    pub fn rules_added(&self) -> usize {
        match (&self.target, self.direction) {
            (Target::Table(t), Direction::Add) => {
                t.rules.len() + t.chains.iter().map(|c| c.rules.len()).sum::<usize>()
            }
            _ => 0,
        }
    }

    /// Describes the edit for people, one line for each object.
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

/// A count with its noun: `1 rule`, `2 rules`.
fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
