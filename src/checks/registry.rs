//! The checks of all areas.

use super::{
    Check, backends, cni, conntrack, dns, docker, invalid, ipvs, kernel, kube_proxy, tools, writers,
};

/// The checks of each area, in the order of the documentation.
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
    tools::CHECKS,
    writers::CHECKS,
];

/// Every check, by area and id.
pub fn all() -> impl Iterator<Item = &'static Check> {
    AREAS.iter().copied().flatten().copied()
}

/// The check with that id.
pub fn find(id: &str) -> Option<&'static Check> {
    all().find(|check| check.id == id)
}
