//! Connection tracking: how full the conntrack table is, counters of lost packets, sysctls, and flows
//! that miss their service.

mod rising;
mod sysctls;
mod untranslated;

use super::Check;

pub(super) const CHECKS: &[&Check] = &[
    &sysctls::BE_LIBERAL,
    &rising::DROP,
    &rising::EARLY_DROP,
    &rising::INSERT_FAILED,
    &sysctls::TABLE_FULL,
    &sysctls::TCP_LOOSE,
    &untranslated::CHECK,
];
