//! nftables mode: what changes for a node that is moved to it, and whether it serves where it runs.

mod expressions;
mod forward_closed;
mod input_closed;
mod masquerading;
mod node_port_addresses;
mod syncs;
mod tables;

use super::kube_proxy::has_own_tables as is_here;
use super::{Check, Facts};
use crate::state::kube_proxy::Mode;

pub(super) const CHECKS: &[&Check] = &[
    &expressions::CHECK,
    &forward_closed::BEFORE,
    &forward_closed::NOW,
    &input_closed::CHECK,
    &masquerading::ALL,
    &masquerading::BIT,
    &node_port_addresses::CHECK,
    &syncs::FAILURES,
    &syncs::NEVER,
    &tables::CHECK,
];

/// Whether nftables mode is the target, and another mode runs, or none.
pub(super) fn is_target(facts: &Facts<'_>) -> bool {
    facts.to == Some(Mode::Nftables) && facts.running.mode != facts.to
}
