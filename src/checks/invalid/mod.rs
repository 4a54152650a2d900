//! Packets that conntrack calls INVALID, and the rules that drop them.

pub(super) mod asymmetric_routing;
pub(super) mod drops;
pub(super) mod exception_order;
pub(super) mod protection_ends;
pub(super) mod rising;
mod rules;

pub(crate) use drops::felix_setting;
pub(crate) use rules::first_gate;
pub(super) use rules::sysctls;
