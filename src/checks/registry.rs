//! The list of checks.

use super::Check;

/// Every check, in the order of the documentation.
pub const CHECKS: &[Check] = &[
    super::cni::bridge_nf_call::CHECK,
    super::cni::calico_restart::CHECK,
    super::cni::configurations::CHECK,
    super::cni::flannel_order::CHECK,
    super::cni::flannel_rules::CHECK,
    super::cni::leftovers::CHECK,
    super::cni::portmap::CHECK,
    super::docker::forward_policy::CHECK,
    super::docker::masquerade::CHECK,
    super::docker::shadowed::CHECK,
    super::invalid::asymmetric_routing::CHECK,
    super::invalid::drops::CHECK,
    super::invalid::exception_order::CHECK,
    super::invalid::protection_ends::CHECK,
    super::invalid::rising::CHECK,
    super::tools_conntrack::CHECK,
];
