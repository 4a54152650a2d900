//! Packets in conntrack's state INVALID, and the rules that drop them.

mod asymmetric_routing;
mod drops;
mod exception_order;
mod protection_ends;
mod rising;
mod rules;

use super::Check;

pub(crate) use drops::felix_setting;
pub(crate) use rules::{LIBERAL, first_gate, gate_in, program};

pub(super) const CHECKS: &[&Check] = &[
    &asymmetric_routing::CHECK,
    &drops::CHECK,
    &exception_order::CHECK,
    &protection_ends::CHECK,
    &protection_ends::COUNTED,
    &rising::CHECK,
];
