//! Flows that began while nobody translated, and go on missing their service.

use crate::checks::{Check, Facts, Found, Severity, Verdict, not_live};
use crate::kube_proxy::mode;
use crate::kube_proxy::stale_entries::ServiceDestinations;
use crate::state::conntrack::ConntrackEntry;
use crate::state::ipvs::Protocol;

/// How many flows are named.
const SHOWN: usize = 10;

pub(super) const CHECK: Check = Check {
    id: "conntrack.untranslated",
    title: "flows to services that nobody translates",
    severity: Severity::Warn,
    when: "a mode serves",
    applies: |facts| facts.running.mode.is_some(),
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/122740",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(live) = facts.live else { return not_live() };
    let (Some(flows), Some(running)) = (&live.untranslated_flows, facts.running.mode) else {
        return Verdict::Unknown(
            "conntrack cannot be read without loading nf_conntrack_netlink".into(),
        );
    };
    let mode = mode::of(running);
    let services = mode.services(facts.now);
    let destinations = ServiceDestinations::new(&services, &facts.now.links, &facts.now.ipvs);
    // ipvs may serve a connection of TCP or SCTP over such an entry.
    let certain =
        |flow: &&ConntrackEntry| !mode.has_virtual_servers() || flow.protocol == Protocol::Udp;
    let missed = flows.iter().filter(certain).filter(|flow| destinations.staleness(flow).is_some());
    let missed: Vec<&ConntrackEntry> = missed.collect();
    if missed.is_empty() {
        return Verdict::Ok("every flow to a service is translated, or was refused".into());
    }
    let mut evidence: Vec<String> = missed.iter().take(SHOWN).map(ToString::to_string).collect();
    if missed.len() > SHOWN {
        evidence.push(format!("and {} more", missed.len() - SHOWN));
    }
    Verdict::Found(Found {
        evidence,
        effect: "they began while nobody translated, and the rules that do are not asked again: a \
                 client that keeps its port goes on missing the service, with TCP for 120 s, with \
                 UDP as long as it sends"
            .into(),
        remedy: missed.iter().take(SHOWN).map(|flow| deletion(flow)).collect(),
        fix: Vec::new(),
    })
}

/// The command that deletes one entry.
fn deletion(flow: &ConntrackEntry) -> String {
    let ConntrackEntry { protocol, client, destination, zone, .. } = flow;
    let (from, to) = (client.ip(), destination.ip());
    let (sport, dport) = (client.port(), destination.port());
    let zone = if *zone == 0 { String::new() } else { format!(" -w {zone}") };
    format!("conntrack -D -p {protocol} -s {from} -d {to} --sport {sport} --dport {dport}{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node};
    use crate::state::live_facts::LiveFacts;

    /// A flow to a service's own address that waits for an answer.
    fn flow(protocol: Protocol, destination: &str, zone: u16) -> ConntrackEntry {
        let destination = destination.parse().unwrap();
        let client = "192.168.64.20:4000".parse().unwrap();
        let (leads_to, arrives_as) = (destination, client);
        let (is_by_nat, in_use) = (false, false);
        ConntrackEntry {
            protocol,
            client,
            destination,
            leads_to,
            arrives_as,
            is_by_nat,
            in_use,
            id: 1,
            zone,
        }
    }

    fn verdict(name: &str, flows: Option<Vec<ConntrackEntry>>) -> Verdict {
        let live = LiveFacts { untranslated_flows: flows, ..LiveFacts::default() };
        given(&node(name)).live(&live).verdict(&CHECK)
    }

    #[test]
    fn what_misses_a_service_is_found() {
        let flows = || {
            vec![
                flow(Protocol::Udp, "10.96.0.10:53", 0),
                flow(Protocol::Tcp, "10.96.0.10:53", 7),
                flow(Protocol::Udp, "9.9.9.9:53", 0),
            ]
        };
        for (name, count) in [("iptables-1.37", 2), ("nftables-1.37", 2), ("ipvs-1.37", 1)] {
            let Verdict::Found(found) = verdict(name, Some(flows())) else {
                panic!("{name}: not found")
            };
            let evidence = "udp 192.168.64.20:4000 → 10.96.0.10:53, not translated";
            assert_eq!((&*found.evidence[0], found.evidence.len()), (evidence, count), "{name}");
        }
        let Verdict::Found(found) = verdict("iptables-1.37", Some(flows())) else { panic!() };
        assert_eq!(
            found.remedy,
            [
                "conntrack -D -p udp -s 192.168.64.20 -d 10.96.0.10 --sport 4000 --dport 53",
                "conntrack -D -p tcp -s 192.168.64.20 -d 10.96.0.10 --sport 4000 --dport 53 -w 7",
            ]
        );
        let many = vec![flow(Protocol::Udp, "10.96.0.10:53", 0); 12];
        let Verdict::Found(found) = verdict("iptables-1.37", Some(many)) else { panic!() };
        assert_eq!((found.evidence.len(), found.remedy.len()), (11, 10));
        assert_eq!(found.evidence[10], "and 2 more");
    }

    #[test]
    fn ok_without_any_and_unknown_where_they_are_not_read() {
        assert!(matches!(verdict("iptables-1.37", Some(Vec::new())), Verdict::Ok(_)));
        assert!(matches!(verdict("iptables-1.37", None), Verdict::Unknown(_)));
        let captured = given(&node("iptables-1.37")).verdict(&CHECK);
        assert!(matches!(captured, Verdict::Unknown(_)));
    }
}
