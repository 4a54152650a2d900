//! Traps of ipvs mode, for a node that runs ipvs mode or is to be moved to it.

mod foreign_servers;
mod host_firewall;
mod left_behind;
mod localhost_node_ports;
mod service_address;
mod strict_arp;
mod sysctls;
mod timeouts;
mod unbacked;
mod zero_weight;

use super::{Check, Facts};
use crate::kube_proxy::mode;
use crate::owners::component::KUBE_PROXY;
use crate::state::ipvs::{Listing, Protocol, VirtualServerId};

pub(super) const CHECKS: &[&Check] = &[
    &sysctls::CONN_REUSE_MODE,
    &sysctls::EXPIRY,
    &foreign_servers::BEFORE,
    &foreign_servers::BESIDE,
    &foreign_servers::FLUSHED,
    &host_firewall::CHECK,
    &left_behind::CHECK,
    &localhost_node_ports::CHECK,
    &service_address::CHECK,
    &strict_arp::CHECK,
    &timeouts::TCP,
    &timeouts::UDP,
    &unbacked::CHECK,
    &zero_weight::CHECK,
];

/// The virtual servers, each with its number of connections; `None` if `ipvs.list` was not
/// captured.
fn listing(facts: &Facts<'_>) -> Option<Listing> {
    Listing::parse("ipvs.list", facts.now.files.get("ipvs.list")?).ok()
}

/// True if kube-proxy owns the virtual server.
fn is_kube_proxys(facts: &Facts<'_>, service: &VirtualServerId) -> bool {
    facts.ownership.virtual_server(service).is_some_and(|o| o.name == KUBE_PROXY)
}

/// True if the running mode makes ipvs virtual servers.
fn serves_by_servers(facts: &Facts<'_>) -> bool {
    facts.running.mode.is_some_and(|mode| mode::of(mode).has_virtual_servers())
}

/// True if the running mode makes ipvs virtual servers, or if the node has any.
fn has_servers(facts: &Facts<'_>) -> bool {
    serves_by_servers(facts) || !facts.now.ipvs.servers.is_empty()
}

/// The rank of a virtual server in a report, 0 first. UDP comes before TCP because UDP flows never
/// close. Within a protocol, DNS comes first because every pod needs DNS.
fn urgency(service: &VirtualServerId) -> u8 {
    match service {
        VirtualServerId::Address { protocol: Protocol::Udp, address } if address.port() == 53 => 0,
        VirtualServerId::Address { protocol: Protocol::Udp, .. } => 1,
        VirtualServerId::Address { address, .. } if address.port() == 53 => 2,
        _ => 3,
    }
}
