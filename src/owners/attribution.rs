//! The attribution of an object: the component that owns it, and the evidence.

use std::collections::HashMap;

use crate::owners::catalogue::EntryId;
use crate::state::ruleset::Name;

/// The evidence for an object's owner: which kind of catalogue entry the object matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The object's own name matches.
    Name,
    /// The rule is in a chain of the owner's.
    InChain,
    /// The rule is in a chain that exists for operators' rules, such as DOCKER-USER.
    ForOperators,
    /// The rule is in a chain of the component with that index, which writes no rule of this form.
    /// Its owner is therefore unknown.
    UnexpectedForm(u16),
    /// The native table has a name of the component with that index, and a part that this does not
    /// write. Its owner is therefore unknown.
    UnexpectedPart(u16),
    /// The rule is the owner's jump from a built-in chain: the entry with that index in the owner's
    /// `hooks`.
    Hook(u16),
    /// The rule jumps to a chain of the owner's.
    Target,
    /// The rule has a comment that the owner writes.
    Comment,
    /// The rule matches an ipset of the owner's.
    Set,
    /// The rule names a link of the owner's.
    Link,
    /// The rule has the shape with that index in the owner's `rules`.
    Shape(u16),
    /// The virtual server's address is on kube-ipvs0, or its address or port is in one of
    /// kube-proxy's ipsets.
    ServedByKubeProxy,
    /// Of the components that make virtual servers, only the owner is alive on this node.
    SoleCandidate,
    /// The chain is built into the kernel.
    Kernel,
    /// No entry of the catalogue matches.
    Nothing,
}

/// The index of the owner among the catalogue's components, with the evidence. The three highest
/// indices stand for operator, kernel and unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attribution {
    pub(super) component: u16,
    pub(crate) evidence: Evidence,
}

pub(super) const UNOWNED: u16 = u16::MAX;
pub(super) const OPERATOR_ID: u16 = u16::MAX - 1;
pub(super) const KERNEL_ID: u16 = u16::MAX - 2;

pub(super) const fn attributed(component: u16, evidence: Evidence) -> Attribution {
    Attribution { component, evidence }
}

pub(super) const NOTHING: Attribution = attributed(UNOWNED, Evidence::Nothing);

#[derive(Debug)]
pub(super) struct ChainOwners {
    pub(super) chain: Attribution,
    /// The chain's entry in the catalogue, if it has one.
    pub(super) entry: Option<EntryId>,
    pub(super) rules: Vec<Attribution>,
}

#[derive(Debug)]
pub(super) struct TableOwners {
    pub(super) name: Name,
    pub(super) index: HashMap<Name, usize>,
    pub(super) chains: Vec<ChainOwners>,
}
