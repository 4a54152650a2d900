//! What the matcher finds of each object: the component that it belongs to, and the evidence.

use std::collections::HashMap;

use crate::owners::catalogue::Entry;
use crate::state::ruleset::Name;

/// What shows whose an object is: the entry of the catalogue that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Its own name.
    Name,
    /// It stands in the owner's chain.
    InChain,
    /// It stands in a chain whose content is the operator's.
    ForOperators,
    /// It stands in a chain of that component's, which writes no such rules.
    UnexpectedForm(u16),
    /// It is the owner's hook of that number.
    Hook(u16),
    /// It jumps to the owner's chain.
    Target,
    /// Its comment.
    Comment,
    /// The ipset it matches.
    Set,
    /// The link it matches.
    Link,
    /// It has the owner's shape of that number.
    Shape(u16),
    /// Its address, or port, is on kube-ipvs0 or in kube-proxy's sets.
    ServedByKubeProxy,
    /// The owner alone makes such objects and runs here.
    SoleCandidate,
    /// It is part of the kernel.
    Kernel,
    /// Nothing in the catalogue fits.
    Nothing,
}

/// A component's number, with the evidence; the last numbers stand for operator, kernel and unknown.
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
    pub(super) entry: Option<Entry>,
    pub(super) rules: Vec<Attribution>,
}

#[derive(Debug)]
pub(super) struct TableOwners {
    pub(super) name: Name,
    pub(super) index: HashMap<Name, usize>,
    pub(super) chains: Vec<ChainOwners>,
}
