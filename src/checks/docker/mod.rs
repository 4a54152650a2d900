//! Docker's bridges: their masquerade rules, and the policy of FORWARD.

pub(super) mod forward_policy;
pub(super) mod masquerade;
mod networks;
pub(super) mod shadowed;
