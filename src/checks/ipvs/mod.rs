//! Traps of ipvs mode, running or ahead.

pub(crate) mod conn_reuse_mode;
pub(crate) mod expiry;
pub(crate) mod foreign_servers;
pub(crate) mod host_firewall;
pub(crate) mod left_behind;
pub(crate) mod localhost_node_ports;
pub(crate) mod service_address;
pub(crate) mod strict_arp;
pub(crate) mod udp_timeout;
pub(crate) mod unbacked;
pub(crate) mod zero_weight;

use super::Facts;
use crate::kube_proxy::mode;
use crate::state::ipvs::{Listing, Protocol, Service};
use crate::state::sysctl::Sysctls;

/// The sysctls of the state.
fn sysctls(facts: &Facts<'_>) -> Option<Sysctls> {
    Sysctls::parse("sysctl.txt", facts.now.files.get("sysctl.txt")?).ok()
}

/// Virtual servers with their connections; none if they were not captured.
fn listing(facts: &Facts<'_>) -> Option<Listing> {
    Listing::parse("ipvs.list", facts.now.files.get("ipvs.list")?).ok()
}

/// True for a virtual server of kube-proxy's.
fn is_kube_proxys(facts: &Facts<'_>, service: &Service) -> bool {
    facts.ownership.virtual_server(service).is_some_and(|o| o.name == "kube-proxy")
}

/// True where a mode runs that makes virtual servers.
fn serves_by_servers(facts: &Facts<'_>) -> bool {
    facts.running.mode.is_some_and(|mode| mode::of(mode).has_virtual_servers())
}

/// True where virtual servers are, or will be.
fn has_servers(facts: &Facts<'_>) -> bool {
    serves_by_servers(facts) || !facts.now.ipvs.servers.is_empty()
}

/// The worst first: UDP, which never closes, and DNS, which everything needs.
fn urgency(service: &Service) -> u8 {
    match service {
        Service::Address { protocol: Protocol::Udp, address } if address.port() == 53 => 0,
        Service::Address { protocol: Protocol::Udp, .. } => 1,
        Service::Address { address, .. } if address.port() == 53 => 2,
        _ => 3,
    }
}
