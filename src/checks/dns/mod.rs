//! The cluster's DNS. Every pod needs it during a migration.

mod corefile;
mod endpoints;
mod gone;
mod node_local;
mod resolver;

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Check, Facts};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::{ServiceKey, Services};
use crate::state::kube_proxy::Mode;

pub(super) const CHECKS: &[&Check] = &[&endpoints::CHECK, &node_local::CHECK, &resolver::CHECK];

/// The cluster's DNS services as `mode` serves them. They are found by name or, if the mode keeps
/// no names, are all services on port 53.
fn cluster_dns(facts: &Facts<'_>, mode: Mode) -> Services {
    mode::of(mode).services_where(facts.now, &|key: &ServiceKey, name| {
        let named = |n: &str| {
            let service = n.split(':').next().unwrap_or(n);
            ["kube-system/kube-dns", "kube-system/coredns"].contains(&service)
        };
        key.port == 53 && key.address().is_some() && name.is_none_or(named)
    })
}

/// The addresses of the cluster's DNS services, in every mode that may be running.
fn cluster_addresses(facts: &Facts<'_>) -> BTreeSet<IpAddr> {
    let services = modes(facts).into_iter().flat_map(|mode| cluster_dns(facts, mode));
    services.filter_map(|(key, _)| key.address()).collect()
}

/// The addresses of every service on port 53, whatever its name, because nodelocaldns forwards to
/// the cluster's DNS through a service of its own.
fn dns_addresses(facts: &Facts<'_>) -> BTreeSet<IpAddr> {
    let services = modes(facts).into_iter();
    let services =
        services.flat_map(|mode| mode::of(mode).services_where(facts.now, &|k, _| k.port == 53));
    services.filter_map(|(key, _)| key.address()).collect()
}

/// The running mode, or every mode if the running mode is not clear.
fn modes(facts: &Facts<'_>) -> Vec<Mode> {
    match facts.running.mode {
        Some(mode) => vec![mode],
        None => Mode::ALL.to_vec(),
    }
}

/// True for a link-local address, which is valid only on this node, such as that of nodelocaldns.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

/// The addresses on the link nodelocaldns.
fn node_local_addresses(facts: &Facts<'_>) -> BTreeSet<IpAddr> {
    let links = facts.now.links.iter().filter(|l| l.name == "nodelocaldns");
    links.flat_map(|l| l.addresses.iter().map(ipnet::IpNet::addr)).collect()
}
