//! The node's addresses on which NodePorts answer. Without a setting these are all of them in iptables
//! and ipvs mode, and the primary ones alone in nftables mode.

use super::is_target;
use crate::checks::exposed::Exposed;
use crate::checks::kube_proxy::setting;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::IPVS_LINK;

pub(super) const CHECK: Check = Check {
    id: "nftables.node-port-addresses",
    title: "addresses of the node on which NodePorts will not answer",
    severity: Severity::Warn,
    when: "nftables mode is the target, and does not run yet",
    applies: is_target,
    evaluate,
    reference: "https://kubernetes.io/docs/reference/networking/virtual-ips/",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.running.serving.is_empty() {
        return Verdict::Unknown(format!("no mode serves: {}", facts.running.evidence));
    }
    let ports = Exposed::of(facts).node_ports;
    if ports.is_empty() {
        return Verdict::Ok("there is no NodePort".into());
    }
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown("what kube-proxy was told is not known".into());
    };
    if !settings.node_port_addresses.is_empty() {
        let set = settings.node_port_addresses.join(", ");
        return Verdict::Ok(format!("nodePortAddresses is [{set}], in every mode the same"));
    }
    let ports: Vec<String> = ports.iter().map(|p| format!("{}/{}", p.port, p.protocol)).collect();
    let mut evidence = vec![
        "nodePortAddresses is not set: in nftables mode that is [primary]".to_owned(),
        format!("NodePorts that answer on every address now: {}", ports.join(", ")),
    ];
    let own = addresses(facts);
    if !own.is_empty() {
        evidence.push(format!(
            "of these, the one of each family that the Node object has as InternalIP will answer: \
             {}",
            own.join(", ")
        ));
    }
    Verdict::Found(Found {
        evidence,
        effect: "a client, a load balancer or a firewall rule that uses another address of this \
                 node finds the NodePort closed: a second address, a VIP that keepalived or \
                 kube-vip moves here, a bridge's, 127.0.0.1"
            .into(),
        remedy: vec![
            "kubectl get nodes -o wide   # INTERNAL-IP: the address that will answer".into(),
            setting(
                facts,
                "nodePortAddresses: [0.0.0.0/0, '::/0']   # as now, but for 127.0.0.1 and ::1",
                "--nodeport-addresses=0.0.0.0/0,::/0",
            ),
        ],
        fix: Vec::new(),
    })
}

/// The node's own addresses with their links.
fn addresses(facts: &Facts<'_>) -> Vec<String> {
    let links = facts.now.links.iter().filter(|link| link.name != IPVS_LINK);
    let of = links.flat_map(|link| {
        let own = link.addresses.iter().map(|net| net.addr());
        let own = own.filter(|ip| !ip.is_loopback() && !is_link_local(ip));
        own.map(|ip| format!("{ip} ({})", link.name))
    });
    of.collect()
}

fn is_link_local(ip: &std::net::IpAddr) -> bool {
    match ip {
        std::net::IpAddr::V4(ip) => ip.is_link_local(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given};
    use crate::state::kube_proxy::Mode;

    const CONFIG: &str = "files/var/lib/kube-proxy/config.conf";

    fn before(node: &Node) -> Verdict {
        given(&node.state()).to(Mode::Nftables).verdict(&CHECK)
    }

    #[test]
    fn found_unless_the_addresses_are_set() {
        for name in ["docker-iptables-1.30", "iptables-1.37", "half-migrated-ipvs-1.20"] {
            let Verdict::Found(found) = before(&Node::captured(name)) else { panic!("{name}") };
            assert!(found.evidence[0].contains("[primary]"), "{found:?}");
            assert!(found.evidence[1].contains("30080/tcp"), "{found:?}");
            assert!(!found.evidence[2].contains("127.0.0.1"), "{found:?}");
            assert!(!found.evidence[2].contains("kube-ipvs0"), "{found:?}");
            for set in ["[primary]", "[10.9.0.0/24, '::/0']"] {
                let line = format!("nodePortAddresses: {set}\n");
                let verdict = before(&Node::captured(name).append(CONFIG, &line));
                assert!(matches!(verdict, Verdict::Ok(_)), "{name} {set}: {verdict:?}");
            }
        }
    }

    #[test]
    fn ok_without_node_ports_and_unknown_without_services_or_settings() {
        let node = Node::captured("docker-iptables-1.30");
        let none = node.clone().replace("iptables-nft.save", "-A KUBE-NODEPORTS -p", "-A MINE -p");
        let none =
            none.replace("iptables-nft.save", ":KUBE-NODEPORTS", ":MINE - [0:0]\n:KUBE-NODEPORTS");
        let verdict = before(&none);
        assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
        assert!(matches!(before(&node.clone().remove(CONFIG)), Verdict::Unknown(_)));
        assert!(matches!(before(&node.remove("iptables-nft.save")), Verdict::Unknown(_)));
    }
}
