//! nodelocaldns on the address of the cluster's DNS: in ipvs mode kube-ipvs0 takes that address.

use std::net::IpAddr;

use super::corefile::directives;
use super::{cluster_addresses, is_link_local, node_local_addresses};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "dns.nodelocaldns",
    title: "nodelocaldns on the cluster's DNS address",
    severity: Severity::Block,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate,
    reference: "https://kubernetes.io/docs/tasks/administer-cluster/nodelocaldns/",
};

/// The link-local address that the documentation of nodelocaldns uses.
const LOCAL: &str = "169.254.20.10";

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.links.is_empty() {
        return Verdict::Unknown("the links are not in this state".into());
    }
    // Link-local addresses, loopback (::1) and unspecified addresses are no service addresses.
    let is_service = |a: &IpAddr| !is_link_local(*a) && !a.is_loopback() && !a.is_unspecified();
    let mut evidence: Vec<String> = node_local_addresses(facts)
        .into_iter()
        .filter(is_service)
        .map(|a| format!("link nodelocaldns has the address {a}"))
        .collect();
    evidence.extend(untracked(facts));
    let configured = directives(facts);
    evidence.extend(
        configured.iter().filter(|d| d.binds().iter().any(is_service)).map(|d| d.shown.clone()),
    );
    if evidence.is_empty() {
        return Verdict::Ok("nodelocaldns is not there, or on its link-local address alone".into());
    }
    let own = node_local_addresses(facts).into_iter().find(|a| is_link_local(*a));
    let own = own.map_or_else(|| LOCAL.to_owned(), |a| a.to_string());
    Verdict::Found(Found {
        evidence,
        effect: "kube-ipvs0 takes the address as ipvs mode starts: queries then pass nodelocaldns \
                 by, or, by its untracked rules, find no answer"
            .into(),
        remedy: vec![
            format!("-localip {own}   # alone, in the arguments of node-cache"),
            format!("bind {own}   # alone, in its Corefile"),
            format!("clusterDNS: [{own}]   # in /var/lib/kubelet/config.yaml; restart the kubelet"),
        ],
        fix: Vec::new(),
    })
}

/// Rules of table raw that exempt DNS packets to the cluster's DNS address from conntrack.
pub(super) fn untracked(facts: &Facts<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut cluster = None;
    for (id, ruleset) in &facts.now.rulesets {
        let Some(chain) = ruleset.table("raw").and_then(|t| t.chain("PREROUTING")) else {
            continue;
        };
        for (position, rule) in chain.rules.iter().enumerate() {
            if !matches!(rule.target.as_deref(), Some("CT" | "NOTRACK")) {
                continue;
            }
            let words = ruleset.words(rule);
            let Some((false, to)) = words.value("-d") else { continue };
            let address = to.split('/').next().and_then(|a| a.parse::<IpAddr>().ok());
            let Some(address) = address.filter(|a| !is_link_local(*a)) else { continue };
            let dns = words.value("--dport").is_some_and(|(_, port)| port == "53");
            let owner = facts.ownership.rule(*id, "raw", "PREROUTING", position);
            let by_owner = owner.is_some_and(|o| o.name == "nodelocaldns");
            let cluster = cluster.get_or_insert_with(|| cluster_addresses(facts));
            if dns && (by_owner || cluster.contains(&address)) {
                found.push(format!("{id} raw: {}", ruleset.rule_text(rule)));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::corefile::tests::{USUAL, configured};
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::NodeState;

    const TO: Option<Mode> = Some(Mode::Ipvs);

    fn with_link(addresses: &[&str]) -> NodeState {
        linked(node("docker-iptables-1.30"), addresses)
    }

    fn linked(mut state: NodeState, addresses: &[&str]) -> NodeState {
        let mut link = state.links[0].clone();
        link.name = "nodelocaldns".into();
        link.addresses = addresses.iter().map(|a| a.parse().expect("a network")).collect();
        state.links.push(link);
        state
    }

    #[test]
    fn all_three_outcomes() {
        assert!(matches!(
            given(&node("docker-iptables-1.30")).to(TO).verdict(&CHECK),
            Verdict::Ok(_)
        ));
        let state = with_link(&["169.254.20.10/32"]);
        assert!(matches!(given(&state).to(TO).verdict(&CHECK), Verdict::Ok(_)));
        let mut state = with_link(&["169.254.25.10/32", "10.96.0.10/32"]);
        let Verdict::Found(found) = given(&state).to(TO).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(found.evidence, ["link nodelocaldns has the address 10.96.0.10"]);
        assert!(found.remedy[0].starts_with("-localip 169.254.25.10 "), "{found:?}");
        state.links.clear();
        assert!(matches!(given(&state).to(TO).verdict(&CHECK), Verdict::Unknown(_)));
    }

    #[test]
    fn the_lines_of_its_corefile_are_found() {
        let state = linked(configured(USUAL).state(), &["169.254.20.10/32"]);
        let Verdict::Found(found) = given(&state).to(TO).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(found.evidence, ["/etc/Corefile:6: bind 169.254.20.10 10.96.0.10"]);
        let fixed = USUAL.replace("bind 169.254.20.10 10.96.0.10", "bind 169.254.20.10 ::1");
        let state = linked(configured(&fixed).state(), &["169.254.20.10/32"]);
        assert!(matches!(given(&state).to(TO).verdict(&CHECK), Verdict::Ok(_)));
    }

    #[test]
    fn its_untracked_rules_are_found() {
        let raw = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
             [0:0] -A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j CT --notrack\n\
             [0:0] -A PREROUTING -d 10.96.0.10/32 -p udp -m udp --dport 53 -j CT --notrack\n\
             [0:0] -A PREROUTING -d 10.1.1.1/32 -p udp -m udp --dport 123 -j CT --notrack\n\
             COMMIT\n";
        let node = Node::captured("docker-iptables-1.30");
        let state = node.append("iptables-nft.save", raw).state();
        let Verdict::Found(found) = given(&state).to(TO).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(found.evidence.len(), 1, "{found:?}");
        assert!(found.evidence[0].contains("-d 10.96.0.10/32 -p udp"), "{found:?}");
    }
}
