//! Connection tracking: how full the conntrack table is, counters of lost packets, and sysctls.

mod rising;
mod sysctls;

use super::Check;

pub(super) const CHECKS: &[&Check] = &[
    &sysctls::BE_LIBERAL,
    &rising::DROP,
    &rising::EARLY_DROP,
    &rising::INSERT_FAILED,
    &sysctls::TABLE_FULL,
    &sysctls::TCP_LOOSE,
];
