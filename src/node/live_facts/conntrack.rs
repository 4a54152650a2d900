//! Reads the flows that wait for an answer untranslated.

use crate::node::conntrack::ConntrackSocket;
use crate::state::conntrack::ConntrackEntry;
use crate::state::live_facts::{Availability, Modules};

/// The entries of conntrack that are neither translated nor in use; `None` if they cannot be read
/// without loading a module.
pub(super) fn untranslated(modules: &Modules) -> Option<Vec<ConntrackEntry>> {
    match modules.availability("nf_conntrack_netlink") {
        Availability::Loaded | Availability::BuiltIn => {
            let mut conntrack = ConntrackSocket::open().ok()?;
            conntrack.entries(|entry| !entry.in_use && !entry.is_translated()).ok()
        }
        Availability::Loadable | Availability::Missing | Availability::Unknown => None,
    }
}
