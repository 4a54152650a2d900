//! Which objects of a node are leftovers, and why everything near them stays.
//!
//! Removal is by positive list: an object goes only if its owner is known, the owner is known not
//! to use it any more, and nothing that stays refers to it. What is only suspected stays.

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

/// What a clean-up removes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CleanupScope {
    /// Leftovers of these owners only; of all, if none are named.
    pub owners: Vec<String>,
    /// kube-proxy's real servers at weight 0 that UDP clients are still sent to, too.
    pub black_holes: bool,
}

impl CleanupScope {
    /// The leftovers of one owner.
    pub fn of_owner(owner: &str) -> CleanupScope {
        CleanupScope { owners: vec![owner.to_owned()], black_holes: false }
    }

    /// The plan that removes this of a node's leftovers.
    ///
    /// # Errors
    /// When black holes are wanted and the node's connections cannot be judged.
    pub fn plan(&self, catalogue: &Catalogue, state: &NodeState) -> Result<Plan> {
        let ownership = Ownership::of(catalogue, state);
        let mut plan = leftovers(catalogue, state, &ownership).of_owners(&self.owners);
        if self.black_holes {
            plan.objects.extend(black_holes(state, &ownership)?);
            plan.objects.sort_unstable();
        }
        Ok(plan)
    }

    /// The edits of that plan.
    ///
    /// # Errors
    /// As [`CleanupScope::plan`].
    pub fn edits(&self, catalogue: &Catalogue, state: &NodeState) -> Result<Vec<Edit>> {
        Ok(edits(&self.plan(catalogue, state)?, state))
    }
}

/// The plan that removes what is left over on a node, and names what stays nearby.
///
/// The same state gives the same plan, in the same order.
pub fn leftovers(catalogue: &Catalogue, state: &NodeState, ownership: &Ownership<'_>) -> Plan {
    leftovers_under(&RunningMode::of(state, ownership), catalogue, state, ownership)
}

/// The plan that removes what is left over once kube-proxy serves in the mode `to`. `after` is the node
/// as [`predict_takeover`](crate::kube_proxy::takeover::predict_takeover) gives it, or as much of it as
/// a kernel holds.
pub fn leftovers_after(catalogue: &Catalogue, after: &NodeState, to: Mode) -> Plan {
    let ownership = Ownership::of(catalogue, after);
    let running = RunningMode { mode: Some(to), ..RunningMode::of(after, &ownership) };
    leftovers_under(&running, catalogue, after, &ownership)
}

/// As [`leftovers`], with `running` for the kube-proxy that runs.
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
