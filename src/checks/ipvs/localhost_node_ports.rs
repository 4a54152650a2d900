//! NodePorts on 127.0.0.1, which only iptables mode serves.

use super::listing;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::Location;
use crate::state::ipvs::VirtualServerId;
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "ipvs.localhost-nodeports",
    title: "NodePorts that are used on 127.0.0.1",
    severity: Severity::Warn,
    when: "ipvs or nftables mode is the target, and another mode runs",
    applies: |facts| {
        matches!(facts.to, Some(Mode::Ipvs | Mode::Nftables)) && facts.to != facts.running.mode
    },
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/67730",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(mode) = facts.running.mode else {
        let evidence = &facts.running.evidence;
        return Verdict::Unknown(format!("which mode serves is not clear: {evidence}"));
    };
    let ports = mode::of(mode)
        .services_where(facts.now, &|key, _| matches!(key.location, Location::Node(_)));
    if ports.is_empty() {
        return Verdict::Ok("there is no NodePort".into());
    }
    if facts
        .settings
        .as_ref()
        .is_some_and(|config| mode::of(mode).disables_localhost_node_ports(config))
    {
        return Verdict::Ok(
            "iptables.localhostNodePorts is false: they are not served there".into(),
        );
    }
    let evidence: Vec<String> = counted(facts).into_iter().chain(connected(facts)).collect();
    if evidence.is_empty() {
        let ports: Vec<String> = ports.keys().map(ToString::to_string).collect();
        return Verdict::Unknown(format!(
            "there is {}; nothing captured says whether someone uses it on 127.0.0.1",
            ports.join(", ")
        ));
    }
    Verdict::Found(Found {
        evidence,
        effect: "these clients find the port closed after the switch: neither ipvs nor nftables \
                 mode serves NodePorts on 127.0.0.1"
            .into(),
        remedy: vec!["let them use the node's own address, or the service's ClusterIP".into()],
        fix: Vec::new(),
    })
}

/// The accounting object in which kube-proxy from 1.31 on counts packets for NodePorts on 127.0.0.1.
const ACCEPTED: &str = "localhost_nps_accepted_pkts";

/// For iptables mode: the NodePort rules for 127.0.0.0/8 that have a packet counter above 0, and what
/// kube-proxy itself has counted.
fn counted(facts: &Facts<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let accounted = facts.now.accounting.iter().find(|o| o.name == ACCEPTED && o.packets > 0);
    found.extend(accounted.map(|o| format!("nfacct {ACCEPTED}: {} packets", o.packets)));
    let metrics = facts.live.and_then(|live| live.kube_proxy_metrics.as_ref());
    let accepted = metrics.and_then(|m| m.localhost_accepted).filter(|packets| *packets > 0);
    found.extend(accepted.map(|packets| {
        format!("kubeproxy_iptables_localhost_nodeports_accepted_packets_total: {packets}")
    }));
    for (id, ruleset) in &facts.now.rulesets {
        let chain = ruleset.table("nat").and_then(|t| t.chain("KUBE-NODEPORTS"));
        for rule in chain.iter().flat_map(|c| &c.rules) {
            let packets = ruleset.counters(rule).map_or(0, |c| c.packets);
            // `-s` up to 1.30, `-d` from then on.
            let local = ["-s 127.0.0.0/8 ", "-d 127.0.0.0/8 "];
            let text = ruleset.words(rule).text();
            if packets > 0 && local.iter().any(|start| text.starts_with(start)) {
                found.push(format!("{id} nat: [{packets} packets] {}", ruleset.rule_text(rule)));
            }
        }
    }
    found
}

/// For ipvs mode: the virtual servers on 127.0.0.1 that have connections.
fn connected(facts: &Facts<'_>) -> Vec<String> {
    let Some(listing) = listing(facts) else { return Vec::new() };
    let mut found = Vec::new();
    for server in &listing.servers {
        let connections: u64 = server.reals.iter().map(|r| r.connections()).sum();
        if let VirtualServerId::Address { address, .. } = server.service
            && address.ip().is_loopback()
            && connections > 0
        {
            found.push(format!("virtual server {}: {connections} connections", server.service));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};

    const TO: Option<Mode> = Some(Mode::Nftables);

    #[test]
    fn found_by_a_counter_or_a_connection() {
        let rule = "-A KUBE-NODEPORTS -s 127.0.0.0/8";
        let state = Node::captured("docker-legacy-iptables-1.20-no-conntrack")
            .replace("iptables-legacy.save", &format!("[0:0] {rule}"), &format!("[7:420] {rule}"))
            .state();
        let Verdict::Found(found) = given(&state).to(Mode::Ipvs).verdict(&CHECK) else {
            panic!("not found")
        };
        assert!(found.evidence[0].contains("[7 packets] -A KUBE-NODEPORTS"), "{found:?}");

        let state = Node::captured("half-migrated-ipvs-1.20")
            .replace(
                "ipvs.list",
                "127.0.0.1:30443 rr\n  -> 192.168.64.11:443            Masq    1      0 ",
                "127.0.0.1:30443 rr\n  -> 192.168.64.11:443            Masq    1      2 ",
            )
            .state();
        let Verdict::Found(found) = given(&state).to(TO).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(found.evidence, ["virtual server 127.0.0.1:30443/tcp: 2 connections"]);
    }

    #[test]
    fn found_by_what_kube_proxy_of_today_counts() {
        let node = Node::captured("iptables-1.37");
        let verdict = |node: &Node| given(&node.state()).to(TO).verdict(&CHECK);
        assert!(matches!(verdict(&node), Verdict::Unknown(_)));
        let rule = "-A KUBE-NODEPORTS -d 127.0.0.0/8";
        let from = format!("[0:0] {rule}");
        let counted = node.clone().replace("iptables-nft.save", &from, &format!("[7:420] {rule}"));
        assert!(matches!(verdict(&counted), Verdict::Found(_)));
        let counted = node.clone().put("nfacct.save", "[9:540] - localhost_nps_accepted_pkts\n");
        let Verdict::Found(found) = verdict(&counted) else { panic!("not found") };
        assert_eq!(found.evidence, ["nfacct localhost_nps_accepted_pkts: 9 packets"]);
        let none = node.put("nfacct.save", "[0:0] - localhost_nps_accepted_pkts\n");
        assert!(matches!(verdict(&none), Verdict::Unknown(_)));
    }

    #[test]
    fn unknown_without_a_trace_and_ok_where_they_are_off() {
        let state = node("docker-iptables-1.30");
        let Verdict::Unknown(missing) = given(&state).to(TO).verdict(&CHECK) else {
            panic!("known")
        };
        assert!(missing.starts_with("there is node port 30080/tcp, node port 30443/tcp;"));
        let verdict = given(&state).to(TO).facts(|facts| {
            let settings = facts.settings.as_mut().expect("settings");
            settings.iptables.localhost_node_ports = Some(false);
            evaluate(facts)
        });
        assert!(matches!(verdict, Verdict::Ok(_)));
    }
}
