//! The modes of kube-proxy: one trait, and one file for each mode that implements the trait.
//!
//! A new mode needs a file, a line in [`of`] and a variant of [`Mode`].

mod iptables;
mod ipvs;
mod nftables;
mod rules;
mod userspace;

use std::collections::BTreeSet;

use crate::error::{Error, Kind, Result};
use crate::kube_proxy::reach::PodSource;
use crate::kube_proxy::services::{ServiceKey, Services, StickyClients, Untold};
use crate::owners::matcher::Ownership;
use crate::state::affinity::AffinityLists;
use crate::state::kube_proxy::{ConfigEdit, KubeProxyConfig, Masquerading, Mode};
use crate::state::tools::Version;
use crate::state::{Backend, Family, NodeState};

pub use iptables::chains_by_name;

/// Everything the program knows about one mode of kube-proxy. A method's default means that the
/// mode does not have that property.
pub trait ProxyMode: Sync {
    /// The mode that this implementation describes.
    fn mode(&self) -> Mode;

    /// The services that the kernel serves in this mode and that `wanted` accepts. `wanted` gets
    /// the key of each service, and its name if the mode keeps names. This method is fast even on a
    /// node with many services.
    fn services_where(&self, state: &NodeState, wanted: &ServiceFilter<'_>) -> Services;

    /// All services that the kernel serves in this mode.
    fn services(&self, state: &NodeState) -> Services {
        self.services_where(state, &|_, _| true)
    }

    /// Which endpoint each client of a service stays with by session affinity: `lists` has what the
    /// kernel keeps of it outside of rules and tables.
    fn sticky_clients(&self, _state: &NodeState, _lists: &AffinityLists) -> StickyClients {
        StickyClients::new()
    }

    /// A node state with those rules of the mode that translate connections to these service ports, and
    /// nothing else; `None` where the mode translates by more than rules. It is small on a node with
    /// many services, and translates these connections as the whole node does.
    fn translating_rules(
        &self,
        _state: &NodeState,
        _ports: &BTreeSet<ServiceKey>,
    ) -> Option<NodeState> {
        None
    }

    /// How the mode's rules tell the connections of pods from others, in a family.
    fn pods(&self, state: &NodeState, family: Family) -> PodSource {
        rules::pods(state, family)
    }

    /// Whether the mode answers NodePorts at any address of a family.
    fn answers_node_ports(&self, _state: &NodeState, _family: Family) -> bool {
        true
    }

    /// Whether the mode's rules lead to NodePorts on 127.0.0.1.
    fn serves_localhost(&self, _state: &NodeState) -> bool {
        false
    }

    /// A table of the mode whose content the state does not tell, so that its services are not known.
    fn unlisted_table(&self, _state: &NodeState) -> Option<String> {
        None
    }

    /// What the mode's rules do not tell of services.
    fn untold(&self) -> &'static [Untold] {
        &[]
    }

    /// The evidence that the kernel serves services in this mode; `None` if the kernel does not.
    fn evidence(&self, state: &NodeState, ownership: &Ownership<'_>) -> Option<String>;

    /// Which chains, ipsets or tables are missing without which no service of a family is served;
    /// `None` if nothing is missing.
    fn missing_objects(&self, state: &NodeState, family: Family) -> Option<String>;

    /// Whether kube-proxy has started to write a family in this mode: the objects that it makes at
    /// its start exist.
    fn has_started(&self, state: &NodeState, family: Family) -> bool;

    /// Whether kube-proxy's first sync writes all services of a family in one transaction, so that any
    /// of them shows that it is done.
    fn writes_family_at_once(&self) -> bool {
        true
    }

    /// The addresses that are missing for services that were served `before` and are served `now`,
    /// one sentence each.
    fn missing_addresses(
        &self,
        _state: &NodeState,
        _before: &Services,
        _now: &Services,
    ) -> Vec<String> {
        Vec::new()
    }

    /// Whether kube-proxy runs the iptables programs in this mode.
    fn uses_iptables(&self) -> bool {
        true
    }

    /// Whether this mode's rules match ipsets. No other mode makes ipsets.
    fn uses_ipsets(&self) -> bool {
        false
    }

    /// Whether this mode makes ipvs virtual servers.
    fn has_virtual_servers(&self) -> bool {
        false
    }

    /// Whether this mode binds service addresses to a link of kube-proxy's.
    fn binds_addresses(&self) -> bool {
        false
    }

    /// Whether this mode's rules are in native nf_tables tables of kube-proxy's, which can exist
    /// beside the objects of other modes.
    fn has_own_tables(&self) -> bool {
        false
    }

    /// Whether this mode refuses services without endpoints by rules of the filter table.
    fn refuses_in_filter(&self) -> bool {
        false
    }

    /// Whether connections end when this mode's objects are removed. If so, a clean-up first waits
    /// until these connections have drained.
    fn drains(&self) -> bool {
        false
    }

    /// The programs of the host, besides iptables, that save and restore this mode's objects.
    fn host_tools(&self) -> &'static [&'static str] {
        &[]
    }

    /// The kernel modules that a kube-proxy of `version` needs in this mode with `config`, besides
    /// those that the playbook lists. Where one is not known, those that any version and the default
    /// configuration need.
    fn modules(
        &self,
        _config: Option<&KubeProxyConfig>,
        _version: Option<Version>,
    ) -> BTreeSet<String> {
        BTreeSet::new()
    }

    /// The sysctls that kube-proxy sets in this mode, and that no mode resets.
    fn sysctls(&self) -> &'static [ModeSysctl] {
        &[]
    }

    /// Where this mode takes new connections to services, among what acts on a packet of a family;
    /// `None` if this is not known.
    fn precedence(&self, _state: &NodeState, _family: Family) -> Option<Precedence> {
        Some(Precedence::Nat(IPTABLES_NAT))
    }

    /// What was measured of the moves between this mode and nftables mode, where kube-proxy's
    /// iptables has this backend; `None` for modes between which there is no gap.
    fn crossing(&self, _backend: Backend) -> Option<Crossing> {
        None
    }

    /// The edit of kube-proxy's configuration that moves it to this mode.
    fn config_edit(&self, _state: &NodeState, _ownership: &Ownership<'_>) -> ConfigEdit {
        ConfigEdit { mode: self.mode(), exclude: Vec::new() }
    }

    /// The section of a kube-proxy configuration that sets masquerading in this mode.
    fn masquerading<'c>(&self, config: &'c KubeProxyConfig) -> &'c Masquerading {
        &config.iptables
    }

    /// Whether a kube-proxy configuration disables NodePorts on 127.0.0.1 in this mode.
    fn disables_localhost_node_ports(&self, _config: &KubeProxyConfig) -> bool {
        false
    }

    /// The minor version of Kubernetes 1 that the mode's objects prove kube-proxy to be at least of,
    /// if they prove more than names of chains do.
    fn since(&self, _state: &NodeState) -> Option<u32> {
        None
    }

    /// The first minor version of Kubernetes 1 without the mode.
    fn dropped(&self) -> Option<u32> {
        None
    }

    /// The name of a chain of the nat table, or a prefix of such names that ends with `-`; and the
    /// last minor version that writes such a chain.
    fn last_version_of_chain(&self) -> Option<(&'static str, u32)> {
        None
    }

    /// Why no playbook leads to the mode; `None` if a playbook does.
    fn unsupported(&self) -> Option<UnsupportedMode> {
        None
    }
}

/// A sysctl that kube-proxy sets in a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeSysctl {
    /// Its name: `net.ipv4.vs.conntrack`.
    pub name: &'static str,
    /// The value that kube-proxy gives it.
    pub value: &'static str,
    /// The kernel's own value.
    pub default: &'static str,
    /// What the value does where the mode does not run.
    pub effect: &'static str,
}

/// What makes NodePorts answer on 127.0.0.1, which nftables mode never does.
const ROUTE_LOCALNET: ModeSysctl = ModeSysctl {
    name: "net.ipv4.conf.all.route_localnet",
    value: "1",
    default: "0",
    effect: "packets to 127.0.0.0/8 that come from outside are not dropped as they arrive \
             (CVE-2020-8558)",
};

/// The priority of the chains PREROUTING and OUTPUT of iptables' table nat (iptables-extensions(8)
/// and NF_IP_PRI_NAT_DST of the kernel).
const IPTABLES_NAT: i64 = -100;

/// Where new connections to services are taken. The lower one has the first say.
///
/// The kernel asks the chains that translate addresses in order of priority, until one has set a
/// mapping; of two with the same priority it asks the one first that was registered last. ipvs gets
/// what none of them has translated (nf_nat_inet_fn and ip_vs_ops4 of the kernel; tried on 6.18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Precedence {
    /// In chains that translate destinations, at this priority.
    Nat(i64),
    /// In ipvs.
    Ipvs,
}

/// Times that were measured with 20, 1,000 and 5,000 services of 5 endpoints each: the least and the
/// most, in seconds.
pub type Measured = [(f64, f64); 3];

/// What was measured of the moves between a mode and nftables mode, as kube-proxy makes them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crossing {
    /// How long services are not served on the way to nftables mode.
    pub leaving: Measured,
    /// How long services are not served on the way back.
    pub returning: Measured,
    /// How long the mode's own first sync takes.
    pub first_sync: Measured,
}

/// Selects services: gets the key of each service, and its name if the mode keeps names.
pub type ServiceFilter<'a> = dyn Fn(&ServiceKey, Option<&str>) -> bool + 'a;

/// Why no playbook leads to a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnsupportedMode {
    /// The reason, for an error message.
    pub cause: &'static str,
    /// What the operator can do instead.
    pub hint: &'static str,
}

impl UnsupportedMode {
    /// The usage error that reports this reason about `object`.
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

/// The implementations of all modes.
pub fn all() -> impl Iterator<Item = &'static dyn ProxyMode> {
    Mode::ALL.into_iter().map(of)
}

/// The modes that a migration can lead to.
pub fn targets() -> impl Iterator<Item = Mode> {
    all().filter(|mode| mode.unsupported().is_none()).map(ProxyMode::mode)
}

/// Parses the name of a mode that a migration can lead to.
///
/// # Errors
/// [`Kind::Usage`] for an unknown mode, and for a mode that no migration can lead to.
pub fn target(name: &str) -> Result<Mode> {
    let mode: Mode = name.parse()?;
    match of(mode).unsupported() {
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
