//! Host ports of pods that are gone. portmap's chains for a pod remain if nothing told portmap that
//! the pod ended. If two chains serve the same port, the older chain wins.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{portmap_native, shown};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::plan::Action;
use crate::state::object::ObjectKind;
use crate::state::ruleset::{Rule, Ruleset, Table};
use crate::state::{NodeState, RulesetId};

pub(super) const CHECK: Check = Check {
    id: "cni.portmap",
    title: "host ports of pods that are gone",
    severity: Severity::Warn,
    when: "the portmap plugin has chains of pods, or the rules are not known",
    applies: |facts| {
        facts.now.rulesets.is_empty()
            || ports(facts.now).next().is_some()
            || !portmap_native::ports(facts, OWNER).is_empty()
    },
    evaluate,
    reference: "https://github.com/rancher/rke/issues/3440",
};

/// The name of the portmap plugin in the catalogue.
const OWNER: &str = "cni-portmap";
/// The chain in which portmap has a rule for each pod with host ports. The rule jumps to the pod's
/// own chain.
const PORTS: &str = "CNI-HOSTPORT-DNAT";

/// The rule for a pod's host ports, which jumps to the chain of that pod.
struct Port<'a> {
    id: RulesetId,
    ruleset: &'a Ruleset,
    table: &'a Table,
    rule: &'a Rule,
}

impl Port<'_> {
    /// What the rule matches: its protocol, its ports, and the node's address to which the ports
    /// are bound.
    fn matches(&self) -> (String, String, Option<String>) {
        let words = self.ruleset.words(self.rule);
        let value = |o: &str| words.value(o).map(|(_, v)| v.into_owned());
        let ports = value("--dports").or_else(|| value("--dport")).unwrap_or_default();
        (value("-p").unwrap_or_default(), ports, value("-d"))
    }

    /// The addresses of the pods to which the rule's target chain sends packets.
    fn pods(&self) -> Vec<IpAddr> {
        let chain = self.rule.target.as_deref().and_then(|t| self.table.chain(t));
        let rules = chain.into_iter().flat_map(|c| &c.rules);
        let to = |rule: &Rule| {
            let (_, to) = self.ruleset.words(rule).value("--to-destination")?;
            address(&to)
        };
        rules.filter_map(to).collect()
    }

    fn shown(&self) -> String {
        format!("{}:{}: {}", self.id.file(), self.rule.line, self.ruleset.rule_text(self.rule))
    }
}

/// The address in `10.1.2.3:80` or `[fd00::1]:80`.
fn address(to: &str) -> Option<IpAddr> {
    let host = to.rsplit_once(':').map_or(to, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn ports(state: &NodeState) -> impl Iterator<Item = Port<'_>> {
    state.rulesets.iter().flat_map(|(id, ruleset)| {
        let table = ruleset.table("nat");
        let chain = table.and_then(|t| Some((t, t.chain(PORTS)?)));
        chain.into_iter().flat_map(move |(table, chain)| {
            let pods = |r: &&Rule| r.target.as_deref().is_some_and(|t| t.starts_with("CNI-DN-"));
            chain.rules.iter().filter(pods).map(move |rule| Port { id: *id, ruleset, table, rule })
        })
    })
}

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let state = facts.now;
    let native = portmap_native::ports(facts, OWNER);
    if state.rulesets.is_empty() && native.is_empty() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let mut evidence = empty(facts);
    let mut remedy = Vec::new();
    if !evidence.is_empty() {
        remedy.push(format!("proxyshift cleanup --owner {OWNER}"));
    }
    let leased = facts.live.and_then(|a| a.pod_addresses.as_ref());
    let mut known: Vec<((RulesetId, _), String)> = Vec::new();
    let mut gone = false;
    for port in ports(state) {
        let key = (port.id, port.matches());
        if let Some((_, first)) = known.iter().find(|(k, _)| *k == key) {
            evidence.push(format!("{} comes too late: `{first}` takes its packets", port.shown()));
            gone = true;
        }
        for pod in port.pods() {
            if let Some(why) = why_gone(state, pod, leased) {
                evidence.push(format!("{}: {why}", port.shown()));
                gone = true;
            }
        }
        known.push((key, port.ruleset.rule_text(port.rule).to_owned()));
    }
    let mut orders = Vec::new();
    for (at, port) in native.iter().enumerate() {
        let shown = &port.shown;
        if let Some(first) = native[..at].iter().find(|first| first.key == port.key) {
            evidence.push(format!("{shown} comes too late: `{}` takes its packets", first.shown));
            orders.push(&first.delete);
        }
        if let Some(why) = port.pod.and_then(|pod| why_gone(state, pod, leased)) {
            evidence.push(format!("{shown}: {why}"));
            orders.push(&port.delete);
        }
    }
    if !orders.is_empty() {
        orders.dedup();
        remedy.push(
            "crictl pods -o yaml; nft -a list ruleset   # whose address each rule has; delete the \
             rule of a pod that does not live:"
                .into(),
        );
        remedy.extend(orders.into_iter().cloned());
    }
    if gone {
        remedy.push(
            "crictl pods   # which of the ids in the comments live; delete the rule of one that \
             does not, then its CNI-DN- chain"
                .into(),
        );
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
            let count = known.len() + native.len();
            Verdict::Ok(format!("{count} host ports, each of a pod with an address"))
        }
        None => Verdict::Unknown("which pods live is not in this state".into()),
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
