//! Finds the addresses that the CNI plugin host-local has leased to pods. Each lease is a file
//! named after its address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::node::foreign::Root;

const LEASES: &str = "/var/lib/cni/networks";

/// The leased addresses of all networks; none if host-local has no leases here, or if they are not
/// all known: who has an address would then seem to have none.
pub(super) fn addresses() -> Option<BTreeSet<IpAddr>> {
    below(&Root::ours().ok()?, LEASES)
}

fn below(root: &Root, leases: &str) -> Option<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    for network in root.directories(leases).ok()? {
        let files = root.names(&format!("{leases}/{network}")).ok()?;
        found.extend(files.iter().filter_map(|name| name.parse::<IpAddr>().ok()));
    }
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn files_named_by_addresses_are_leases() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        assert_eq!(below(&root, "/"), None);
        let network = dir.path().join("cbr0");
        fs::create_dir(&network).unwrap();
        for name in ["10.244.0.5", "fd00::5", "last_reserved_ip.0", "lock"] {
            fs::write(network.join(name), "id\r\neth0").unwrap();
        }
        let found: Vec<String> =
            below(&root, "/").unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.244.0.5", "fd00::5"]);
    }
}
