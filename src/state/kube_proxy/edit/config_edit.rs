//! An edit of kube-proxy's configuration, whether the configuration is a file or arguments.

use ipnet::IpNet;

use crate::state::kube_proxy::Mode;

/// What to change in kube-proxy's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigEdit {
    /// The mode after the edit.
    pub mode: Mode,
    /// Networks to add to `ipvs.excludeCIDRs`, so that kube-proxy leaves the virtual servers in
    /// these networks alone.
    pub exclude: Vec<IpNet>,
}

impl ConfigEdit {
    /// The networks to add that `excluded` does not cover yet.
    pub(super) fn missing(&self, excluded: &[IpNet]) -> Vec<IpNet> {
        let mut missing: Vec<IpNet> = Vec::new();
        for network in self.exclude.iter().map(IpNet::trunc) {
            if !excluded.iter().chain(&missing).any(|known| known.contains(&network)) {
                missing.push(network);
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_that_are_covered_are_not_missing() {
        let nets = |all: &[&str]| all.iter().map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
        let exclude = nets(&["10.0.0.5/32", "10.9.0.7/24", "10.9.0.0/24", "fd00::1/128"]);
        let edit = ConfigEdit { mode: Mode::Ipvs, exclude };
        assert_eq!(edit.missing(&nets(&["10.0.0.0/16"])), nets(&["10.9.0.0/24", "fd00::1/128"]));
    }
}
