//! Black holes: real servers of kube-proxy at weight 0 that still get packets of earlier UDP
//! clients. Their flows do not end as long as the clients do not pause
//! (<https://github.com/kubernetes/kubernetes/issues/76664>).
//!
//! Black holes are no leftovers, because kube-proxy uses them. They are removed only if the
//! operator asks for it.

use std::sync::Arc;

use crate::error::Result;
use crate::owners::component::KUBE_PROXY;
use crate::owners::matcher::Ownership;
use crate::plan::reason::Reason;
use crate::plan::{About, Action, Object};
use crate::state::NodeState;
use crate::state::ipvs::{Listing, Protocol, RealServer, VirtualServerId};
use crate::state::object::{ObjectId, RealServerId};

/// If this sysctl is 1, flows to a real server that was removed end. If it is 0, their packets are
/// dropped until the flow has been silent for its timeout (net/netfilter/ipvs/ip_vs_core.c).
const EXPIRE: &str = "net.ipv4.vs.expire_nodest_conn";

/// The plan rows of UDP real servers at weight 0. Those to which clients still send packets are
/// removed.
///
/// # Errors
/// If the list of ipvs connections does not parse.
pub fn black_holes(state: &NodeState, ownership: &Ownership<'_>) -> Result<Vec<Object>> {
    let listing = state.files.get("ipvs.list").map(|text| Listing::parse("ipvs.list", text));
    let listing = listing.transpose()?;
    let until_they_pause = end_once_they_pause(state);
    let mut rows = Vec::new();
    for server in &state.ipvs.servers {
        let service = &server.service;
        let owned = ownership.virtual_server(service).is_some_and(|o| o.name == KUBE_PROXY);
        if !owned || !is_udp(service) {
            continue;
        }
        for real in server.reals.iter().filter(|real| real.weight == 0) {
            let (action, reason) = match &listing {
                None => (Action::Suspect, Reason::ConnectionsUnknown),
                Some(listing) => match connections(listing, service, real) {
                    0 => (Action::Keep, Reason::NoFlows),
                    flows => (Action::Remove, Reason::OldFlows { flows, until_they_pause }),
                },
            };
            rows.push(row(action, service, real, reason));
        }
    }
    Ok(rows)
}

fn is_udp(service: &VirtualServerId) -> bool {
    matches!(service, VirtualServerId::Address { protocol: Protocol::Udp, .. })
}

fn connections(listing: &Listing, service: &VirtualServerId, real: &RealServer) -> u64 {
    let draining = listing.draining();
    let of_server = draining.filter(|(s, r)| *s == service && r.address == real.address);
    of_server.map(|(_, r)| r.connections()).sum()
}

/// Whether flows to a removed real server end only after a pause, because [`EXPIRE`] is 0.
fn end_once_they_pause(state: &NodeState) -> bool {
    let sysctls = state.sysctls();
    sysctls.as_ref().and_then(|s| s.get(EXPIRE)) == Some("0")
}

fn row(action: Action, service: &VirtualServerId, real: &RealServer, reason: Reason) -> Object {
    let about = About {
        action,
        owner: KUBE_PROXY.into(),
        reason: Arc::new(reason),
        details: real.options().into(),
    };
    let id = RealServerId { service: *service, address: real.address };
    Object { id: ObjectId::RealServer(Box::new(id)), about: Arc::new(about) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::catalogue::Catalogue;
    use crate::plan::Plan;
    use crate::plan::change::{Edit, Target, edits};
    use crate::plan::invariants::{EditProgress, progress};
    use crate::plan::merge;
    use crate::state::Files;

    const SERVERS: &str = "-A -u 10.96.0.10:53 -s rr\n\
        -a -u 10.96.0.10:53 -r 10.0.0.2:53 -m -w 1\n\
        -a -u 10.96.0.10:53 -r 10.0.0.3:53 -m -w 0\n\
        -A -t 10.96.0.10:53 -s rr\n\
        -a -t 10.96.0.10:53 -r 10.0.0.3:53 -m -w 0\n";
    const LINKS: &str = r#"[{"ifname": "kube-ipvs0", "addr_info": [
        {"family": "inet", "local": "10.96.0.10", "prefixlen": 32}]}]"#;

    fn listing(inactive: u32) -> String {
        format!(
            "IP Virtual Server version 1.2.1 (size=4096)\n\
             Prot LocalAddress:Port Scheduler Flags\n\
             \x20 -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
             TCP  10.96.0.10:53 rr\n\
             \x20 -> 10.0.0.3:53                  Masq    0      3          0\n\
             UDP  10.96.0.10:53 rr\n\
             \x20 -> 10.0.0.2:53                  Masq    1      0          9\n\
             \x20 -> 10.0.0.3:53                  Masq    0      0          {inactive}\n"
        )
    }

    fn node(servers: &str, more: &[(&str, &str)]) -> NodeState {
        let mut files: Files = more.iter().map(|(n, t)| ((*n).to_owned(), (*t).into())).collect();
        files.insert("ipvs.save".into(), servers.into());
        files.insert("addr.json".into(), LINKS.into());
        NodeState::parse(files).unwrap()
    }

    fn found(state: &NodeState) -> Vec<Object> {
        let catalogue = Catalogue::builtin().unwrap();
        black_holes(state, &Ownership::of(&catalogue, state)).unwrap()
    }

    #[test]
    fn only_udp_with_flows_is_removed() {
        let one = |state: &NodeState| {
            let rows = found(state);
            assert_eq!(rows.len(), 1, "{rows:?}");
            assert_eq!(rows[0].id.name(), "10.96.0.10:53/udp -> 10.0.0.3:53");
            (rows[0].action, rows[0].sentence())
        };
        let list = listing(6);
        let (action, reason) = one(&node(SERVERS, &[("ipvs.list", &list)]));
        assert_eq!(action, Action::Remove);
        assert_eq!(reason, "at weight 0, and 6 UDP flows of before still go there");
        let off =
            [("ipvs.list", list.as_str()), ("sysctl.txt", "net.ipv4.vs.expire_nodest_conn = 0\n")];
        assert!(one(&node(SERVERS, &off)).1.contains("expire_nodest_conn is 0"));
        assert_eq!(one(&node(SERVERS, &[("ipvs.list", &listing(0))])).0, Action::Keep);
        let (action, reason) = one(&node(SERVERS, &[]));
        assert_eq!(
            (action, reason.as_str()),
            (Action::Suspect, "suspected: its connections are not in this state")
        );
    }

    #[test]
    fn a_removed_server_is_restored_unless_it_exists_or_its_virtual_server_is_gone() {
        let before = node(SERVERS, &[("ipvs.list", &listing(6))]);
        let made: Vec<Edit> = edits(&Plan { objects: found(&before) }, &before);
        let [Edit { target: Target::RealServer(server), .. }] = &made[..] else {
            panic!("{made:?}")
        };
        assert_eq!(server.real.options(), "-m -w 0");
        let after = node(&SERVERS.replace("-a -u 10.96.0.10:53 -r 10.0.0.3:53 -m -w 0\n", ""), &[]);
        assert_eq!(progress(&made[0], &before, &before), EditProgress::NotDone);
        assert_eq!(progress(&made[0], &before, &after), EditProgress::Done);
        let undo = |now: NodeState| merge::undo(&made, &before, &now);
        assert_eq!(undo(after).edits.len(), 1);
        // Meanwhile kube-proxy has an endpoint at that address again, or has removed the service.
        let again = SERVERS.replace("10.0.0.3:53 -m -w 0", "10.0.0.3:53 -m -w 1");
        let again = undo(node(&again, &[]));
        assert!(again.edits.is_empty() && again.already_restored.len() == 1, "{again:?}");
        let gone = undo(node("-A -t 10.96.0.10:53 -s rr\n", &[]));
        assert!(gone.edits.is_empty() && gone.conflicts.len() == 1, "{gone:?}");
    }
}
