//! The identity of a kernel object, which plans, edits and reports share. With it, the object can
//! be found in any state of the node.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::state::equivalence::canonical;
use crate::state::ipvs::VirtualServerId;
use crate::state::ruleset::{Chain, Ruleset};
use crate::state::shared_str::StrSlice;
use crate::state::{Backend, Family, NodeState, RulesetId};

/// The kinds of kernel objects that have owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// A native nf_tables table.
    Table,
    /// A chain of an xtables table.
    Chain,
    /// A rule of an xtables table.
    Rule,
    /// An ipset.
    Set,
    /// An ipvs virtual server.
    VirtualServer,
    /// A real server of an ipvs virtual server.
    RealServer,
    /// A network link.
    Link,
}

/// The identity of an xtables table. The ids of all objects of one table share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    /// The address family and backend of the table.
    pub ruleset: RulesetId,
    /// The table's name: `nat`.
    pub name: StrSlice,
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.ruleset, self.name)
    }
}

/// The identity of a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RealServerId {
    /// The identity of the virtual server in front of the real server.
    pub service: VirtualServerId,
    /// The real server's address and port.
    pub address: SocketAddr,
}

/// The identity of one kernel object. A plan of a large node has an identity for each rule, so
/// names and rule texts are slices of the node's own text, not copies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    /// A native nf_tables table.
    NativeTable {
        /// nft's address family of the table: `ip`, `inet`, …
        family: StrSlice,
        /// The table's name: `kube-proxy`.
        name: StrSlice,
    },
    /// A chain of an xtables table.
    Chain {
        /// The xtables table that the chain is in.
        table: Arc<TableId>,
        /// The chain's name.
        name: StrSlice,
    },
    /// A rule of an xtables table. In the state from which the rule was read, `position` identifies
    /// the rule; in other states, `text` does.
    Rule {
        /// The xtables table that the rule is in.
        table: Arc<TableId>,
        /// The name of the chain that the rule is in.
        chain: StrSlice,
        /// The rule's index in the chain, from 0.
        position: u32,
        /// The rule's text from `-A` on.
        text: StrSlice,
    },
    /// An ipset.
    Set {
        /// The ipset's address family.
        family: Family,
        /// The ipset's name.
        name: StrSlice,
    },
    /// An ipvs virtual server.
    VirtualServer(VirtualServerId),
    /// A real server that is removed or added while its virtual server is kept.
    RealServer(Box<RealServerId>),
    /// A network link.
    Link {
        /// The link's name: `kube-ipvs0`.
        name: StrSlice,
    },
}

impl ObjectId {
    /// The kind of the identified object.
    pub fn kind(&self) -> ObjectKind {
        match self {
            ObjectId::NativeTable { .. } => ObjectKind::Table,
            ObjectId::Chain { .. } => ObjectKind::Chain,
            ObjectId::Rule { .. } => ObjectKind::Rule,
            ObjectId::Set { .. } => ObjectKind::Set,
            ObjectId::VirtualServer(_) => ObjectKind::VirtualServer,
            ObjectId::RealServer(_) => ObjectKind::RealServer,
            ObjectId::Link { .. } => ObjectKind::Link,
        }
    }

    /// The object's address family; none for links and for native tables that are neither `ip` nor
    /// `ip6`.
    pub fn family(&self) -> Option<Family> {
        match self {
            ObjectId::NativeTable { family, .. } => {
                Family::ALL.into_iter().find(|known| known.nft() == family.as_str())
            }
            ObjectId::Chain { table, .. } | ObjectId::Rule { table, .. } => {
                Some(table.ruleset.family)
            }
            ObjectId::Set { family, .. } => Some(*family),
            ObjectId::VirtualServer(service) => Some(service.family()),
            ObjectId::RealServer(real) => Some(real.service.family()),
            ObjectId::Link { .. } => None,
        }
    }

    /// The part of the kernel that holds the object: `legacy`, `nft`, `ipset`, `ipvs`, `link`.
    pub fn backend(&self) -> &'static str {
        match self {
            ObjectId::NativeTable { .. } => Backend::Nft.name(),
            ObjectId::Chain { table, .. } | ObjectId::Rule { table, .. } => {
                table.ruleset.backend.name()
            }
            ObjectId::Set { .. } => "ipset",
            ObjectId::VirtualServer(_) | ObjectId::RealServer(_) => "ipvs",
            ObjectId::Link { .. } => "link",
        }
    }

    /// The xtables table of a chain or rule; none for other objects.
    pub fn table(&self) -> Option<&TableId> {
        match self {
            ObjectId::Chain { table, .. } | ObjectId::Rule { table, .. } => Some(table),
            _ => None,
        }
    }

    /// The name of the chain, or of the chain that the rule is in; none for other objects.
    pub fn chain(&self) -> Option<&StrSlice> {
        match self {
            ObjectId::Chain { name, .. } => Some(name),
            ObjectId::Rule { chain, .. } => Some(chain),
            _ => None,
        }
    }

    /// The object's name; for a rule, the name of its chain.
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            ObjectId::NativeTable { name, .. }
            | ObjectId::Chain { name, .. }
            | ObjectId::Rule { chain: name, .. }
            | ObjectId::Set { name, .. }
            | ObjectId::Link { name } => Cow::Borrowed(name),
            ObjectId::VirtualServer(service) => Cow::Owned(service.to_string()),
            ObjectId::RealServer(real) => {
                Cow::Owned(format!("{} -> {}", real.service, real.address))
            }
        }
    }

    /// Whether the object exists in `state`. A rule exists if its chain has an equivalent rule.
    pub fn present_in(&self, state: &NodeState) -> bool {
        match self {
            ObjectId::NativeTable { family, name } => state.nft.get(family, name).is_some(),
            ObjectId::Chain { table, name } => chain_in(state, table, name).is_some(),
            ObjectId::Rule { table, chain, text, .. } => {
                chain_in(state, table, chain).is_some_and(|(r, c)| has_rule(r, c, text))
            }
            ObjectId::Set { name, .. } => state.ipsets.get(name).is_some(),
            ObjectId::VirtualServer(service) => state.ipvs.get(service).is_some(),
            ObjectId::RealServer(real) => state.ipvs.real(&real.service, &real.address).is_some(),
            ObjectId::Link { name } => state.links.iter().any(|link| link.name == *name),
        }
    }
}

fn chain_in<'a>(
    state: &'a NodeState,
    table: &TableId,
    name: &str,
) -> Option<(&'a Ruleset, &'a Chain)> {
    let ruleset = state.rulesets.get(&table.ruleset)?;
    Some((ruleset, ruleset.table(&table.name)?.chain(name)?))
}

fn has_rule(ruleset: &Ruleset, chain: &Chain, text: &str) -> bool {
    let mut texts = chain.rules.iter().map(|rule| ruleset.rule_text(rule));
    // The text is almost always the same to the letter, so this comparison is made first.
    if texts.clone().any(|other| other == text) {
        return true;
    }
    let key = canonical(text);
    texts.any(|other| canonical(other) == key)
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectId::NativeTable { family, name } => write!(f, "nft table {family} {name}"),
            ObjectId::Chain { table, name } => write!(f, "{table} chain {name}"),
            ObjectId::Rule { table, text, .. } => write!(f, "{table} {text}"),
            ObjectId::Set { name, .. } => write!(f, "ipset {name}"),
            ObjectId::VirtualServer(service) => write!(f, "virtual server {service}"),
            ObjectId::RealServer(real) => {
                write!(f, "real server {} of {}", real.address, real.service)
            }
            ObjectId::Link { name } => write!(f, "link {name}"),
        }
    }
}

/// Serialised as the text of its `Display`.
impl Serialize for ObjectId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Files;

    const ID: RulesetId = RulesetId { family: Family::Ipv4, backend: Backend::Nft };

    fn node() -> NodeState {
        let text = |name: &str, text: &str| (name.to_owned(), text.into());
        NodeState::parse(Files::from([
            text("iptables-nft.save", "*nat\n:X - [0:0]\n-A X -s 10.0.0.1/32 -j RETURN\nCOMMIT\n"),
            text("ipset.save", "create A hash:ip family inet hashsize 1024 maxelem 65536\n"),
            text(
                "ipvs.save",
                "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.1.0.1:80 -m -w 1\n",
            ),
            text("addr.json", r#"[{"ifname": "kube-ipvs0", "addr_info": []}]"#),
        ]))
        .unwrap()
    }

    #[test]
    fn each_kind_is_found_in_a_state_and_missed_in_an_empty_one() {
        let state = node();
        let table = Arc::new(TableId { ruleset: ID, name: "nat".into() });
        let rule = |position, text: &str| ObjectId::Rule {
            table: table.clone(),
            chain: "X".into(),
            position,
            text: text.into(),
        };
        let server = &state.ipvs.servers[0];
        let (service, address) = (server.service, server.reals[0].address);
        for (id, shown) in [
            (
                ObjectId::Chain { table: table.clone(), name: "X".into() },
                "iptables-nft nat chain X",
            ),
            // The rule is found at any index of its chain, and in any equivalent spelling.
            (rule(7, "-A X -s 10.0.0.1 -j RETURN"), "iptables-nft nat -A X -s 10.0.0.1 -j RETURN"),
            (ObjectId::Set { family: Family::Ipv4, name: "A".into() }, "ipset A"),
            (ObjectId::VirtualServer(service), "virtual server 10.0.0.1:80/tcp"),
            (
                ObjectId::RealServer(Box::new(RealServerId { service, address })),
                "real server 10.1.0.1:80 of 10.0.0.1:80/tcp",
            ),
            (ObjectId::Link { name: "kube-ipvs0".into() }, "link kube-ipvs0"),
        ] {
            assert_eq!(id.to_string(), shown);
            assert!(id.present_in(&state), "{id}");
            assert!(!id.present_in(&NodeState::default()), "{id}");
        }
        assert!(!rule(0, "-A X -j RETURN").present_in(&state));
    }

    #[test]
    fn an_id_is_small() {
        assert!(size_of::<ObjectId>() <= 48);
    }
}
