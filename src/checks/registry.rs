//! The list of checks.

use super::Check;

/// Every check, in the order of the documentation.
pub const CHECKS: &[Check] = &[
    super::docker::forward_policy::CHECK,
    super::docker::masquerade::CHECK,
    super::docker::shadowed::CHECK,
    super::tools_conntrack::CHECK,
];
