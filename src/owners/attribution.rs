//! The attribution of an object: its component, and the evidence.

use std::collections::HashMap;

use crate::owners::catalogue::EntryId;
use crate::state::ruleset::Name;

/// The evidence for an owner: the entry of the catalogue that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Its own name.
    Name,
    /// It is in the owner's chain.
    InChain,
    /// It is in a chain for operators.
    ForOperators,
    /// It is in a chain of that component, which writes no such rules.
    UnexpectedForm(u16),
    /// It is the owner's hook with that index.
    Hook(u16),
    /// It jumps to the owner's chain.
    Target,
    /// Its comment.
    Comment,
    /// The ipset it matches.
    Set,
    /// The link it matches.
    Link,
    /// It has the owner's shape with that index.
    Shape(u16),
    /// Its address, or port, is on kube-ipvs0 or in kube-proxy's sets.
    ServedByKubeProxy,
    /// Only the owner makes such objects, and it runs on this node.
    SoleCandidate,
    /// It is part of the kernel.
    Kernel,
    /// Nothing in the catalogue fits.
    Nothing,
}

/// The index of a component, with the evidence. The last indices stand for operator, kernel and
/// unknown.
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
    /// The entry of the catalogue, for a chain that is in it.
    pub(super) entry: Option<EntryId>,
    pub(super) rules: Vec<Attribution>,
}

#[derive(Debug)]
pub(super) struct TableOwners {
    pub(super) name: Name,
    pub(super) index: HashMap<Name, usize>,
    pub(super) chains: Vec<ChainOwners>,
}
