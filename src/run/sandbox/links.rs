//! Stand-ins for a node's links, addresses and routes in a private namespace.
//!
//! A stand-in has the name and the addresses of the node's link. Every link becomes a bridge,
//! because each kernel that runs containers has bridges, and many lack `dummy`. The uplink becomes
//! one end of a veth pair to a host outside.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::error::{Error, Kind, Result};
use crate::node::command::Command;
use crate::node::tools::{Tool, Tools};
use crate::state::NodeState;
use crate::state::links::{Link, Route, is_plain};
use crate::state::sysctl::Sysctls;

/// The name of the veth end of the host outside, until that end is moved to the host's namespace.
pub(super) const CABLE: &str = "ps-outside";

/// The link through which the node reaches other hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Uplink {
    /// The name of the link.
    pub name: String,
    /// The address of the node on the link, with its prefix length.
    pub address: Ipv4Net,
}

/// The link of the default route. Without a default route, the first link with an IPv4 address that
/// is neither a bridge nor loopback.
pub(super) fn uplink(state: &NodeState) -> Option<Uplink> {
    let by_route = state.routes.iter().find(|r| is_main(r) && r.dst == "default");
    let named = by_route.and_then(|r| r.dev.as_deref());
    let address = |link: &Link| {
        link.addresses.iter().find_map(|a| match a {
            IpNet::V4(net) if net.prefix_len() < 31 => Some(*net),
            _ => None,
        })
    };
    let candidate = |link: &&Link| {
        is_plain(&link.name)
            && match named {
                Some(name) => link.name == name,
                None => link.name != "lo" && link.kind.as_deref() != Some("bridge"),
            }
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

/// Creates the links and their addresses, and sets the routes and those sysctls that decide where a
/// packet goes.
pub(super) fn create_stand_ins(state: &NodeState, tools: &Tools) -> Result<()> {
    let uplink = uplink(state);
    let mut batch = String::from("link set lo up\n");
    // A link with an odd name has no stand-in: what `ip` would make of it is not known.
    let links = || state.links.iter().filter(|link| is_plain(&link.name));
    for link in links().filter(|l| l.name != "lo") {
        if uplink.as_ref().is_some_and(|u| u.name == link.name) {
            batch += &format!("link add name {} type veth peer name {CABLE}\n", link.name);
        } else {
            batch += &format!("link add name {} type bridge\n", link.name);
        }
    }
    for link in links() {
        for address in link.addresses.iter().filter(|a| !is_own(a)) {
            batch += &format!("addr add {address} dev {} nodad\n", link.name)
                .replace(if address.addr().is_ipv4() { " nodad" } else { "\0" }, "");
        }
        if link.up {
            batch += &format!("link set dev {} up\n", link.name);
        }
    }
    ip_batch(&batch, tools)?;
    let sysctls =
        state.files.get("sysctl.txt").map(|t| Sysctls::parse("sysctl.txt", t)).transpose()?;
    for (name, value) in sysctls.iter().flat_map(Sysctls::iter) {
        if name == "net.ipv4.ip_forward" || name.starts_with("net.ipv4.conf.") {
            // An error is ignored: a sysctl that cannot be set in a network namespace does not
            // decide where a packet goes.
            let _ = std::fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value);
        }
    }
    let routes: String =
        state.routes.iter().filter(|r| is_main(r)).filter_map(route_line).collect();
    // `ip` goes on after an error (`-force`), because routes through links that have no stand-in,
    // such as tunnels, cannot be added and are not needed.
    let _ = Command::new(tools.tool(Tool::Ip)?).args(["-force", "-batch", "-"]).stdin(routes).run();
    Ok(())
}

/// True if every namespace has this address anyway, so that it need not be added.
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
    (!by_kernel && is_plain(dev)).then(|| format!("route add {dst}{via} dev {dev}\n"))
}

/// Runs `ip` commands, one a line, as one batch.
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
