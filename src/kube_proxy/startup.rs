//! What kube-proxy removes when it starts: the objects of other modes, before it has asked the API
//! server for anything, and long before its first sync.
//!
//! Source: `platformCleanup` of cmd/kube-proxy in 1.34.4 and 1.37.2, and
//! `reference/nftables-and-daemonset.md`, A4.

use crate::kube_proxy::mode;
use crate::state::kube_proxy::{KubeProxyConfig, Mode};
use crate::state::tools::Version;

/// The feature gate of nftables mode: alpha in 1.29, on by default from 1.31 on, always on from 1.33
/// on.
pub const NFTABLES_GATE: &str = "NFTablesProxyMode";

/// Whether a kube-proxy of `version` has nftables mode, and has it on; `None` if this depends on a
/// configuration that is not known.
pub fn has_nftables(version: Version, config: Option<&KubeProxyConfig>) -> Option<bool> {
    let gate = || config.map(|config| config.feature_gates.get(NFTABLES_GATE).copied());
    match (version.major, version.minor) {
        older if older < (1, 29) => Some(false),
        (1, 29 | 30) => Some(gate()?.unwrap_or(false)),
        (1, 31 | 32) => Some(gate()?.unwrap_or(true)),
        _ => Some(true),
    }
}

/// The modes whose objects a kube-proxy of `version` removes as it starts in the mode `to`; `None` if
/// this depends on a configuration that is not known.
///
/// Up to 1.14.0 these are all others; from 1.14.1 to 1.28 none; from 1.29 on those on the other side
/// of nftables mode. A move between iptables and ipvs mode leaves everything since.
pub fn removed_at_start(
    version: Version,
    config: Option<&KubeProxyConfig>,
    to: Mode,
) -> Option<Vec<Mode>> {
    let has_nftables = has_nftables(version, config)?;
    let own_tables = mode::of(to).has_own_tables();
    let removed = |other: Mode| {
        let crosses = mode::of(other).has_own_tables() != own_tables;
        let exists = mode::of(other).dropped().is_none_or(|minor| version.minor < minor);
        match version {
            Version { major: 1, minor: 14, patch: 0 } | Version { major: 1, minor: ..14, .. } => {
                !crosses && other != to
            }
            _ => crosses && exists && has_nftables,
        }
    };
    Some(mode::all().map(|m| m.mode()).filter(|other| removed(*other)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_removes_its_own() {
        use Mode::{Iptables, Ipvs, Nftables, Userspace};
        let gate = |on| KubeProxyConfig {
            feature_gates: [(NFTABLES_GATE.to_owned(), on)].into(),
            ..KubeProxyConfig::default()
        };
        let (plain, on, off) = (KubeProxyConfig::default(), gate(true), gate(false));
        for (version, config, to, expected) in [
            ("1.12.3", Some(&plain), Ipvs, Some(vec![Iptables, Userspace])),
            ("1.14.0", None, Iptables, Some(vec![Ipvs, Userspace])),
            ("1.14.1", None, Ipvs, Some(vec![])),
            ("1.28.15", Some(&on), Iptables, Some(vec![])),
            ("1.30.5", Some(&plain), Iptables, Some(vec![])),
            ("1.30.5", Some(&on), Ipvs, Some(vec![Nftables])),
            ("1.30.5", Some(&on), Nftables, Some(vec![Iptables, Ipvs])),
            ("1.30.5", None, Iptables, None),
            ("1.32.0", Some(&plain), Iptables, Some(vec![Nftables])),
            ("1.32.0", Some(&off), Iptables, Some(vec![])),
            ("1.37.2", Some(&off), Ipvs, Some(vec![Nftables])),
            ("1.37.2", None, Nftables, Some(vec![Iptables, Ipvs])),
            ("1.44.0", None, Nftables, Some(vec![Iptables, Ipvs])),
        ] {
            let number = Version::find(version).expect("a version");
            let found = removed_at_start(number, config, to);
            assert_eq!(found, expected, "{version} to {to}");
        }
    }
}
