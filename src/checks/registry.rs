//! The list of checks.

use super::{Check, dns, ipvs, kube_proxy};

/// Every check, in the order of the documentation.
pub const CHECKS: &[Check] = &[
    dns::endpoints::CHECK,
    dns::node_local::CHECK,
    dns::resolver::CHECK,
    ipvs::conn_reuse_mode::CHECK,
    ipvs::expiry::CHECK,
    ipvs::foreign_servers::BEFORE,
    ipvs::foreign_servers::BESIDE,
    ipvs::host_firewall::CHECK,
    ipvs::left_behind::CHECK,
    ipvs::localhost_node_ports::CHECK,
    ipvs::service_address::CHECK,
    ipvs::strict_arp::CHECK,
    ipvs::udp_timeout::CHECK,
    ipvs::unbacked::CHECK,
    ipvs::zero_weight::CHECK,
    kube_proxy::deprecated_flags::CHECK,
    kube_proxy::flags::CHECK,
    kube_proxy::instances::CHECK,
    kube_proxy::ipvs_deprecated::CHECK,
    kube_proxy::ipvs_removed::CHECK,
    kube_proxy::leftover_reject::CHECK,
    kube_proxy::leftovers::CHECK,
    kube_proxy::mark_drop::CHECK,
    kube_proxy::mode::CHECK,
    kube_proxy::mode_empty::CHECK,
    kube_proxy::nftables_available::CHECK,
    kube_proxy::nftables_gap::CHECK,
    kube_proxy::proxy_mode::CHECK,
    kube_proxy::teardown::CHECK,
    super::tools_conntrack::CHECK,
];
