//! The checks of all areas, in one list.

use super::{
    Check, backends, cni, conntrack, dns, docker, invalid, ipvs, kernel, kube_proxy, nftables,
    tools, writers,
};

/// The checks of each area. The areas are in the order in which the documentation has them.
const AREAS: &[&[&Check]] = &[
    backends::CHECKS,
    cni::CHECKS,
    conntrack::CHECKS,
    dns::CHECKS,
    docker::CHECKS,
    invalid::CHECKS,
    ipvs::CHECKS,
    kernel::CHECKS,
    kube_proxy::CHECKS,
    nftables::CHECKS,
    tools::CHECKS,
    writers::CHECKS,
];

/// Every check, area by area.
pub fn all() -> impl Iterator<Item = &'static Check> {
    AREAS.iter().copied().flatten().copied()
}

/// The check that has this id.
pub fn find(id: &str) -> Option<&'static Check> {
    all().find(|check| check.id == id)
}
