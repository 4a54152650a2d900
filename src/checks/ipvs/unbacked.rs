//! Real servers whose address no pod has. Only the routes of a pod network that has one route for
//! each pod show this.

use ipnet::IpNet;

use super::{has_servers, is_kube_proxys, urgency};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::links::Route;

pub(super) const CHECK: Check = Check {
    id: "ipvs.unbacked",
    title: "real servers on this node that no pod backs",
    severity: Severity::Warn,
    when: "there are virtual servers",
    applies: has_servers,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/71514",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    // Calico has a blackhole route for this node's block of addresses, and inside the block one
    // route for each pod.
    let networks = |wanted: fn(&&Route) -> bool| -> Vec<IpNet> {
        facts.now.routes.iter().filter(wanted).filter_map(Route::network).collect()
    };
    let blocks = networks(|r| r.kind == "blackhole");
    if blocks.is_empty() {
        return Verdict::Unknown(
            "the routes do not tell which pods live here (no blackhole route of a pod network)"
                .into(),
        );
    }
    let pods = networks(|r| r.kind == "unicast" && r.dev.is_some());
    let mut found: Vec<_> = facts
        .now
        .ipvs
        .servers
        .iter()
        .filter(|server| is_kube_proxys(facts, &server.service))
        .flat_map(|server| server.reals.iter().map(|real| (&server.service, real)))
        .filter(|(_, real)| {
            let ip = real.address.ip();
            let longest = |nets: &[IpNet]| {
                nets.iter().filter(|n| n.contains(&ip)).map(IpNet::prefix_len).max()
            };
            longest(&blocks).is_some_and(|block| longest(&pods).is_none_or(|pod| pod < block))
        })
        .collect();
    if found.is_empty() {
        return Verdict::Ok("each real server of this node has a pod's route".into());
    }
    found.sort_by_key(|(service, real)| (urgency(service), **service, real.address));
    let row = |(service, real): &(&_, &crate::state::ipvs::RealServer)| {
        format!("{service} -> {} weight {}: no pod has a route", real.address, real.weight)
    };
    Verdict::Found(Found {
        evidence: found.iter().map(row).collect(),
        effect: "a share of the connections to these services goes to nobody".into(),
        remedy: found
            .iter()
            .map(|(service, real)| format!("ipvsadm -d {} -r {}", service.selector(), real.address))
            .chain(["restart kube-proxy, which stopped following the endpoints".to_owned()])
            .collect(),
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{node, verdict_of};
    use crate::state::NodeState;
    use crate::state::links::parse_routes;

    fn with_routes(text: &str) -> NodeState {
        let mut state = node("half-migrated-ipvs-1.20");
        state.routes.extend(parse_routes("route.json", text).expect("routes"));
        state
    }

    const POD: &str = r#"{"dst": "192.168.66.5", "dev": "cali1", "scope": "link"}"#;

    #[test]
    fn all_three_outcomes() {
        let state = node("half-migrated-ipvs-1.20");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        let block = r#"{"type": "blackhole", "dst": "192.168.66.0/29", "protocol": "bird"}"#;
        let state = with_routes(&format!("[{block}, {POD}]"));
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
        let Verdict::Found(found) = verdict_of(&CHECK, &with_routes(&format!("[{block}]"))) else {
            panic!("not found")
        };
        assert_eq!(found.evidence.len(), 3);
        assert!(found.evidence[0].starts_with("10.96.0.10:53/udp -> 192.168.66.5:53"), "{found:?}");
    }
}
