//! An INPUT that drops what no rule accepts. iptables mode and ipvs mode accept the health checks of
//! load balancers there; nftables mode does not.

use std::collections::BTreeSet;

use super::{is_here, is_target};
use crate::checks::exposed::{Exposed, NodePort, port_conditions};
use crate::checks::firewall::{Acceptance, NetfilterHook, Traffic, closed_chains};
use crate::checks::{Check, Facts, Found, Severity, Verdict};

pub(super) const CHECK: Check = Check {
    id: "nftables.input-closed",
    title: "health checks of load balancers, where INPUT is closed",
    severity: Severity::Warn,
    when: "nftables mode runs, is configured where none runs, or is the target",
    applies: |facts| is_target(facts) || is_here(facts),
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/pull/124383",
};

/// The chains that accept health checks: in iptables mode, and in ipvs mode.
const OPENERS: [&str; 2] = ["KUBE-NODEPORTS", "KUBE-NODE-PORT"];

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() && facts.now.nft.tables.is_empty() {
        return Verdict::Unknown("no rules are in this state".into());
    }
    let exposed = Exposed::of(facts);
    let (mut evidence, mut remedy, mut closed) = (Vec::new(), Vec::new(), Vec::new());
    for chain in closed_chains(facts, NetfilterHook::Input) {
        let opener = OPENERS.into_iter().find(|opener| chain.leads_to(opener));
        if opener.is_none() && !is_here(facts) {
            continue;
        }
        let mut ports: BTreeSet<NodePort> = exposed.health_checks.iter().copied().collect();
        ports.retain(|port| {
            let traffic = Traffic { port: Some((port.protocol, port.port)), ..Traffic::default() };
            port.family == chain.id.family
                && !matches!(chain.accepts(facts, &traffic), Acceptance::Accepted(_))
        });
        closed.push(chain.shown());
        if ports.is_empty() {
            continue;
        }
        evidence.push(chain.shown());
        let rules = opener.and_then(|opener| chain.table.chain(opener));
        for rule in rules.into_iter().flat_map(|opener| &opener.rules) {
            let packets = chain.ruleset.counters(rule).map_or(0, |counters| counters.packets);
            evidence.push(format!(
                "goes with the move: [{packets} packets] {}",
                chain.ruleset.rule_text(rule)
            ));
        }
        let tool = chain.tool();
        let conditions = port_conditions(&ports).into_iter();
        remedy.extend(conditions.map(|rule| format!("{tool} -I INPUT {rule} -j ACCEPT")));
    }
    if !evidence.is_empty() {
        return Verdict::Found(Found {
            evidence,
            effect:
                "nftables mode opens nothing: the health checks of load balancers are dropped, \
                     and they send nothing more to this node"
                    .into(),
            remedy,
            fix: Vec::new(),
        });
    }
    match closed.first() {
        None => Verdict::Ok("INPUT drops nothing that kube-proxy accepted".into()),
        // No object of this mode names a health check NodePort.
        Some(shown) if is_here(facts) => Verdict::Unknown(format!(
            "{shown}; which Services have a healthCheckNodePort, this mode's tables do not say"
        )),
        Some(shown) => {
            Verdict::Ok(format!("{shown}, and no health check NodePort is closed by it"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::kube_proxy::Mode;

    const FILE: &str = "iptables-nft.save";
    const FILTER: &str = "*filter\n:INPUT ACCEPT";
    const JUMP: &str =
        "[0:0] -A INPUT -m comment --comment \"kubernetes health check service ports\"";

    fn closed(name: &str, rules: &str) -> Node {
        Node::captured(name).replace(FILE, FILTER, "*filter\n:INPUT DROP").replace(
            FILE,
            JUMP,
            &format!("{rules}{JUMP}"),
        )
    }

    fn before(node: &Node) -> Verdict {
        given(&node.state()).to(Mode::Nftables).verdict(&CHECK)
    }

    #[test]
    fn health_checks_behind_a_closed_input_are_found() {
        for name in ["docker-iptables-1.30", "iptables-1.37"] {
            assert!(matches!(before(&Node::captured(name)), Verdict::Ok(_)), "{name}");
            let Verdict::Found(found) = before(&closed(name, "")) else { panic!("{name}") };
            assert!(found.evidence[1].contains("--dport 30999 -j ACCEPT"), "{found:?}");
            let rule = "iptables-nft -I INPUT -p tcp --dport 30999 -j ACCEPT";
            assert_eq!(found.remedy, [rule]);
            let accepted = "-A INPUT -p tcp -m tcp --dport 30000:32767 -j ACCEPT\n";
            let verdict = before(&closed(name, accepted));
            assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
            let health = "shop/lb:https health check node port\" -m tcp --dport 30999 -j ACCEPT";
            let none = closed(name, "").replace(FILE, health, &health.replace("ACCEPT", "RETURN"));
            assert!(matches!(before(&none), Verdict::Ok(_)), "{name}");
        }
    }

    #[test]
    fn in_nftables_mode_the_ports_are_not_known() {
        let healthy = given(&node("nftables-1.37")).verdict(&CHECK);
        assert!(matches!(healthy, Verdict::Ok(_)), "{healthy:?}");
        let node = Node::captured("nftables-1.37")
            .put("iptables-legacy.save", "*filter\n:INPUT DROP [0:0]\nCOMMIT\n");
        let verdict = given(&node.state()).verdict(&CHECK);
        assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
    }
}
