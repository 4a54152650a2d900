//! The list of checks.

use super::Check;

/// Every check, in the order of the documentation.
pub const CHECKS: &[Check] = &[super::tools_conntrack::CHECK];
