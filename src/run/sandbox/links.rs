//! Stand-ins for a node's links, addresses and routes in a private namespace.
//!
//! A stand-in has the link's name and addresses. Every link becomes a bridge: each kernel that runs
//! containers has bridges, and many lack `dummy`. The uplink becomes one end of a veth pair to a
//! host outside.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::error::{Error, Kind, Result};
use crate::node::command::Command;
use crate::node::tools::{Tool, Tools};
use crate::state::NodeState;
use crate::state::links::{Link, Route};
use crate::state::sysctl::Sysctls;

/// The name of the outside host's end of the veth pair, until it is moved there.
pub(super) const CABLE: &str = "ps-outside";

/// The uplink of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Uplink {
    /// The link's name.
    pub name: String,
    /// The node's address on it, with the network.
    pub address: Ipv4Net,
}

/// The link of the default route. Without one, the first link with an IPv4 address that is neither
/// a bridge nor loopback.
pub(super) fn uplink(state: &NodeState) -> Option<Uplink> {
    let by_route = state.routes.iter().find(|r| is_main(r) && r.dst == "default");
    let named = by_route.and_then(|r| r.dev.as_deref());
    let address = |link: &Link| {
        link.addresses.iter().find_map(|a| match a {
            IpNet::V4(net) if net.prefix_len() < 31 => Some(*net),
            _ => None,
        })
    };
    let candidate = |link: &&Link| match named {
        Some(name) => link.name == name,
        None => link.name != "lo" && link.kind.as_deref() != Some("bridge"),
    };
    state
        .links
        .iter()
        .filter(candidate)
        .find_map(|link| address(link).map(|address| Uplink { name: link.name.clone(), address }))
}

fn is_main(route: &Route) -> bool {
    route.table == "main"
}

/// Creates the links and addresses, and sets the routes and those sysctls that decide where a
/// packet goes.
pub(super) fn create_stand_ins(state: &NodeState, tools: &Tools) -> Result<()> {
    let uplink = uplink(state);
    let mut batch = String::from("link set lo up\n");
    for link in state.links.iter().filter(|l| l.name != "lo") {
        if uplink.as_ref().is_some_and(|u| u.name == link.name) {
            batch += &format!("link add {} type veth peer name {CABLE}\n", link.name);
        } else {
            batch += &format!("link add {} type bridge\n", link.name);
        }
    }
    for link in &state.links {
        for address in link.addresses.iter().filter(|a| !is_own(a)) {
            batch += &format!("addr add {address} dev {} nodad\n", link.name)
                .replace(if address.addr().is_ipv4() { " nodad" } else { "\0" }, "");
        }
        if link.up {
            batch += &format!("link set {} up\n", link.name);
        }
    }
    ip_batch(&batch, tools)?;
    let sysctls =
        state.files.get("sysctl.txt").map(|t| Sysctls::parse("sysctl.txt", t)).transpose()?;
    for (name, value) in sysctls.iter().flat_map(Sysctls::iter) {
        if name == "net.ipv4.ip_forward" || name.starts_with("net.ipv4.conf.") {
            // A sysctl that a namespace cannot set does not decide where a packet goes.
            let _ = std::fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value);
        }
    }
    let routes: String =
        state.routes.iter().filter(|r| is_main(r)).filter_map(route_line).collect();
    // A route through a link without a stand-in, such as a tunnel's far end, is not needed.
    let _ = Command::new(tools.tool(Tool::Ip)?).args(["-force", "-batch", "-"]).stdin(routes).run();
    Ok(())
}

/// Addresses that every namespace has.
fn is_own(address: &IpNet) -> bool {
    match address.addr() {
        IpAddr::V4(a) => a.is_loopback() && address.prefix_len() == 8,
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local(),
    }
}

fn route_line(route: &Route) -> Option<String> {
    let by_kernel = route.protocol == "kernel";
    let (dst, dev) = (&route.dst, route.dev.as_deref()?);
    let via = route.gateway.as_ref().map(|g| format!(" via {g}")).unwrap_or_default();
    (!by_kernel).then(|| format!("route add {dst}{via} dev {dev}\n"))
}

/// Runs a list of `ip` commands as one batch.
pub(super) fn ip_batch(commands: &str, tools: &Tools) -> Result<()> {
    Command::new(tools.tool(Tool::Ip)?)
        .args(["-batch", "-"])
        .stdin(commands)
        .run()
        .map(|_| ())
        .map_err(|e| Error { kind: Kind::Rehearsal, ..e })
}

/// The highest host address of `net` that is not in `taken`.
pub(super) fn free_address(net: Ipv4Net, taken: &[IpNet]) -> Option<Ipv4Addr> {
    let (first, last) = (u32::from(net.network()) + 1, u32::from(net.broadcast()).checked_sub(1)?);
    let free = |a: &Ipv4Addr| !taken.iter().any(|t| t.addr() == IpAddr::V4(*a));
    (first..=last).rev().take(256).map(Ipv4Addr::from).find(free)
}
