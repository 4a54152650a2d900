//! Helpers for the tests of checks: captured nodes, and the verdict of a check on such a node.

use std::time::Duration;

use super::{Check, Facts, Verdict};
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::state::live_facts::LiveFacts;

#[path = "../../tests/nodes/mod.rs"]
mod nodes;

pub use nodes::Node;

/// The state of the captured node `name` in `snapshots/`.
pub fn node(name: &str) -> NodeState {
    Node::captured(name).state()
}

/// The verdict of `check` on a captured state.
pub fn verdict_of(check: &Check, state: &NodeState) -> Verdict {
    given(state).verdict(check)
}

/// Builds the facts for a check from a state.
pub fn given(state: &NodeState) -> Given<'_> {
    Given { state, to: None, earlier: None, interval: None, live: None }
}

/// The facts for a check, built step by step. See [`given`].
pub struct Given<'a> {
    state: &'a NodeState,
    to: Option<Mode>,
    earlier: Option<&'a NodeState>,
    interval: Option<Duration>,
    live: Option<&'a LiveFacts>,
}

impl<'a> Given<'a> {
    /// Sets the target mode of a migration.
    pub fn to(self, to: impl Into<Option<Mode>>) -> Given<'a> {
        Given { to: to.into(), ..self }
    }

    /// Sets the earlier capture, which checks compare with the state.
    pub fn earlier(self, earlier: impl Into<Option<&'a NodeState>>) -> Given<'a> {
        Given { earlier: earlier.into(), ..self }
    }

    /// Sets the time between the two captures, in seconds.
    pub fn after(self, seconds: u64) -> Given<'a> {
        Given { interval: Some(Duration::from_secs(seconds)), ..self }
    }

    /// Sets the facts that only a live node has.
    pub fn live(self, live: &'a LiveFacts) -> Given<'a> {
        Given { live: Some(live), ..self }
    }

    /// The verdict of a check, which must apply to the facts.
    pub fn verdict(self, check: &Check) -> Verdict {
        self.facts(|facts| {
            assert!((check.applies)(facts), "{} does not apply", check.id);
            (check.evaluate)(facts)
        })
    }

    /// Calls `work` with the facts, which `work` may change.
    pub fn facts<T>(self, work: impl FnOnce(&mut Facts<'_>) -> T) -> T {
        let catalogue = Catalogue::builtin().expect("the catalogue");
        let ownership = Ownership::of(&catalogue, self.state);
        let Given { to, earlier, interval, live, .. } = self;
        let facts = Facts::of(self.state, &catalogue, &ownership, to);
        work(&mut Facts { earlier, interval, live, ..facts })
    }
}
