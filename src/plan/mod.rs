//! What is to be done to a node, as data: which objects go, which stay, and why.

mod candidates;
pub mod change;
pub mod foreign_rules;
pub mod invariants;
pub mod leftovers;
pub mod merge;
pub mod playbook;
pub mod reason;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::plan::reason::Reason;
use crate::state::Family;
use crate::state::object::{ObjectId, ObjectKind};
use crate::state::shared_str::StrSlice;

/// What a plan does with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It goes.
    Remove,
    /// It stays.
    Keep,
    /// It stays, for it is not known for certain to be a leftover.
    Suspect,
}

/// What many objects of a plan have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct About {
    /// Whether they go.
    pub action: Action,
    /// The component they belong to, or `unknown`.
    pub owner: StrSlice,
    /// Why they go or stay.
    pub reason: Arc<Reason>,
    /// What they are besides their names: the kind of a set or link, the options of a server.
    pub details: StrSlice,
}

impl About {
    /// Why they go or stay, in one sentence.
    pub fn sentence(&self) -> String {
        match self.action {
            Action::Suspect => format!("suspected: {}", self.reason),
            Action::Remove | Action::Keep => self.reason.to_string(),
        }
    }
}

/// One object of a plan. On a large node there are as many as the node has rules, so each is kept
/// small: what it has in common with others is shared, and read as if it were its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Which object.
    pub id: ObjectId,
    /// What it has in common with others.
    pub about: Arc<About>,
}

impl Deref for Object {
    type Target = About;

    fn deref(&self) -> &About {
        &self.about
    }
}

impl Object {
    /// What it is.
    pub fn kind(&self) -> ObjectKind {
        self.id.kind()
    }

    /// Its text: a rule from `-A` on, a server with its options; empty for a chain.
    pub fn text(&self) -> Cow<'_, str> {
        match &self.id {
            ObjectId::NativeTable { family, name } => Cow::Owned(format!("table {family} {name}")),
            ObjectId::Chain { .. } => Cow::Borrowed(""),
            ObjectId::Rule { text, .. } => Cow::Borrowed(text),
            ObjectId::Set { .. } | ObjectId::Link { .. } => Cow::Borrowed(&self.details),
            ObjectId::VirtualServer(service) => Cow::Owned(format!("{service} {}", self.details)),
            ObjectId::RealServer(real) => {
                let selector = real.service.selector();
                Cow::Owned(format!("{selector} -r {} {}", real.address, self.details))
            }
        }
    }
}

/// An object's fields as they are shown.
#[derive(Serialize)]
struct Row<'a> {
    action: Action,
    kind: ObjectKind,
    family: Option<Family>,
    backend: &'static str,
    table: Option<&'a StrSlice>,
    name: Cow<'a, str>,
    text: Cow<'a, str>,
    owner: &'a StrSlice,
    reason: String,
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let row = Row {
            action: self.action,
            kind: self.kind(),
            family: self.id.family(),
            backend: self.id.backend(),
            table: self.id.table().map(|table| &table.name),
            name: self.id.name(),
            text: self.text(),
            owner: &self.owner,
            reason: self.sentence(),
        };
        row.serialize(serializer)
    }
}

impl PartialOrd for Object {
    fn partial_cmp(&self, other: &Object) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Object {
    /// What goes first; objects of a kind by their names.
    fn cmp(&self, other: &Object) -> Ordering {
        self.action
            .cmp(&other.action)
            .then_with(|| self.id.cmp(&other.id))
            .then_with(|| self.about.cmp(&other.about))
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
        // What many objects had in common they have in common again.
        let mut kept: Vec<(Arc<About>, Arc<About>)> = Vec::new();
        for object in self.objects.iter_mut().filter(|o| o.action == Action::Remove) {
            if owners.iter().any(|o| **o == *object.owner) {
                continue;
            }
            let known = kept.iter().find(|(was, _)| Arc::ptr_eq(was, &object.about));
            object.about = match known {
                Some((_, now)) => now.clone(),
                None => {
                    let reason = Reason::OwnerNotAskedFor(Box::new(Reason::clone(&object.reason)));
                    let now = Arc::new(About {
                        action: Action::Keep,
                        reason: Arc::new(reason),
                        ..About::clone(&object.about)
                    });
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
