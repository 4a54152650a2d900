//! In ipvs mode, traffic to services passes chain INPUT: that of pods, and that of clients outside to
//! NodePorts and to addresses of load balancers. In the other modes, this traffic passes chain
//! FORWARD.

use ipnet::IpNet;

use crate::checks::exposed::{Exposed, port_conditions};
use crate::checks::firewall::{
    Acceptance, ClosedChain, NetfilterHook, Traffic, closed_chains, closed_native_chains,
    firewalld, pod_networks,
};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "ipvs.host-firewall",
    title: "a host firewall that closes INPUT, where ipvs serves",
    severity: Severity::Warn,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/98465",
};

/// How many addresses the remedy names at most.
const SHOWN: usize = 5;

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() && facts.now.nft.tables.is_empty() {
        return Verdict::Unknown("no rules are in this state".into());
    }
    let exposed = Exposed::of(facts);
    let chains = closed_chains(facts, NetfilterHook::Input);
    let native = closed_native_chains(facts, NetfilterHook::Input);
    let firewalld = firewalld(facts);
    let mut evidence = Vec::new();
    let mut remedy = Vec::new();
    for chain in &chains {
        let needed = needed(facts, chain, &exposed);
        if !needed.is_empty() {
            evidence.push(chain.shown());
            let tool = chain.tool();
            remedy.extend(needed.iter().map(|rule| format!("{tool} -I INPUT {rule} -j ACCEPT")));
        }
    }
    evidence.extend(native.iter().map(|chain| chain.shown.clone()));
    evidence.extend(firewalld.clone());
    if evidence.is_empty() {
        return Verdict::Ok(match chains.first() {
            Some(chain) => format!("{}, and rules accept what services need", chain.shown()),
            None => "INPUT is open, and no firewalld runs".into(),
        });
    }
    if let Some(shown) = shown(&exposed) {
        evidence.push(shown);
    }
    if firewalld.is_some() {
        remedy.extend(for_firewalld(facts, &exposed));
    }
    if !native.is_empty() && firewalld.is_none() {
        let ports = exposed.node_ports.iter().chain(&exposed.health_checks);
        let ports: Vec<String> = ports.map(|p| format!("{}/{}", p.port, p.protocol)).collect();
        let ports = if ports.is_empty() { "30000-32767".to_owned() } else { ports.join(", ") };
        let pods = pods(facts).join(", ");
        remedy.push(format!("accept new connections from {pods}, and to {ports}, in that chain"));
    }
    Verdict::Found(Found {
        evidence,
        effect:
            "in ipvs mode a connection to a service passes INPUT, a pod's and one from outside \
                 to a NodePort, a health check NodePort or a load balancer's address: what is not \
                 accepted there is dropped, though it worked in iptables mode"
                .into(),
        remedy,
        fix: Vec::new(),
    })
}

/// The conditions of the rules that a chain lacks for what passes it in ipvs mode.
fn needed(facts: &Facts<'_>, chain: &ClosedChain<'_>, exposed: &Exposed) -> Vec<String> {
    let family = chain.id.family;
    let accepted =
        |traffic: Traffic| matches!(chain.accepts(facts, &traffic), Acceptance::Accepted(_));
    let of_family = |network: &IpNet| network.addr().is_ipv6() == (family.nft() == "ip6");
    let pods: Vec<IpNet> = pod_networks(facts).into_iter().filter(of_family).collect();
    let mut needed: Vec<String> = pods
        .iter()
        .filter(|pods| !accepted(Traffic { source: Some(**pods), ..Traffic::default() }))
        .map(|pods| format!("-s {pods}"))
        .collect();
    if pod_networks(facts).is_empty() && !accepted(Traffic::default()) {
        needed.push("-s POD-NETWORK".into());
    }
    let mut ports = exposed.ports(family);
    ports.retain(|port| {
        let port = Some((port.protocol, port.port));
        !accepted(Traffic { port, ..Traffic::default() })
    });
    needed.extend(port_conditions(&ports));
    let addresses = exposed.addresses.iter().filter(|(address, protocol)| {
        let traffic = Traffic {
            destination: Some(address.ip().into()),
            port: Some((*protocol, address.port())),
            ..Traffic::default()
        };
        of_family(&address.ip().into()) && !accepted(traffic)
    });
    needed.extend(addresses.take(SHOWN).map(|(address, protocol)| {
        format!("-d {} -p {protocol} --dport {}", address.ip(), address.port())
    }));
    needed
}

/// What a closed INPUT stands before, as evidence.
fn shown(exposed: &Exposed) -> Option<String> {
    let ports = |ports: &mut dyn Iterator<Item = String>| ports.collect::<Vec<_>>().join(", ");
    let parts = [
        (
            "NodePorts",
            ports(&mut exposed.node_ports.iter().map(|p| format!("{}/{}", p.port, p.protocol))),
        ),
        (
            "health check NodePorts",
            ports(&mut exposed.health_checks.iter().map(|p| p.port.to_string())),
        ),
        (
            "external addresses",
            ports(&mut exposed.addresses.iter().map(|(at, protocol)| format!("{at}/{protocol}"))),
        ),
    ];
    let parts = parts.iter().filter(|(_, list)| !list.is_empty());
    let parts: Vec<String> = parts.map(|(name, list)| format!("{name} {list}")).collect();
    (!parts.is_empty()).then(|| format!("behind it: {}", parts.join("; ")))
}

fn pods(facts: &Facts<'_>) -> Vec<String> {
    let pods: Vec<String> = pod_networks(facts).iter().map(ToString::to_string).collect();
    if pods.is_empty() { vec!["POD-NETWORK".to_owned()] } else { pods }
}

fn for_firewalld(facts: &Facts<'_>, exposed: &Exposed) -> Vec<String> {
    let pods = pods(facts).into_iter();
    let mut remedy: Vec<String> = pods
        .map(|pods| format!("firewall-cmd --permanent --zone=trusted --add-source={pods}"))
        .collect();
    let ports = exposed.node_ports.iter().chain(&exposed.health_checks);
    let ports: std::collections::BTreeSet<_> = ports.map(|p| (p.port, p.protocol)).collect();
    let add = |ports: &str| format!("firewall-cmd --permanent --add-port={ports}");
    if ports.len() > SHOWN {
        remedy.extend([add("30000-32767/tcp"), add("30000-32767/udp")]);
    } else {
        remedy.extend(ports.iter().map(|(port, protocol)| add(&format!("{port}/{protocol}"))));
    }
    remedy.extend(exposed.addresses.iter().take(SHOWN).map(|(address, protocol)| {
        let family = if address.is_ipv6() { "ipv6" } else { "ipv4" };
        let (ip, port) = (address.ip(), address.port());
        format!(
            "firewall-cmd --permanent --add-rich-rule='rule family={family} destination \
             address={ip} port port={port} protocol={protocol} accept'"
        )
    }));
    remedy.push("firewall-cmd --reload   # rewrites its rules: not while services matter".into());
    remedy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::NodeState;

    const TO: Option<Mode> = Some(Mode::Ipvs);

    fn changed(from: &str, to: &str) -> NodeState {
        Node::captured("docker-iptables-1.30").replace("iptables-nft.save", from, to).state()
    }

    #[test]
    fn all_three_outcomes() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(given(&state).to(TO).verdict(&CHECK), Verdict::Ok(_)));
        let filter = "*filter\n:INPUT ACCEPT";
        let closed = changed(filter, "*filter\n:INPUT DROP");
        let Verdict::Found(found) = given(&closed).to(TO).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(
            found.evidence,
            [
                "iptables-nft filter: the policy of INPUT is DROP",
                "behind it: NodePorts 30080/tcp, 30443/tcp; health check NodePorts 30999; external \
                 addresses 198.51.100.7:9000/tcp, 203.0.113.50:443/tcp"
            ]
        );
        assert_eq!(
            found.remedy,
            [
                "iptables-nft -I INPUT -s 192.168.64.0/20 -j ACCEPT",
                "iptables-nft -I INPUT -p tcp -m multiport --dports 30080,30443,30999 -j ACCEPT",
                "iptables-nft -I INPUT -d 198.51.100.7 -p tcp --dport 9000 -j ACCEPT",
                "iptables-nft -I INPUT -d 203.0.113.50 -p tcp --dport 443 -j ACCEPT",
            ]
        );

        let rule = "-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load";
        let last = format!("-A INPUT -j REJECT --reject-with icmp-host-prohibited\n[0:0] {rule}");
        let Verdict::Found(found) = given(&changed(rule, &last)).to(TO).verdict(&CHECK) else {
            panic!("not found")
        };
        assert!(found.evidence[0].contains("last rule: -A INPUT -j REJECT"), "{found:?}");

        let node = Node::captured("docker-iptables-1.30").process(7, "firewalld", &[]);
        let mut state = node.state();
        let Verdict::Found(found) = given(&state).to(TO).verdict(&CHECK) else {
            panic!("not found")
        };
        let remedy = found.remedy.join("\n");
        for part in ["--add-source=192.168.64.0/20", "--add-port=30999/tcp", "address=203.0.113.50"]
        {
            assert!(remedy.contains(part), "{part}: {remedy}");
        }
        state.rulesets.clear();
        state.nft.tables.clear();
        assert!(matches!(given(&state).to(TO).verdict(&CHECK), Verdict::Unknown(_)));
    }

    #[test]
    fn what_is_accepted_already_needs_no_rule() {
        let with = |rules: &str| {
            let rule =
                "-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load";
            let rules = format!("-A INPUT {}\n[0:0] {rule}", rules.replace('\n', "\n-A INPUT "));
            let state = Node::captured("docker-iptables-1.30")
                .replace("iptables-nft.save", "*filter\n:INPUT ACCEPT", "*filter\n:INPUT DROP")
                .replace("iptables-nft.save", rule, &rules);
            given(&state.state()).to(TO).verdict(&CHECK)
        };
        let range = "-p tcp -m tcp --dport 30000:32767 -j ACCEPT";
        let Verdict::Found(found) = with(range) else { panic!("not found") };
        assert!(!found.remedy.iter().any(|r| r.contains("dports")), "{found:?}");
        assert!(found.remedy[0].contains("-s 192.168.64.0/20"), "{found:?}");
        let all = format!(
            "{range}\n-s 192.168.64.0/20 -j ACCEPT\n-d 198.51.100.7/32 -j ACCEPT\n\
                           -d 203.0.113.0/24 -p tcp -j ACCEPT"
        );
        let verdict = with(&all);
        assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
    }
}
