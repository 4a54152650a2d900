//! Open connections that end with virtual servers, or with the link that has their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::error::Result;
use crate::event::{Outcome, Task};
use crate::node;
use crate::node::tools::Tool;
use crate::owners::component::KUBE_PROXY;
use crate::owners::matcher::{Owner, Ownership};
use crate::plan::change::{Direction, Edit, Target};
use crate::run::Context;
use crate::run::named;
use crate::run::wait::{Poll, poll};
use crate::state::NodeState;
use crate::state::ipvs::{Listing, Protocol, VirtualServerId, open_connections};
use crate::state::tcp_connections::TcpConnection;

/// Virtual servers that are about to go, and the addresses of the link that goes with them. A program
/// of the node that connects to a service has that service's address as its own, whoever translates:
/// ipvs, rules or a bridge.
pub(super) struct Leaving {
    servers: Vec<VirtualServerId>,
    addresses: BTreeSet<IpAddr>,
}

impl Leaving {
    /// What kube-proxy has of these now, which goes as soon as another mode starts.
    pub(super) fn of_kube_proxy(context: &Context<'_>, now: &NodeState) -> Leaving {
        let ownership = Ownership::of(context.catalogue, now);
        let is_own = |owner: Option<Owner<'_>>| owner.is_some_and(|owner| owner.name == KUBE_PROXY);
        let servers = now.ipvs.servers.iter().map(|server| server.service);
        let links = now.links.iter().filter(|link| is_own(ownership.link(&link.name)));
        Leaving {
            servers: servers.filter(|id| is_own(ownership.virtual_server(id))).collect(),
            addresses: links.flat_map(|link| &link.addresses).map(IpNet::addr).collect(),
        }
    }

    /// What `edits` remove.
    pub(super) fn of_edits(edits: &[Edit]) -> Leaving {
        let mut leaving = Leaving { servers: Vec::new(), addresses: BTreeSet::new() };
        for edit in edits.iter().filter(|edit| edit.direction == Direction::Remove) {
            match &edit.target {
                Target::VirtualServer(server) => leaving.servers.push(server.service),
                Target::Link(link) => {
                    leaving.addresses.extend(link.addresses.iter().map(IpNet::addr))
                }
                _ => {}
            }
        }
        leaving
    }
}

/// Waits up to `timeout` until no connection runs through the virtual servers that are about to go.
/// Afterwards warns of the connections that are still open, because they will be cut, and of those of
/// the node's own programs, for which waiting is no use: each new one has such an address too.
/// `keep_waiting` is called in between and may end the wait.
///
/// # Errors
/// When ipvsadm fails; or the error of `keep_waiting`.
pub(super) fn wait(
    context: &Context<'_>,
    leaving: &Leaving,
    timeout: Duration,
    keep_waiting: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let Leaving { servers, addresses } = leaving;
    if servers.is_empty() {
        return Ok(());
    }
    let task = Task::Drain;
    context.sink.started(&task);
    let result = poll(timeout, keep_waiting, || {
        let open = open(context, servers)?;
        Ok(if open.is_empty() { Poll::Ready(()) } else { Poll::NotYet(open) })
    })?;
    match result {
        Poll::Ready(()) => context.sink.finished(&task, Outcome::Drained),
        Poll::NotYet(open) => {
            context.sink.finished(&task, Outcome::StillOpen { connections: count(&open) });
            context.sink.warning(cut(&open));
        }
    }
    let own = own_of_node(&node::tcp_connections::established()?, addresses);
    if !own.is_empty() {
        context.sink.warning(without_address(&own));
    }
    Ok(())
}

/// Those of `servers` that have open connections, each with their number, the highest first.
///
/// # Errors
/// When ipvsadm fails.
fn open(context: &Context<'_>, servers: &[VirtualServerId]) -> Result<Vec<(VirtualServerId, u64)>> {
    let list = |words: &[&str]| -> Result<String> {
        Ok(context.tools.command(Tool::Ipvsadm)?.args(words).run()?.stdout)
    };
    let listing = Listing::parse("ipvsadm -L -n", &list(&["-L", "-n"])?)?;
    // There may be very many connections, so they are listed only where some count as active.
    if active(&listing, servers).is_empty() {
        return Ok(Vec::new());
    }
    let connections = open_connections("ipvsadm -L -n -c", &list(&["-L", "-n", "-c"])?)?;
    Ok(by_server(&connections, servers))
}

/// Those of `servers` that have active connections by ipvs's own count. It counts some that have ended
/// (see [`open_connections`]).
fn active(listing: &Listing, servers: &[VirtualServerId]) -> Vec<VirtualServerId> {
    let active = listing.servers.iter().filter(|s| s.reals.iter().any(|real| real.active > 0));
    active.map(|server| server.service).filter(|service| servers.contains(service)).collect()
}

/// Counts the open connections of each of `servers`.
fn by_server(
    connections: &[VirtualServerId],
    servers: &[VirtualServerId],
) -> Vec<(VirtualServerId, u64)> {
    counted(connections.iter().copied().filter(|server| servers.contains(server)))
}

/// Counts the connections of the node's own programs that have one of `addresses` as their own, by
/// where they lead.
fn own_of_node(
    connections: &[TcpConnection],
    addresses: &BTreeSet<IpAddr>,
) -> Vec<(VirtualServerId, u64)> {
    let own = connections.iter().filter(|connection| addresses.contains(&connection.own.ip()));
    let protocol = Protocol::Tcp;
    counted(own.map(|c| VirtualServerId::Address { protocol, address: c.peer }))
}

/// How often each occurs, the highest number first.
fn counted(all: impl Iterator<Item = VirtualServerId>) -> Vec<(VirtualServerId, u64)> {
    let mut counts: BTreeMap<VirtualServerId, u64> = BTreeMap::new();
    for one in all {
        *counts.entry(one).or_default() += 1;
    }
    let mut open: Vec<(VirtualServerId, u64)> = counts.into_iter().collect();
    open.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    open
}

fn count(open: &[(VirtualServerId, u64)]) -> u64 {
    open.iter().map(|(_, active)| active).sum()
}

/// The warning about open connections: `3 connections through ipvs end with its virtual servers:
/// 10.96.1.1:80/tcp (2), …`.
fn cut(open: &[(VirtualServerId, u64)]) -> String {
    let all = count(open);
    format!("{all} connections through ipvs end with its virtual servers: {}", with_counts(open))
}

/// The warning about connections of the node's own programs: `2 connections of this node's own
/// programs come from addresses of services and hang without these: 10.96.0.1:443/tcp (2)`.
fn without_address(open: &[(VirtualServerId, u64)]) -> String {
    let all = count(open);
    let whose = "connections of this node's own programs";
    let what = "come from addresses of services and hang without these";
    format!("{all} {whose} {what}: {}", with_counts(open))
}

fn with_counts(open: &[(VirtualServerId, u64)]) -> String {
    let each = open.iter().map(|(service, count)| format!("{service} ({count})"));
    named(&each.collect::<Vec<String>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.96.0.10:53 rr
  -> 10.244.0.11:8080             Masq    1      1          0
TCP  10.96.1.1:80 rr
  -> 10.244.0.11:8080             Masq    1      2          7
  -> 10.244.0.12:8080             Masq    1      1          0
TCP  10.96.1.2:80 rr
  -> 10.244.0.12:8080             Masq    1      0          4
TCP  192.168.100.50:7000 wrr
  -> 10.244.0.12:8080             Masq    7      9          0
";

    /// The connections of [`LISTED`], of which ipvs counts more as active than are open.
    const CONNECTIONS: &str = "\
IPVS connection entries
pro expire state       source             virtual            destination
TCP 14:59  ESTABLISHED 10.244.0.20:4000   10.96.1.1:80       10.244.0.11:8080
TCP 14:59  ESTABLISHED 10.244.0.20:4001   10.96.1.1:80       10.244.0.12:8080
TCP 01:59  SYN_SENT    10.244.0.20:4002   10.96.1.1:80       10.244.0.11:8080
TCP 14:59  ESTABLISHED 10.244.0.20:4000   10.96.0.10:53      10.244.0.11:8080
TCP 14:59  ESTABLISHED 10.244.0.20:4000   192.168.100.50:7000 10.244.0.12:8080
";

    #[test]
    fn it_counts_and_names_what_goes_and_nothing_else() {
        let listing = Listing::parse("ipvsadm", LISTED).unwrap();
        let connections = open_connections("ipvsadm", CONNECTIONS).unwrap();
        let servers: Vec<VirtualServerId> =
            listing.servers.iter().take(3).map(|s| s.service).collect();
        assert_eq!(active(&listing, &servers), [servers[0], servers[1]]);
        assert_eq!(
            cut(&by_server(&connections, &servers)),
            "3 connections through ipvs end with its virtual servers: 10.96.1.1:80/tcp (2), \
             10.96.0.10:53/tcp (1)"
        );
        assert_eq!(active(&listing, &servers[2..]), []);
        assert_eq!(by_server(&connections, &servers[2..]), []);
    }

    #[test]
    fn it_does_not_name_hundreds() {
        let listing = Listing::parse("ipvsadm", LISTED).unwrap();
        let service = listing.servers[0].service;
        let text = cut(&vec![(service, 1); 8]);
        assert!(text.starts_with("8 connections") && text.ends_with(", and 3 more"), "{text}");
    }

    #[test]
    fn the_nodes_own_connections_from_addresses_that_go_are_named() {
        let from = |own: &str, peer: &str| TcpConnection {
            own: own.parse().unwrap(),
            peer: peer.parse().unwrap(),
        };
        let connections = [
            from("10.96.0.1:4000", "10.96.0.1:443"),
            from("10.96.0.1:4001", "10.96.0.1:443"),
            from("192.168.0.1:4002", "10.96.0.1:443"),
        ];
        let addresses = BTreeSet::from(["10.96.0.1".parse().unwrap()]);
        let own = own_of_node(&connections, &addresses);
        assert!(without_address(&own).ends_with("without these: 10.96.0.1:443/tcp (2)"));
        assert_eq!(own_of_node(&connections, &BTreeSet::new()), []);
    }
}
