//! Real servers of kube-proxy's at weight 0 that UDP clients of before are still sent to: a flow
//! that never pauses never ends (<https://github.com/kubernetes/kubernetes/issues/76664>).
//!
//! They are no leftovers, for kube-proxy uses them: they go when the operator asks for it.

use std::sync::Arc;

use crate::error::Result;
use crate::owners::matcher::Ownership;
use crate::plan::{About, Action, Object, ObjectKind};
use crate::state::NodeState;
use crate::state::ipvs::{Listing, Protocol, RealServer, Service};
use crate::state::sysctl::Sysctls;

const NAME: &str = "kube-proxy";

/// Without this, packets of an open flow to a real server that is gone are dropped until the flow
/// has been silent for its timeout (net/netfilter/ipvs/ip_vs_core.c).
const EXPIRE: &str = "net.ipv4.vs.expire_nodest_conn";

/// The rows of the black holes: each goes if it is known that clients are still sent there.
///
/// # Errors
/// When the listing of connections does not parse.
pub fn black_holes(state: &NodeState, ownership: &Ownership<'_>) -> Result<Vec<Object>> {
    let listing = state.files.get("ipvs.list").map(|text| Listing::parse("ipvs.list", text));
    let listing = listing.transpose()?;
    let slow = slow(state);
    let mut rows = Vec::new();
    for (context, server) in state.ipvs.servers.iter().enumerate() {
        let owned = ownership.virtual_server(context).is_some_and(|o| o.name == NAME);
        if !owned || !is_udp(&server.service) {
            continue;
        }
        for real in server.reals.iter().filter(|real| real.weight == 0) {
            let (action, reason) = match &listing {
                None => (Action::Keep, "suspected: its connections are not in this state".into()),
                Some(listing) => match connections(listing, &server.service, real) {
                    0 => (Action::Keep, "at weight 0, and nobody is sent there any more".into()),
                    n => {
                        let what =
                            format!("at weight 0, and {n} UDP flows of before still go there");
                        (Action::Remove, format!("{what}{slow}"))
                    }
                },
            };
            rows.push(row(action, &server.service, real, reason));
        }
    }
    Ok(rows)
}

fn is_udp(service: &Service) -> bool {
    matches!(service, Service::Address { protocol: Protocol::Udp, .. })
}

fn connections(listing: &Listing, service: &Service, real: &RealServer) -> u64 {
    let draining = listing.draining();
    let here = draining.filter(|(s, r)| *s == service && r.address == real.address);
    here.map(|(_, r)| r.active + r.inactive).sum()
}

fn slow(state: &NodeState) -> &'static str {
    let text = state.files.get("sysctl.txt");
    let sysctls = text.and_then(|text| Sysctls::parse("sysctl.txt", text).ok());
    match sysctls.as_ref().and_then(|s| s.get(EXPIRE)) {
        Some("0") => "; net.ipv4.vs.expire_nodest_conn is 0, so they end only once they pause",
        _ => "",
    }
}

/// The name of a real server's row.
pub(in crate::plan) fn name(service: &Service, real: &RealServer) -> String {
    format!("{service} -> {}", real.address)
}

fn row(action: Action, service: &Service, real: &RealServer, reason: String) -> Object {
    let about = About {
        family: Some(service.family()),
        backend: "ipvs".into(),
        table: None,
        owner: NAME.into(),
        reason: reason.into(),
    };
    Object {
        action,
        kind: ObjectKind::RealServer,
        about: Arc::new(about),
        name: name(service, real).into(),
        position: None,
        text: format!("{} -r {} {}", service.selector(), real.address, real.options()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::catalogue::Catalogue;
    use crate::plan::Plan;
    use crate::plan::change::{Edit, Target, edits};
    use crate::plan::invariants::{Outcome, outcome};
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
    fn only_udp_that_is_still_sent_there_goes() {
        let one = |state: &NodeState| {
            let rows = found(state);
            assert_eq!(rows.len(), 1, "{rows:?}");
            assert_eq!(&*rows[0].name, "10.96.0.10:53/udp -> 10.0.0.3:53");
            (rows[0].action, rows[0].reason.to_string())
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
        assert!(action == Action::Keep && reason.starts_with("suspected"), "{reason}");
    }

    #[test]
    fn what_goes_comes_back_unless_it_is_there_or_its_virtual_server_is_not() {
        let before = node(SERVERS, &[("ipvs.list", &listing(6))]);
        let made: Vec<Edit> = edits(&Plan { objects: found(&before) }, &before);
        let [Edit { target: Target::RealServer(server), .. }] = &made[..] else {
            panic!("{made:?}")
        };
        assert_eq!(server.real.options(), "-m -w 0");
        let after = node(&SERVERS.replace("-a -u 10.96.0.10:53 -r 10.0.0.3:53 -m -w 0\n", ""), &[]);
        assert_eq!(outcome(&made[0], &before, &before), Outcome::NotDone);
        assert_eq!(outcome(&made[0], &before, &after), Outcome::Done);
        let undo = |now: NodeState| merge::undo(&made, &before, &now);
        assert_eq!(undo(after).edits.len(), 1);
        // kube-proxy has an endpoint there again, or has taken the service away.
        let again = SERVERS.replace("10.0.0.3:53 -m -w 0", "10.0.0.3:53 -m -w 1");
        let again = undo(node(&again, &[]));
        assert!(again.edits.is_empty() && again.already_back.len() == 1, "{again:?}");
        let gone = undo(node("-A -t 10.96.0.10:53 -s rr\n", &[]));
        assert!(gone.edits.is_empty() && gone.conflicts.len() == 1, "{gone:?}");
    }
}
