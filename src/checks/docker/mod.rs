//! Docker's bridges: their masquerade rules, and the policy of chain FORWARD.

mod forward_policy;
mod masquerade;
mod native;
mod networks;
mod shadowed;

use super::Check;

pub(super) const CHECKS: &[&Check] =
    &[&forward_policy::CHECK, &masquerade::CHECK, &shadowed::CHECK];
