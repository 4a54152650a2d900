//! Finds the addresses that the CNI plugin host-local has leased to pods. Each lease is a file
//! named after its address.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

const LEASES: &str = "/var/lib/cni/networks";

/// The leased addresses of all networks; none if host-local has no leases here.
pub(super) fn addresses() -> Option<BTreeSet<IpAddr>> {
    below(Path::new(LEASES))
}

fn below(leases: &Path) -> Option<BTreeSet<IpAddr>> {
    let networks = fs::read_dir(leases).ok()?.flatten();
    let files =
        networks.filter_map(|network| fs::read_dir(network.path()).ok()).flatten().flatten();
    let address = |name: &str| name.parse().ok();
    let found: BTreeSet<IpAddr> =
        files.filter_map(|file| address(file.file_name().to_str()?)).collect();
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_named_by_addresses_are_leases() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(below(dir.path()), None);
        let network = dir.path().join("cbr0");
        fs::create_dir(&network).unwrap();
        for name in ["10.244.0.5", "fd00::5", "last_reserved_ip.0", "lock"] {
            fs::write(network.join(name), "id\r\neth0").unwrap();
        }
        let found: Vec<String> =
            below(dir.path()).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.244.0.5", "fd00::5"]);
    }
}
