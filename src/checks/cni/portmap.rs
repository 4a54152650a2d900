//! Host ports of pods that are gone. portmap's chains for a pod remain if nothing told portmap that
//! the pod ended. If two chains serve the same port, the older chain wins.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::host_ports::host_ports;
use super::shown;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::owners::liveness;
use crate::plan::Action;
use crate::state::NodeState;
use crate::state::object::ObjectKind;

pub(super) const CHECK: Check = Check {
    id: "cni.portmap",
    title: "host ports of pods that are gone",
    severity: Severity::Warn,
    when: "the portmap plugin has chains of pods, or the rules are not known",
    applies: |facts| is_bare(facts.now) || !host_ports(facts.now).is_empty(),
    evaluate,
    reference: "https://github.com/rancher/rke/issues/3440",
};

/// The name of the portmap plugin in the catalogue.
const OWNER: &str = "cni-portmap";
fn evaluate(facts: &Facts<'_>) -> Verdict {
    let state = facts.now;
    if is_bare(state) {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let mut evidence = empty(facts);
    let mut remedy = Vec::new();
    if !evidence.is_empty() {
        remedy.push(format!("proxyshift cleanup --owner {OWNER}"));
    }
    let leased = facts.live.and_then(|a| a.pod_addresses.as_ref());
    let ports = host_ports(state);
    let mut gone = false;
    for (index, port) in ports.iter().enumerate() {
        let first = ports[..index].iter().find_map(|p| Some((p, p.takes_from(port)?)));
        if let Some((first, number)) = first {
            let rival = first.shown.split_once(": ").map_or(&*first.shown, |(_, rule)| rule);
            evidence.push(format!(
                "{} comes too late: `{rival}` takes its packets to port {number}",
                port.shown
            ));
            gone = true;
        }
        for pod in &port.pods {
            if let Some(why) = why_gone(state, *pod, leased) {
                evidence.push(format!("{}: {why}", port.shown));
                gone = true;
            }
        }
    }
    if gone {
        remedy.push(living(facts).into());
    }
    if !evidence.is_empty() {
        let effect = "connections to that port of the node go to an address where no pod is, also \
                      when a new pod has the same port"
            .into();
        // The fix removes chains that have no rules, because such chains belong to no pod. A person
        // must find out which of the other chains belong to pods that are gone.
        let fix = facts.removal(|o| &*o.owner == OWNER);
        return Verdict::Found(Found { evidence, effect, remedy, fix });
    }
    match leased {
        Some(_) => {
            Verdict::Ok(format!("{} host ports, each of a pod with an address", ports.len()))
        }
        None => Verdict::Unknown("which pods live is not in this state".into()),
    }
}

/// True if the state has neither rules of iptables nor native tables.
fn is_bare(state: &NodeState) -> bool {
    state.rulesets.is_empty() && state.nft.tables.is_empty()
}

/// How to find out which rule is of a pod that lives. Without a kubelet there need be no CRI.
fn living(facts: &Facts<'_>) -> &'static str {
    let processes = facts.now.processes.as_deref();
    if processes.is_none_or(|all| liveness::kubelet(all).is_some()) {
        "crictl pods   # which of the ids in the comments live; delete the rule of one that does \
         not, then its CNI-DN- chain, if it has one"
    } else {
        "nerdctl ps --all --no-trunc   # which of the ids in the comments live, or what else makes \
         containers here says; delete the rule of one that does not, then its CNI-DN- chain, if it \
         has one"
    }
}

/// portmap's empty chains, which the clean-up plan removes, as evidence.
fn empty(facts: &Facts<'_>) -> Vec<String> {
    let rows = facts.leftovers().objects.iter();
    let empty = rows.filter(|o| &*o.owner == OWNER && o.action == Action::Remove);
    empty.filter(|o| o.kind() == ObjectKind::Chain).map(|o| shown(facts.now, o)).collect()
}

/// Why no pod can have the address `pod`; `None` if a pod may have it.
fn why_gone(state: &NodeState, pod: IpAddr, leased: Option<&BTreeSet<IpAddr>>) -> Option<String> {
    let routed = |r: &crate::state::links::Route| {
        r.network().is_some_and(|n| n.prefix_len() > 0 && n.contains(&pod))
    };
    if !state.routes.is_empty() && !state.routes.iter().any(routed) {
        return Some(format!("this node has no route to {pod}"));
    }
    // Leased addresses count only if one of them is near the pod's, because the addresses of
    // another plugin's network say nothing about the pod's network.
    let near = |a: &IpAddr| {
        IpNet::new(pod, if pod.is_ipv4() { 24 } else { 64 }).is_ok_and(|n| n.trunc().contains(a))
    };
    let leased = leased.filter(|l| l.iter().any(near) && !l.contains(&pod))?;
    Some(format!("{pod} is not among the {} leased pod addresses", leased.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};
    use crate::state::live_facts::LiveFacts;

    const CANAL: &str = "canal-stale-flannel-1.20";
    const SAVE: &str = "iptables-nft.save";

    fn port(id: &str, to: &str) -> String {
        format!(
            "-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"n\\\" id: \
             \\\"{id}\\\"\" -m multiport --dports 8080 -j CNI-DN-{id}\n\
             -A CNI-DN-{id} -p tcp -m tcp --dport 8080 -j DNAT --to-destination {to}:80\n"
        )
    }

    /// The captured node after a change: its save has `chains` in place of its line `*nat`, and
    /// `rules` before its first nat rule.
    fn with_rules(chains: &str, rules: &str) -> NodeState {
        let first = "[0:0] -A PREROUTING -m comment --comment \"cali:6gwbT8clXdHdC1b1\"";
        Node::captured(CANAL)
            .replace(SAVE, "*nat\n", chains)
            .replace(SAVE, first, &format!("{rules}{first}"))
            .state()
    }

    fn with(ports: &[(&str, &str)]) -> NodeState {
        let mut chains = "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n".to_owned();
        let mut rules = String::new();
        for (id, to) in ports {
            chains += &format!(":CNI-DN-{id} - [0:0]\n");
            rules += &port(id, to);
        }
        with_rules(&chains, &rules)
    }

    fn leased(addresses: &[&str]) -> LiveFacts {
        let pods = addresses.iter().map(|a| a.parse().expect("an address")).collect();
        LiveFacts { pod_addresses: Some(pods), ..LiveFacts::default() }
    }

    #[test]
    fn a_port_that_leads_nowhere_and_one_that_comes_too_late() {
        let state = with(&[("aa", "10.77.0.5")]);
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("no route") };
        assert!(found.evidence[0].ends_with("no route to 10.77.0.5"), "{:?}", found.evidence);
        let state = with(&[("aa", "192.168.75.5"), ("bb", "192.168.75.5")]);
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("twice") };
        assert_eq!(found.evidence.len(), 1);
        assert!(found.evidence[0].contains("CNI-DN-bb comes too late"), "{:?}", found.evidence);
    }

    #[test]
    fn an_empty_chain_is_fixed_and_a_pods_is_left_to_a_person() {
        let chains = "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-DN-aa - [0:0]\n:CNI-DN-bb - [0:0]\n";
        let jump = "-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 81 -j CNI-DN-bb";
        let state = with_rules(chains, &format!("{}{jump}\n", port("aa", "10.77.0.5")));
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        let lines: Vec<String> = found.fix.iter().flat_map(|e| e.lines()).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].ends_with("--dports 81 -j CNI-DN-bb"), "{lines:?}");
        assert_eq!(lines[1], "remove iptables-nft nat chain CNI-DN-bb");
        assert!(found.remedy.iter().any(|r| r.starts_with("crictl pods")), "{:?}", found.remedy);
    }

    #[test]
    fn the_leases_of_a_live_node_decide() {
        let state = with(&[("aa", "192.168.75.5")]);
        let live = given(&state).live(&leased(&["192.168.75.5"])).verdict(&CHECK);
        assert!(matches!(live, Verdict::Ok(_)), "{live:?}");
        let dead = given(&state).live(&leased(&["192.168.75.6"])).verdict(&CHECK);
        assert!(matches!(dead, Verdict::Found(_)), "{dead:?}");
        // Leased addresses of another network are no evidence that this pod is gone.
        let other = given(&state).live(&leased(&["10.88.0.2"])).verdict(&CHECK);
        assert!(matches!(other, Verdict::Ok(_)), "{other:?}");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }

    #[test]
    fn it_does_not_apply_without_host_ports() {
        given(&node(CANAL)).facts(|facts| assert!(!(CHECK.applies)(facts)));
    }
}
