//! What is to be done to a node, as data: which objects go, which stay, and why.

pub mod convergence;
pub mod edit;
pub mod foreign;
pub mod invariants;
pub mod leftovers;
pub mod merge;
pub mod parity;
pub mod playbook;
pub mod services;

use serde::{Deserialize, Serialize};

use crate::state::Family;
use crate::state::text::Text;

/// What a plan does with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It goes.
    Remove,
    /// It stays.
    Keep,
}

/// The kinds of objects that have owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectKind {
    /// A native nf_tables table.
    Table,
    /// A chain of an xtables table.
    Chain,
    /// A rule.
    Rule,
    /// An ipset.
    Set,
    /// An ipvs virtual server.
    VirtualServer,
    /// A network link.
    Link,
}

/// One object of a plan. The order of the fields is the order of the rows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Object {
    /// Whether it goes.
    pub action: Action,
    /// What it is.
    pub kind: ObjectKind,
    /// Its address family, where it has one.
    pub family: Option<Family>,
    /// Where it lives: `legacy`, `nft`, `ipset`, `ipvs`, `link`.
    pub backend: Text,
    /// Its table, for chains and rules.
    pub table: Option<Text>,
    /// Its own name; for a rule, its chain's.
    pub name: Text,
    /// Its position in its chain, from 0, for a rule.
    #[serde(skip)]
    pub position: Option<usize>,
    /// Its text: a rule from `-A` on, a virtual server with its scheduler; empty for a chain.
    pub text: Text,
    /// The component it belongs to, or `unknown`.
    pub owner: Text,
    /// Why it goes or stays, in one sentence.
    pub reason: Text,
}

/// All objects concerned, sorted; the same state gives the same plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The rows.
    pub objects: Vec<Object>,
}

impl Plan {
    /// The objects that go.
    pub fn removals(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|o| o.action == Action::Remove)
    }

    /// True when nothing goes.
    pub fn is_empty(&self) -> bool {
        self.removals().next().is_none()
    }
}
