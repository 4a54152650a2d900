//! What is to be done to a node, as data: which objects go, which stay, and why.

mod candidates;
pub mod change;
pub mod foreign_rules;
pub mod invariants;
pub mod leftovers;
pub mod merge;
pub mod playbook;

use std::cmp::Ordering;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::state::Family;
use crate::state::shared_str::StrSlice;

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
    /// A real server of an ipvs virtual server that stays.
    RealServer,
    /// A network link.
    Link,
}

/// What many objects of a plan have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct About {
    /// Their address family, where they have one.
    pub family: Option<Family>,
    /// Where they live: `legacy`, `nft`, `ipset`, `ipvs`, `link`.
    pub backend: StrSlice,
    /// Their table, for chains and rules.
    pub table: Option<StrSlice>,
    /// The component they belong to, or `unknown`.
    pub owner: StrSlice,
    /// Why they go or stay, in one sentence.
    pub reason: StrSlice,
}

/// One object of a plan. On a large node there are as many as the node has rules, so each is kept
/// small: what it has in common with others is shared, and read as if it were its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Whether it goes.
    pub action: Action,
    /// What it is.
    pub kind: ObjectKind,
    /// What it has in common with others.
    pub about: Arc<About>,
    /// Its own name; for a rule, its chain's.
    pub name: StrSlice,
    /// Its position in its chain, from 0, for a rule.
    pub position: Option<u32>,
    /// Its text: a rule from `-A` on, a virtual server with its scheduler; empty for a chain.
    pub text: StrSlice,
}

impl Deref for Object {
    type Target = About;

    fn deref(&self) -> &About {
        &self.about
    }
}

/// An object's fields in the order in which they are shown, and by which rows are sorted.
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct Row<'a> {
    action: Action,
    kind: ObjectKind,
    family: Option<Family>,
    backend: &'a StrSlice,
    table: &'a Option<StrSlice>,
    name: &'a StrSlice,
    #[serde(skip)]
    position: Option<u32>,
    text: &'a StrSlice,
    owner: &'a StrSlice,
    reason: &'a StrSlice,
}

impl Object {
    fn row(&self) -> Row<'_> {
        let About { family, backend, table, owner, reason } = &*self.about;
        Row {
            action: self.action,
            kind: self.kind,
            family: *family,
            backend,
            table,
            name: &self.name,
            position: self.position,
            text: &self.text,
            owner,
            reason,
        }
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.row().serialize(serializer)
    }
}

impl PartialOrd for Object {
    fn partial_cmp(&self, other: &Object) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Object {
    fn cmp(&self, other: &Object) -> Ordering {
        self.row().cmp(&other.row())
    }
}

/// All objects concerned, sorted; the same state gives the same plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The rows.
    pub objects: Vec<Object>,
}

impl Plan {
    /// The objects that go.
    pub fn removals(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|o| o.action == Action::Remove)
    }

    /// The same plan, where only objects of these owners go; of all, if none are named.
    pub fn of_owners(mut self, owners: &[String]) -> Plan {
        if owners.is_empty() {
            return self;
        }
        // What was said of many objects is said of many again.
        let mut kept: Vec<(Arc<About>, Arc<About>)> = Vec::new();
        for object in self.objects.iter_mut().filter(|o| o.action == Action::Remove) {
            if owners.iter().any(|o| **o == *object.owner) {
                continue;
            }
            object.action = Action::Keep;
            let known = kept.iter().find(|(was, _)| Arc::ptr_eq(was, &object.about));
            object.about = match known {
                Some((_, now)) => now.clone(),
                None => {
                    let mut about = About::clone(&object.about);
                    about.reason =
                        format!("a leftover, but of an owner not asked for: {}", about.reason)
                            .into();
                    let now = Arc::new(about);
                    kept.push((object.about.clone(), now.clone()));
                    now
                }
            };
        }
        self.objects.sort_unstable();
        self
    }

    /// True when nothing goes.
    pub fn is_empty(&self) -> bool {
        self.removals().next().is_none()
    }
}
