//! The plan for a node, as data: which objects are removed, which are kept, and why.

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
    /// The object is removed.
    Remove,
    /// The object is kept.
    Keep,
    /// The object is kept although it may be a leftover, because this is not certain.
    Suspect,
}

/// The attributes of a plan's object. Many objects share the same attributes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct About {
    /// What the plan does with the objects.
    pub action: Action,
    /// The component that owns the objects, or `unknown`.
    pub owner: StrSlice,
    /// Why the plan removes or keeps the objects.
    pub reason: Arc<Reason>,
    /// More about the objects: the kind of an ipset or link, the options of a virtual or real
    /// server.
    pub details: StrSlice,
}

impl About {
    /// The reason as one sentence, for people.
    pub fn sentence(&self) -> String {
        match self.action {
            Action::Suspect => format!("suspected: {}", self.reason),
            Action::Remove | Action::Keep => self.reason.to_string(),
        }
    }
}

/// One object of a plan. A plan for a large node has as many objects as the node has rules, so each
/// is small: it shares its attributes with others, and derefs to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Which object of the node it is.
    pub id: ObjectId,
    /// The attributes, shared with other objects.
    pub about: Arc<About>,
}

impl Deref for Object {
    type Target = About;

    fn deref(&self) -> &About {
        &self.about
    }
}

impl Object {
    /// The kind of the object.
    pub fn kind(&self) -> ObjectKind {
        self.id.kind()
    }

    /// The object's text, such as a rule from `-A` on, or a virtual server with its options. Empty
    /// for a chain.
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

/// The fields of an object's JSON form.
#[derive(Serialize)]
struct ObjectRow<'a> {
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
        let row = ObjectRow {
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
    /// Sorts by action, with removed objects first, and then by the object's id.
    fn cmp(&self, other: &Object) -> Ordering {
        self.action
            .cmp(&other.action)
            .then_with(|| self.id.cmp(&other.id))
            .then_with(|| self.about.cmp(&other.about))
    }
}

/// The plan for one node: its rows, sorted. The same state always gives the same plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// One row for each object that is removed, or kept for a reason worth telling.
    pub objects: Vec<Object>,
}

impl Plan {
    /// The rows of objects that are removed.
    pub fn removals(&self) -> impl Iterator<Item = &Object> {
        self.objects.iter().filter(|o| o.action == Action::Remove)
    }

    /// The same plan with removals of these owners only; of all owners if the list is empty. Other
    /// removals become rows of kept objects.
    pub fn of_owners(mut self, owners: &[String]) -> Plan {
        if owners.is_empty() {
            return self;
        }
        // Objects that pointed to the same `About` point to the same new `About`, so that it is not
        // copied for each object.
        let mut kept: Vec<(Arc<About>, Arc<About>)> = Vec::new();
        for object in self.objects.iter_mut().filter(|o| o.action == Action::Remove) {
            if owners.iter().any(|o| **o == *object.owner) {
                continue;
            }
            let known = kept.iter().find(|(was, _)| Arc::ptr_eq(was, &object.about));
            object.about = match known {
                Some((_, now)) => now.clone(),
                None => {
                    let reason = Reason::OwnerOutOfScope(Box::new(Reason::clone(&object.reason)));
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

    /// True if the plan removes nothing.
    pub fn is_empty(&self) -> bool {
        self.removals().next().is_none()
    }
}
