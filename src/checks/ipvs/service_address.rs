//! ipvs mode binds every service address to kube-ipvs0 on every node. A node or an API server whose
//! own address equals a service address is then cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::Services;
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "ipvs.service-address",
    title: "service addresses that a node or the API server has as well",
    severity: Severity::Block,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/127410",
};

/// Links that have service addresses by design. nodelocaldns has a check of its own.
const BY_DESIGN: [&str; 2] = ["kube-ipvs0", "nodelocaldns"];

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.links.is_empty() {
        return Verdict::Unknown("the links are not in this state".into());
    }
    let Some(mode) = facts.running.mode else {
        let evidence = &facts.running.evidence;
        return Verdict::Unknown(format!("which mode serves is not clear: {evidence}"));
    };
    let in_use = in_use(facts, mode);
    let clashes: Services = mode::of(mode).services_where(facts.now, &|key, _| {
        key.address().is_some_and(|a| in_use.contains_key(&a))
    });
    // Addresses on kube-ipvs0 are compared too, because some of them may have no virtual server.
    let bound: BTreeSet<IpAddr> = facts
        .now
        .links
        .iter()
        .filter(|l| l.name == "kube-ipvs0")
        .flat_map(|l| l.addresses.iter().map(ipnet::IpNet::addr))
        .filter(|a| in_use.contains_key(a))
        .collect();
    if clashes.is_empty() && bound.is_empty() {
        return Verdict::Ok(format!("no service has one of {} addresses in use", in_use.len()));
    }
    let mut evidence: Vec<String> = clashes
        .iter()
        .filter_map(|(key, service)| {
            let name = service.name.as_deref().unwrap_or("a service");
            let address = key.address()?;
            Some(format!("{key} is {name}; {address} is {}", in_use.get(&address)?))
        })
        .collect();
    evidence.extend(
        bound.iter().filter_map(|a| Some(format!("{a} is on kube-ipvs0 and {}", in_use.get(a)?))),
    );
    let names: BTreeSet<&str> = clashes.values().filter_map(|s| s.name.as_deref()).collect();
    let mut remedy: Vec<String> = names
        .iter()
        .filter_map(|n| n.split_once('/'))
        .map(|(namespace, rest)| {
            let name = rest.split(':').next().unwrap_or(rest);
            format!("kubectl -n {namespace} edit service {name}   # take the address out")
        })
        .collect();
    if remedy.is_empty() {
        let find = bound.iter().copied().chain(clashes.keys().filter_map(|k| k.address()));
        remedy = find
            .collect::<BTreeSet<_>>()
            .iter()
            .map(|a| format!("kubectl get service -A -o wide | grep -w {a}   # and take it out"))
            .collect();
    }
    remedy.push("proxyshift check --to nftables   # which binds no addresses".into());
    Verdict::Found(Found {
        evidence,
        effect: "with the address on kube-ipvs0 each node answers for it itself: the node, or the \
                 API server, cannot be reached any more and the node goes NotReady"
            .into(),
        remedy,
        fix: Vec::new(),
    })
}

/// The addresses that are in use on the network, each with what uses it.
fn in_use(facts: &Facts<'_>, mode: Mode) -> BTreeMap<IpAddr, String> {
    let mut in_use = BTreeMap::new();
    for route in &facts.now.routes {
        if let Some(gateway) = route.gateway {
            in_use.insert(gateway, format!("the next hop of the route to {}", route.dst));
        }
    }
    let api = mode::of(mode).services_where(facts.now, &|key, name| match name {
        Some(name) => name == "default/kubernetes:https",
        None => key.port == 443 && key.address().is_some(),
    });
    for service in api.values() {
        // If the mode keeps no service names, an endpoint counts as an API server only if its port
        // is 6443.
        let is_api = |port| service.name.is_some() || port == 6443;
        for backend in service.backends.iter().filter(|b| is_api(b.port())) {
            in_use.insert(backend.ip(), "the API server's".into());
        }
    }
    // While kube-vip runs, single addresses (/32, /128) on links are left out, because kube-vip
    // adds the addresses of load balancers to a link of the node that announces them.
    let announces = facts.now.processes.iter().flatten().any(|p| p.name == "kube-vip");
    for link in facts.now.links.iter().filter(|l| !BY_DESIGN.contains(&l.name.as_str())) {
        let whole = |net: &&ipnet::IpNet| net.prefix_len() == net.max_prefix_len();
        let own = link.addresses.iter().filter(|net| !(announces && whole(net)));
        for address in own.map(ipnet::IpNet::addr) {
            let local = match address {
                IpAddr::V4(a) => a.is_loopback() || a.is_link_local(),
                IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local(),
            };
            if !local {
                in_use.insert(address, format!("on this node's {}", link.name));
            }
        }
    }
    in_use
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};

    #[test]
    fn ok_where_none_clashes() {
        for name in ["docker-iptables-1.30", "half-migrated-ipvs-1.20", "nftables-leftovers-1.30"] {
            let verdict = given(&node(name)).to(Mode::Ipvs).verdict(&CHECK);
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
    }

    #[test]
    fn an_external_address_of_a_node_is_found_before_the_switch() {
        let mut state = node("docker-iptables-1.30");
        state.links[0].addresses.push("198.51.100.7/32".parse().expect("a network"));
        let Verdict::Found(found) = given(&state).to(Mode::Ipvs).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(
            found.evidence,
            ["198.51.100.7:9000/tcp is shop/ext:p; 198.51.100.7 is on this node's lo"]
        );
        assert!(found.remedy[0].starts_with("kubectl -n shop edit service ext"), "{found:?}");
    }

    #[test]
    fn what_kube_vip_announces_is_no_clash() {
        let mut state = node("docker-iptables-1.30");
        state.links[0].addresses.push("203.0.113.50/32".parse().expect("a network"));
        let to = Some(Mode::Ipvs);
        assert!(matches!(given(&state).to(to).verdict(&CHECK), Verdict::Found(_)));
        let announcer = Node::captured("docker-iptables-1.30").process(7, "kube-vip", &[]);
        state.processes = announcer.state().processes;
        assert!(matches!(given(&state).to(to).verdict(&CHECK), Verdict::Ok(_)));
    }

    #[test]
    fn a_next_hop_and_the_api_server_count_too() {
        let mut state = Node::captured("docker-iptables-1.30")
            .replace("iptables-nft.save", "-d 203.0.113.50/32", "-d 10.9.0.1/32")
            .state();
        let route = r#"[{"dst": "10.5.0.0/16", "gateway": "198.51.100.7", "dev": "n1"}]"#;
        state.routes = crate::state::links::parse_routes("route.json", route).expect("a route");
        for link in &mut state.links {
            link.addresses.retain(|a| a.addr().to_string() != "10.9.0.1");
        }
        let Verdict::Found(found) = given(&state).to(Mode::Ipvs).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(
            found.evidence,
            [
                "10.9.0.1:443/tcp is shop/lb:https; 10.9.0.1 is the API server's",
                "198.51.100.7:9000/tcp is shop/ext:p; 198.51.100.7 is the next hop of the route \
                 to 10.5.0.0/16",
            ]
        );
    }

    #[test]
    fn what_is_on_kube_ipvs0_without_a_virtual_server_counts() {
        let mut state = node("half-migrated-ipvs-1.20");
        let link = state.links.iter_mut().find(|l| l.name == "kube-ipvs0").expect("kube-ipvs0");
        link.addresses.push("10.9.0.1/32".parse().expect("a network"));
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        let last = found.evidence.last().expect("evidence");
        assert_eq!(last, "10.9.0.1 is on kube-ipvs0 and on this node's lo");
    }

    #[test]
    fn unknown_without_links() {
        let mut state = node("docker-iptables-1.30");
        state.links.clear();
        assert!(matches!(given(&state).to(Mode::Ipvs).verdict(&CHECK), Verdict::Unknown(_)));
    }
}
