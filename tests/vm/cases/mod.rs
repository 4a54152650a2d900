//! The cases, each in namespaces of its own.

mod back;
mod forward;
mod migrate;
mod serving;

use std::collections::BTreeSet;

use crate::common::run;

/// All virtual servers that there are now, a line each and one for each of their real servers.
fn servers() -> BTreeSet<String> {
    run("ipvsadm -Sn").lines().map(str::to_owned).collect()
}

/// The names of all ipsets.
fn sets() -> BTreeSet<String> {
    run("ipset list -n").lines().map(str::to_owned).collect()
}
