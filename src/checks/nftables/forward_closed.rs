//! A FORWARD that drops what no rule accepts. Up to the move, KUBE-FORWARD accepts the traffic of
//! services there; nftables mode accepts nothing, because an accept in its own table would not keep
//! another table from dropping the packet.

use ipnet::IpNet;

use super::{is_here, is_target};
use crate::checks::firewall::{
    Acceptance, ClosedChain, NetfilterHook, Traffic, closed_chains, closed_native_chains,
    firewalld, pod_networks,
};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;

const TITLE: &str = "a FORWARD that is closed, in which nobody but kube-proxy accepts";
const REFERENCE: &str = "https://github.com/kubernetes/kubernetes/pull/124383";

/// The chain of iptables and ipvs mode that accepts in FORWARD.
const OPENER: &str = "KUBE-FORWARD";

/// Before a move to nftables mode.
pub(super) const BEFORE: Check = Check {
    id: "nftables.forward-closed",
    title: TITLE,
    severity: Severity::Block,
    when: "nftables mode is the target, and does not run yet",
    applies: is_target,
    evaluate,
    reference: REFERENCE,
};

/// While nftables mode runs.
pub(super) const NOW: Check = Check {
    id: "nftables.forward-closed-now",
    title: TITLE,
    severity: Severity::Warn,
    when: "nftables mode runs, or is configured where none runs",
    applies: is_here,
    evaluate,
    reference: REFERENCE,
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() && facts.now.nft.tables.is_empty() {
        return Verdict::Unknown("no rules are in this state".into());
    }
    let mut judgement = Judgement::default();
    for chain in closed_chains(facts, NetfilterHook::Forward) {
        judge(facts, &chain, &mut judgement);
    }
    let Judgement { mut evidence, mut remedy, mut unclear, accepted } = judgement;
    // What a native chain drops, KUBE-FORWARD never accepted. In ipvs mode the traffic did not pass
    // it.
    if changes_hooks(facts) {
        let firewalld = firewalld(facts);
        for chain in closed_native_chains(facts, NetfilterHook::Forward) {
            if chain.accepts_some {
                unclear.push(format!("{}, but for what its rules accept", chain.shown));
            } else {
                evidence.push(chain.shown);
                let pods = pods(facts).join(", ");
                remedy.push(format!("accept what goes to {pods} and comes from there, in it"));
            }
        }
        if let Some(shown) = firewalld.filter(|_| evidence.is_empty()) {
            unclear.push(format!("{shown}, and may drop what it does not forward"));
        }
    }
    if !evidence.is_empty() {
        return Verdict::Found(Found {
            evidence,
            effect: "nftables mode opens nothing: what comes to a NodePort, a load balancer's \
                     address or an external IP and goes on to a pod is dropped there"
                .into(),
            remedy,
            fix: Vec::new(),
        });
    }
    if !unclear.is_empty() {
        return Verdict::Unknown(unclear.join("; "));
    }
    match accepted.first() {
        Some(shown) => Verdict::Ok(shown.clone()),
        None => Verdict::Ok("nothing is dropped there that KUBE-FORWARD accepted".into()),
    }
}

/// What was found of the closed chains of iptables.
#[derive(Default)]
struct Judgement {
    evidence: Vec<String>,
    remedy: Vec<String>,
    unclear: Vec<String>,
    accepted: Vec<String>,
}

fn judge(facts: &Facts<'_>, chain: &ClosedChain<'_>, found: &mut Judgement) {
    // Where kube-proxy accepts nothing in this chain now, the move changes nothing in it.
    if !chain.leads_to(OPENER) && !changes_hooks(facts) && !is_here(facts) {
        return;
    }
    let is_ipv6 = chain.id.family.nft() == "ip6";
    let pods: Vec<IpNet> =
        pod_networks(facts).into_iter().filter(|pods| pods.addr().is_ipv6() == is_ipv6).collect();
    if pods.is_empty() && !pod_networks(facts).is_empty() {
        return;
    }
    let shown = chain.shown();
    let worst = |traffic: &dyn Fn(Option<IpNet>) -> Traffic| {
        let networks: Vec<Option<IpNet>> =
            if pods.is_empty() { vec![None] } else { pods.iter().copied().map(Some).collect() };
        let all = networks.into_iter().map(|network| chain.accepts(facts, &traffic(network)));
        all.max_by_key(|a| match a {
            Acceptance::Accepted(_) => 0,
            Acceptance::Unclear(_) => 1,
            Acceptance::Dropped => 2,
        })
        .unwrap_or(Acceptance::Dropped)
    };
    let to = worst(&|network| Traffic { destination: network, ..Traffic::default() });
    let from = worst(&|network| Traffic { source: network, ..Traffic::default() });
    match (to, from) {
        (Acceptance::Accepted(to), Acceptance::Accepted(from)) => {
            found.accepted.push(format!("{shown}, but others accept: {to}; {from}"));
        }
        (Acceptance::Accepted(to), _) if chain.accepts_replies(facts) => {
            found.accepted.push(format!("{shown}, but others accept it, and its replies: {to}"));
        }
        (Acceptance::Unclear(rule), _) | (_, Acceptance::Unclear(rule)) => found.unclear.push(
            format!("{shown}; whether this covers the traffic of services is not known: {rule}"),
        ),
        _ => {
            found.evidence.push(shown);
            found.evidence.extend(opened(chain));
            let tool = chain.tool();
            let pods = if pods.is_empty() { vec!["POD-NETWORK".into()] } else { texts(&pods) };
            for pods in pods {
                for side in ["-d", "-s"] {
                    found.remedy.push(format!("{tool} -I FORWARD {side} {pods} -j ACCEPT"));
                }
            }
            found.remedy.push(format!(
                "{tool} -P FORWARD ACCEPT   # instead, unless a firewall wants it closed; keep \
                 either where it is set at boot"
            ));
        }
    }
}

/// The rules with which kube-proxy opens the chain now, as evidence.
fn opened(chain: &ClosedChain<'_>) -> Vec<String> {
    if !chain.leads_to(OPENER) {
        return Vec::new();
    }
    let rules = chain.table.chain(OPENER).into_iter().flat_map(|opener| &opener.rules);
    let accepts = rules.filter(|rule| rule.target.as_deref() == Some("ACCEPT"));
    let shown = accepts.map(|rule| {
        let packets = chain.ruleset.counters(rule).map_or(0, |counters| counters.packets);
        format!("goes with the move: [{packets} packets] {}", chain.ruleset.rule_text(rule))
    });
    shown.collect()
}

/// Whether the traffic of services passes FORWARD after the move and does not now: ipvs takes it in
/// INPUT. Where no mode serves, nothing passes anywhere now.
fn changes_hooks(facts: &Facts<'_>) -> bool {
    is_target(facts) && facts.running.mode.is_none_or(|mode| mode::of(mode).has_virtual_servers())
}

fn pods(facts: &Facts<'_>) -> Vec<String> {
    let pods = texts(&pod_networks(facts));
    if pods.is_empty() { vec!["the pod network".into()] } else { pods }
}

fn texts(networks: &[IpNet]) -> Vec<String> {
    networks.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::kube_proxy::Mode;

    const FILE: &str = "iptables-nft.save";
    const OPEN: &str = ":FORWARD ACCEPT [0:0]";
    const JUMP: &str = "[0:0] -A FORWARD -m comment --comment \"kubernetes forwarding rules\" \
                        -j KUBE-FORWARD";

    fn closed(name: &str, rules: &str) -> Node {
        let node = Node::captured(name);
        // The policy of the table filter, which alone has KUBE-FORWARD.
        let text = node.state().files[FILE].to_string();
        let start = text.find("*filter").expect("filter");
        let text = format!(
            "{}{}",
            &text[..start],
            text[start..].replacen(OPEN, ":FORWARD DROP [7:420]", 1)
        );
        assert!(text.contains(JUMP), "{name}");
        node.put(FILE, &text.replacen(JUMP, &format!("{JUMP}\n{rules}"), 1))
    }

    fn before(node: &Node) -> Verdict {
        given(&node.state()).to(Mode::Nftables).verdict(&BEFORE)
    }

    #[test]
    fn a_closed_forward_is_found_unless_others_accept_both_ways() {
        for name in ["docker-iptables-1.30", "iptables-1.37"] {
            assert!(matches!(before(&Node::captured(name)), Verdict::Ok(_)), "{name}");
            let Verdict::Found(found) = before(&closed(name, "")) else { panic!("{name}") };
            let evidence = &found.evidence;
            assert!(evidence[0].ends_with("FORWARD is DROP, which dropped 7 packets"), "{found:?}");
            assert!(evidence[1].contains("--mark 0x4000/0x4000 -j ACCEPT"), "{found:?}");
            assert!(found.remedy[0].starts_with("iptables-nft -I FORWARD -d 192.168"), "{found:?}");
            let to = "-A FORWARD -d 192.168.64.0/20 -j ACCEPT\n";
            let from = "-A FORWARD -s 192.168.64.0/20 -j ACCEPT\n";
            let replies = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
            for (rules, fine) in [
                (format!("{to}{from}"), true),
                (format!("{to}{replies}"), true),
                (to.into(), false),
                (format!("{from}{replies}"), false),
                (replies.into(), false),
                ("-A FORWARD -i docker0 -j ACCEPT\n".into(), false),
            ] {
                let verdict = before(&closed(name, &rules));
                assert_eq!(matches!(verdict, Verdict::Ok(_)), fine, "{rules}: {verdict:?}");
                assert_eq!(matches!(verdict, Verdict::Found(_)), !fine, "{rules}");
            }
        }
    }

    #[test]
    fn a_final_reject_closes_too_and_a_pod_networks_mark_is_unknown() {
        let reject = "-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n";
        let node = closed("docker-iptables-1.30", reject);
        let Verdict::Found(found) = before(&node) else { panic!("not found") };
        assert!(found.evidence[0].contains("-A FORWARD -j REJECT"), "{found:?}");
        let calico = "-A FORWARD -m comment --comment \"cali:S93hcgKJrXEqnTfs\" -m mark \
                      --mark 0x10000/0x10000 -j ACCEPT\n";
        let verdict = before(&closed("docker-iptables-1.30", calico));
        assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
        assert!(matches!(before(&Node::captured("canal-stale-flannel-1.20")), Verdict::Ok(_)));
    }

    #[test]
    fn what_kube_proxy_does_not_open_now_is_no_change() {
        let node = Node::captured("iptables-1.37");
        let legacy = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
        let verdict = before(&node.clone().put("iptables-legacy.save", legacy));
        assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
        let native = r#"{"nftables": [{"table": {"family": "inet", "name": "f"}},
            {"chain": {"family": "inet", "table": "f", "name": "fwd", "hook": "forward",
            "type": "filter", "prio": 0, "policy": "drop"}}]}"#;
        assert!(matches!(before(&node.put("nft.json", native)), Verdict::Ok(_)));
        // ipvs takes the traffic of services in INPUT, so that it passes FORWARD from the move on.
        let ipvs = Node::captured("half-migrated-ipvs-1.20");
        let Verdict::Found(found) = before(&ipvs.put("nft.json", native)) else {
            panic!("not found")
        };
        assert!(found.evidence[0].starts_with("nft table inet f: the policy"), "{found:?}");
    }

    #[test]
    fn where_nftables_mode_runs() {
        for name in ["nftables-1.37", "nftables-1.34"] {
            let healthy = given(&node(name)).verdict(&NOW);
            assert!(matches!(healthy, Verdict::Ok(_)), "{name}: {healthy:?}");
        }
        let legacy = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
        let node = Node::captured("nftables-1.37").put("iptables-legacy.save", legacy);
        let Verdict::Found(found) = given(&node.state()).verdict(&NOW) else { panic!("not found") };
        assert!(found.remedy[0].starts_with("iptables-legacy -I FORWARD -d "), "{found:?}");
        let mut state = node.state();
        state.rulesets.clear();
        state.nft.tables.clear();
        let verdict = given(&state).to(Mode::Nftables).verdict(&BEFORE);
        assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
    }
}
