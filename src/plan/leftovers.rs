//! The leftovers of a node, and the reason for every related object that is kept.
//!
//! An object is removed only if three things are certain: its owner is known, the owner no longer
//! uses it, and nothing that is kept refers to it. A suspected leftover is kept.

mod black_holes;
mod cni;
mod docker;
mod flannel;
mod kube_proxy;

pub use black_holes::black_holes;

use crate::error::Result;
use crate::kube_proxy::running::RunningMode;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::plan::Plan;
use crate::plan::candidates::Candidates;
use crate::plan::change::{Edit, edits};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;

/// Which leftovers a clean-up removes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CleanupScope {
    /// Remove only leftovers of these owners; of all owners if the list is empty.
    pub owners: Vec<String>,
    /// Also remove kube-proxy's real servers at weight 0 that still get packets of UDP clients.
    pub black_holes: bool,
}

impl CleanupScope {
    /// Only the leftovers of one owner, without black holes.
    pub fn of_owner(owner: &str) -> CleanupScope {
        CleanupScope { owners: vec![owner.to_owned()], black_holes: false }
    }

    /// The plan that removes the leftovers of this scope from a node in `state`.
    ///
    /// # Errors
    /// If the scope includes black holes and the node's list of ipvs connections does not parse.
    pub fn plan(&self, catalogue: &Catalogue, state: &NodeState) -> Result<Plan> {
        let ownership = Ownership::of(catalogue, state);
        let mut plan = leftovers(catalogue, state, &ownership).of_owners(&self.owners);
        if self.black_holes {
            plan.objects.extend(black_holes(state, &ownership)?);
            plan.objects.sort_unstable();
        }
        Ok(plan)
    }

    /// The edits that carry out this scope's plan.
    ///
    /// # Errors
    /// As for [`CleanupScope::plan`].
    pub fn edits(&self, catalogue: &Catalogue, state: &NodeState) -> Result<Vec<Edit>> {
        Ok(edits(&self.plan(catalogue, state)?, state))
    }
}

/// The plan that removes all leftovers of a node and lists the related objects that are kept.
///
/// The same state always gives the same plan, in the same order.
pub fn leftovers(catalogue: &Catalogue, state: &NodeState, ownership: &Ownership<'_>) -> Plan {
    leftovers_under(&RunningMode::of(state, ownership), catalogue, state, ownership)
}

/// The plan that removes the leftovers once kube-proxy serves in the mode `to`. `after` is the
/// state that [`predict_takeover`](crate::kube_proxy::takeover::predict_takeover) returns, or the
/// part of that state that a kernel could load.
pub fn leftovers_after(catalogue: &Catalogue, after: &NodeState, to: Mode) -> Plan {
    let ownership = Ownership::of(catalogue, after);
    let running = RunningMode { mode: Some(to), ..RunningMode::of(after, &ownership) };
    leftovers_under(&running, catalogue, after, &ownership)
}

/// Like [`leftovers`], but with `running` as kube-proxy's running mode.
fn leftovers_under(
    running: &RunningMode,
    catalogue: &Catalogue,
    state: &NodeState,
    ownership: &Ownership<'_>,
) -> Plan {
    let mut candidates = Candidates::new(catalogue, state, ownership);
    kube_proxy::chains(&mut candidates, running);
    kube_proxy::elsewhere(&mut candidates, running);
    cni::components(&mut candidates);
    cni::empty_port_chains(&mut candidates);
    flannel::rules(&mut candidates);
    docker::suspects(&mut candidates);
    Plan { objects: candidates.resolve() }
}
