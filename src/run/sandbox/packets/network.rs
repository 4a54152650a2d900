//! The namespaces in which packets are sent: a node with one link to pods and one to the outside, and
//! a host at the other end of each.
//!
//! The node has all addresses of the rehearsed node on one link, and sends everything to one neighbour
//! whose hardware address nobody has: nothing is resolved, and nothing comes back.

use std::fmt::Write;
use std::net::IpAddr;

use super::cases::Surroundings;
use crate::error::Result;
use crate::node::tools::Tools;
use crate::run::sandbox::links::ip_batch;
use crate::run::sandbox::packet_probe::in_namespace;
use crate::state::Family;

/// The names of the network namespaces.
pub(super) const NODE: &str = "ps-node";
pub(super) const PODS: &str = "ps-pods";
pub(super) const OUTSIDE: &str = "ps-around";

/// The links of the node to the outside, and of the hosts to the node.
const UPLINK: &str = "ps-uplink";
const TO_NODE: &str = "ps-to-node";

/// The hardware addresses of the node's links, and one that nobody has.
const OF_NODE: &str = "02:00:00:00:00:01";
const OF_NOBODY: &str = "02:00:00:00:00:02";

/// What decides whether a packet is taken, sent on and translated. A name that this kernel lacks
/// decides nothing.
const SYSCTLS: [(&str, &str); 15] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/route_localnet", "1"),
    ("ipv4/conf/default/route_localnet", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/accept_dad", "0"),
    // Packets made by hand have no checksums.
    ("netfilter/nf_conntrack_checksum", "0"),
    // Seconds for which conntrack has what nobody answers: SCTP has 3 by default.
    ("netfilter/nf_conntrack_tcp_timeout_syn_sent", "600"),
    ("netfilter/nf_conntrack_udp_timeout", "600"),
    ("netfilter/nf_conntrack_sctp_timeout_cookie_wait", "600"),
];

/// The neighbour to which everything goes.
fn neighbour(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "169.254.1.1",
        Family::Ipv6 => "fe80::1",
    }
}

/// An address for the host at the other end of a link, from which it sends nothing.
fn idle_address(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "169.254.1.2/32",
        Family::Ipv6 => "fd00:7073::2/128",
    }
}

/// Makes the namespaces. `pod_link` is the name of the node's link to pods.
pub(super) fn make(around: &[Surroundings], pod_link: &str, tools: &Tools) -> Result<()> {
    let namespaces = [NODE, PODS, OUTSIDE].map(|name| format!("netns add {name}\n"));
    ip_batch(&namespaces.concat(), tools)?;
    let node = |name| in_namespace(name, set_sysctls);
    [NODE, PODS, OUTSIDE].into_iter().try_for_each(node)?;
    in_namespace(NODE, || ip_batch(&node_links(around, pod_link), tools))??;
    for host in [PODS, OUTSIDE] {
        in_namespace(host, || ip_batch(&host_link(around), tools))??;
    }
    Ok(())
}

/// Removes the namespaces, and all that is in them.
pub(super) fn remove(tools: &Tools) -> Result<()> {
    ip_batch(&[NODE, PODS, OUTSIDE].map(|name| format!("netns del {name}\n")).concat(), tools)
}

/// Sets what decides about packets in the namespace of this thread.
pub(super) fn set_sysctls() {
    for (name, value) in SYSCTLS {
        // An error is ignored: where a packet goes astray for it, no connection is tried.
        let _ = std::fs::write(format!("/proc/sys/net/{name}"), value);
    }
}

fn node_links(around: &[Surroundings], pod_link: &str) -> String {
    let mut batch = String::from("link set lo up\n");
    for (link, host) in [(UPLINK, OUTSIDE), (pod_link, PODS)] {
        // Writing to a string does not fail.
        let _ = writeln!(
            batch,
            "link add name {link} address {OF_NODE} type veth peer name {TO_NODE} netns {host}\n\
             link set dev {link} up"
        );
    }
    for Surroundings { family, own, masquerade, .. } in around {
        // The kernel masquerades by the first address, and in IPv6 by one that is not deprecated.
        let _ = writeln!(batch, "{}", address(*masquerade, ""));
        for own in own.iter().filter(|own| !own.is_loopback()) {
            let deprecated = if own.is_ipv6() { " preferred_lft 0" } else { "" };
            let _ = writeln!(batch, "{}", address(*own, deprecated));
        }
        batch += &way(*family, UPLINK, OF_NOBODY);
    }
    batch
}

fn address(address: IpAddr, options: &str) -> String {
    let (length, nodad) = if address.is_ipv4() { (32, "") } else { (128, " nodad") };
    format!("addr add {address}/{length} dev {UPLINK}{nodad}{options}")
}

fn host_link(around: &[Surroundings]) -> String {
    let mut batch = format!("link set lo up\nlink set dev {TO_NODE} up\n");
    for Surroundings { family, .. } in around {
        let nodad = if *family == Family::Ipv6 { " nodad" } else { "" };
        let _ = writeln!(batch, "addr add {} dev {TO_NODE}{nodad}", idle_address(*family));
        batch += &way(*family, TO_NODE, OF_NODE);
    }
    batch
}

/// The way to everywhere, by one neighbour.
fn way(family: Family, link: &str, hardware: &str) -> String {
    let neighbour = neighbour(family);
    let default = match family {
        Family::Ipv4 => "default",
        Family::Ipv6 => "::/0",
    };
    format!(
        "neigh add {neighbour} lladdr {hardware} dev {link} nud permanent\n\
         route add {default} via {neighbour} dev {link} onlink\n"
    )
}
