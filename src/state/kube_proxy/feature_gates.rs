//! The feature gates of Kubernetes, and from which version on kube-proxy no longer takes them.
//!
//! All components share one list of gates. kube-proxy does not start with a gate that it does not
//! know, or with a value that a gate no longer takes.

use std::collections::HashMap;
use std::sync::LazyLock;

/// What became of a feature gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateFate {
    /// The newest known kube-proxy takes the gate with any value.
    Free,
    /// From the minor version `since` of Kubernetes 1 on, the gate takes no value but `value`.
    Locked {
        /// The first minor version that refuses the other value.
        since: u32,
        /// The only value.
        value: bool,
    },
    /// From this minor version of Kubernetes 1 on, no kube-proxy knows the gate.
    Gone(u32),
    /// The newest known kube-proxy does not know the gate.
    Unknown,
}

static FATES: LazyLock<HashMap<&str, GateFate>> = LazyLock::new(|| {
    let lines = include_str!("feature-gates.txt").lines();
    lines.filter(|line| !line.starts_with('#')).filter_map(parse).collect()
});

/// What became of the feature gate `name`.
pub fn gate_fate(name: &str) -> GateFate {
    FATES.get(name).copied().unwrap_or(GateFate::Unknown)
}

/// The gate and its fate in a line of `feature-gates.txt`; none for any other line.
fn parse(line: &str) -> Option<(&str, GateFate)> {
    let minor = |version: &str| version.strip_prefix("1.")?.parse().ok();
    match line.split(' ').collect::<Vec<_>>()[..] {
        [name] => Some((name, GateFate::Free)),
        [name, "gone", version] => Some((name, GateFate::Gone(minor(version)?))),
        [name, "locked", version, value] => {
            let (since, value) = (minor(version)?, value.parse().ok()?);
            Some((name, GateFate::Locked { since, value }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_gate() {
        let lines = include_str!("feature-gates.txt").lines().filter(|l| !l.starts_with('#'));
        let names: Vec<&str> =
            lines.map(|line| parse(line).unwrap_or_else(|| panic!("{line}")).0).collect();
        assert!(names.is_sorted() && names.len() == FATES.len(), "twice, or not sorted");
        assert!(names.iter().all(|n| n.chars().all(|c| c.is_ascii_alphanumeric())));
    }

    #[test]
    fn gates_of_each_fate() {
        assert_eq!(gate_fate("KubeProxyIPVS"), GateFate::Free);
        let locked = GateFate::Locked { since: 33, value: true };
        assert_eq!(gate_fate("NFTablesProxyMode"), locked);
        assert_eq!(gate_fate("IPv6DualStack"), GateFate::Gone(25));
        // They went between two versions that are built here.
        assert_eq!(gate_fate("ServerSideApply"), GateFate::Gone(32));
        assert_eq!(gate_fate("IPTablesOwnershipCleanup"), GateFate::Gone(30));
        assert_eq!(gate_fate("NoSuchGate"), GateFate::Unknown);
    }
}
