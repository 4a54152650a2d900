//! The modes of kube-proxy: one trait, and one file a mode that implements it.
//!
//! A new mode is its file, its line in [`of`], and its variant of [`Mode`].

mod iptables;
mod ipvs;
mod nftables;
mod rules;
mod userspace;

use crate::error::{Error, Kind, Result};
use crate::kube_proxy::services::{ServiceKey, Services};
use crate::owners::matcher::Ownership;
use crate::state::kube_proxy::{ConfigEdit, KubeProxyConfig, Masquerading, Mode};
use crate::state::{Family, NodeState};

pub use iptables::chains_by_name;

/// Everything the program knows about one mode. The default of a method means: the mode has no such
/// property.
pub trait ProxyMode: Sync {
    /// The mode.
    fn mode(&self) -> Mode;

    /// The services that the kernel serves in this mode and that `wanted` accepts, by key, and by
    /// name where the mode keeps names. It is cheap where services are many.
    fn services_where(&self, state: &NodeState, wanted: &ServiceFilter<'_>) -> Services;

    /// All services that the kernel serves in this mode.
    fn services(&self, state: &NodeState) -> Services {
        self.services_where(state, &|_, _| true)
    }

    /// The evidence that the kernel serves services in this mode; `None` if it does not.
    fn evidence(&self, state: &NodeState, ownership: &Ownership<'_>) -> Option<String>;

    /// The missing chains, sets or tables without which no service of a family is served; `None` if
    /// nothing is missing.
    fn missing_objects(&self, state: &NodeState, family: Family) -> Option<String>;

    /// Whether kube-proxy in this mode writes a family: the objects of its start exist.
    fn has_started(&self, state: &NodeState, family: Family) -> bool;

    /// The missing addresses of the services `now` that were served `before` too, one sentence
    /// each.
    fn missing_addresses(
        &self,
        _state: &NodeState,
        _before: &Services,
        _now: &Services,
    ) -> Vec<String> {
        Vec::new()
    }

    /// Whether kube-proxy runs iptables.
    fn uses_iptables(&self) -> bool {
        true
    }

    /// Whether its rules match ipsets. No other mode makes ipsets.
    fn uses_ipsets(&self) -> bool {
        false
    }

    /// Whether it makes virtual servers.
    fn has_virtual_servers(&self) -> bool {
        false
    }

    /// Whether it binds the addresses of services to a link of its own.
    fn binds_addresses(&self) -> bool {
        false
    }

    /// Whether its rules are in native nf_tables tables of its own. Such tables stand beside those
    /// of other modes.
    fn has_own_tables(&self) -> bool {
        false
    }

    /// Whether rules of the filter table refuse services without endpoints.
    fn refuses_in_filter(&self) -> bool {
        false
    }

    /// Whether connections end when its objects are removed. A clean-up drains them first.
    fn drains(&self) -> bool {
        false
    }

    /// Whether kube-proxy removes the leftovers of other modes when it starts in this mode, before
    /// its first sync.
    fn cleans_up_at_start(&self) -> bool {
        false
    }

    /// The host's programs that save and restore its objects, besides iptables.
    fn host_tools(&self) -> &'static [&'static str] {
        &[]
    }

    /// The kernel modules that a configuration needs, besides those of the playbook.
    fn modules(&self, _config: &KubeProxyConfig) -> Vec<String> {
        Vec::new()
    }

    /// The edit of kube-proxy's configuration for a move to this mode.
    fn config_edit(&self, _state: &NodeState, _ownership: &Ownership<'_>) -> ConfigEdit {
        ConfigEdit { mode: self.mode(), exclude: Vec::new() }
    }

    /// The section of a configuration that sets its masquerading.
    fn masquerading<'c>(&self, config: &'c KubeProxyConfig) -> &'c Masquerading {
        &config.iptables
    }

    /// Whether a configuration disables NodePorts on 127.0.0.1.
    fn disables_localhost_node_ports(&self, _config: &KubeProxyConfig) -> bool {
        false
    }

    /// The minor version of Kubernetes 1 that introduced the mode, where its objects show a
    /// version.
    fn since(&self) -> Option<u32> {
        None
    }

    /// The minor version of Kubernetes 1 that dropped the mode.
    fn dropped(&self) -> Option<u32> {
        None
    }

    /// A chain of the nat table, and the last minor version that writes it. A prefix ends with `-`.
    fn last_version_of_chain(&self) -> Option<(&'static str, u32)> {
        None
    }

    /// Whether the mode can be the target of a migration. If not, [`ProxyMode::unsupported`] has
    /// the reason.
    fn is_target(&self) -> bool {
        true
    }

    /// Why no playbook leads to the mode; `None` if one does.
    fn unsupported(&self) -> Option<UnsupportedMode> {
        None
    }
}

/// A filter of services, by key, and by name where the mode keeps names.
pub type ServiceFilter<'a> = dyn Fn(&ServiceKey, Option<&str>) -> bool + 'a;

/// Why no playbook leads to a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnsupportedMode {
    /// The cause.
    pub cause: &'static str,
    /// What to do instead.
    pub hint: &'static str,
}

impl UnsupportedMode {
    /// The usage error about `object`.
    pub fn error(self, object: impl Into<String>) -> Error {
        Error::new(Kind::Usage, object, self.cause).hint(self.hint)
    }
}

/// The implementation of a mode.
pub fn of(mode: Mode) -> &'static dyn ProxyMode {
    match mode {
        Mode::Iptables => &iptables::IptablesMode,
        Mode::Ipvs => &ipvs::IpvsMode,
        Mode::Nftables => &nftables::NftablesMode,
        Mode::Userspace => &userspace::UserspaceMode,
    }
}

/// Every mode.
pub fn all() -> impl Iterator<Item = &'static dyn ProxyMode> {
    Mode::ALL.into_iter().map(of)
}

/// The modes that can be the target of a migration.
pub fn targets() -> impl Iterator<Item = Mode> {
    all().filter(|mode| mode.is_target()).map(ProxyMode::mode)
}

/// The target mode of that name.
///
/// # Errors
/// [`Kind::Usage`] for an unknown mode, and for one that cannot be a target.
pub fn target(name: &str) -> Result<Mode> {
    let mode: Mode = name.parse()?;
    match of(mode).unsupported().filter(|_| !of(mode).is_target()) {
        Some(unsupported) => Err(unsupported.error("mode")),
        None => Ok(mode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_is_registered_as_itself() {
        for mode in Mode::ALL {
            assert_eq!(of(mode).mode(), mode);
        }
    }

    #[test]
    fn userspace_mode_is_no_target() {
        assert!(targets().eq(Mode::ALL.into_iter().filter(|mode| *mode != Mode::Userspace)));
        assert!(all().all(|mode| mode.is_target() || mode.unsupported().is_some()));
        assert_eq!(target("nftables").unwrap(), Mode::Nftables);
        for name in ["userspace", "ipvz", ""] {
            assert_eq!(target(name).unwrap_err().kind, Kind::Usage, "{name}");
        }
    }

    #[test]
    fn each_mode_has_its_own_section_for_masquerading() {
        let text = "iptables: {masqueradeBit: 15}\nnftables: {masqueradeBit: 9}\n";
        let config = KubeProxyConfig::parse("config.conf", text).unwrap();
        let mark = |mode| of(mode).masquerading(&config).mark();
        assert_eq!((mark(Mode::Iptables), mark(Mode::Ipvs)), (1 << 15, 1 << 15));
        assert_eq!(mark(Mode::Nftables), 1 << 9);
    }
}
