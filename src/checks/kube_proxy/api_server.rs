//! An API server that is reached by a Service address: by the kube-proxy that needs it to serve that
//! address.

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::{Location, ServiceKey, Services};
use crate::state::cluster_facts::ServerInUse;
use crate::state::ipvs::Protocol;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.api-server",
    title: "an API server that this node reaches only through kube-proxy",
    severity: Severity::Block,
    when: "a move is asked for, and a kubeconfig of the kubelet or of kube-proxy was read",
    applies: |facts| facts.to.is_some() && !servers(facts).is_empty(),
    evaluate,
    reference: "https://kubernetes.io/docs/concepts/services-networking/service/",
};

fn servers<'f>(facts: &'f Facts<'_>) -> &'f [ServerInUse] {
    facts.now.cluster.as_ref().map_or(&[], |cluster| &cluster.servers)
}

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let services: Vec<Services> = mode::all().map(|mode| mode.services(facts.now)).collect();
    let is_served = |server: &&ServerInUse| {
        let Some(location) = server.address().map(Location::Address) else { return false };
        let key = ServiceKey { location, port: server.port(), protocol: Protocol::Tcp };
        services.iter().any(|services| services.contains_key(&key))
    };
    let served: Vec<&ServerInUse> = servers(facts).iter().filter(is_served).collect();
    if served.is_empty() {
        let mut all: Vec<&str> = servers(facts).iter().map(|s| s.server.as_str()).collect();
        all.dedup();
        return Verdict::Ok(format!("{}: no Service has it", all.join(", ")));
    }
    let line = |server: &ServerInUse| {
        format!("{}: server: {}, which is a Service's", server.kubeconfig, server.server)
    };
    Verdict::Found(Found {
        evidence: served.iter().map(|server| line(server)).collect(),
        effect: "once kube-proxy serves nothing, as in a move that fails or after a reboot, neither it \
                 nor this node reaches the API server, and nothing brings it back"
            .into(),
        remedy: served
            .iter()
            .map(|server| {
                format!(
                    "server: https://ADDRESS:6443   # in {} of {}: an address of the API server's own",
                    server.kubeconfig, server.program
                )
            })
            .collect(),
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::NodeState;
    use crate::state::cluster_facts::{CLUSTER, ClusterFacts, render};
    use crate::state::kube_proxy::Mode;

    fn reached_at(addresses: &[&str]) -> NodeState {
        let server = |address: &&str| ServerInUse {
            program: "kubelet".into(),
            kubeconfig: "/etc/kubernetes/kubelet.conf".into(),
            server: format!("https://{address}"),
        };
        let servers = addresses.iter().map(server).collect();
        let facts = ClusterFacts { servers, kube_proxy: None };
        Node::captured("iptables-1.37").put(CLUSTER, &render(&facts).unwrap()).state()
    }

    #[test]
    fn a_service_address_blocks_a_move() {
        let verdict =
            |addresses: &[&str]| given(&reached_at(addresses)).to(Mode::Nftables).verdict(&CHECK);
        for fine in ["192.0.2.1:6443", "api.example:6443", "[fd00:20::1]:6443"] {
            assert!(matches!(verdict(&[fine]), Verdict::Ok(_)), "{fine}");
        }
        let services = mode::of(Mode::Iptables).services(&node("iptables-1.37"));
        let service = services.keys().find_map(|key| match key.location {
            Location::Address(address) if address.is_ipv4() && key.protocol == Protocol::Tcp => {
                Some((address, key.port))
            }
            _ => None,
        });
        let (address, port) = service.unwrap();
        let served = format!("{address}:{port}");
        let Verdict::Found(found) = verdict(&["192.0.2.1:6443", &served]) else { panic!("ok") };
        // kube-proxy translates the ports of its Services alone.
        let other = format!("{address}:6444");
        assert!(matches!(verdict(&[&other]), Verdict::Ok(_)), "{other}");
        assert_eq!((found.evidence.len(), found.remedy.len()), (1, 1), "{found:?}");
        assert!(found.evidence[0].starts_with("/etc/kubernetes/kubelet.conf: server: https://"));
        let applies = |facts: &mut Facts<'_>| (CHECK.applies)(facts);
        assert!(!given(&reached_at(&["192.0.2.1"])).facts(applies), "no move is asked for");
        assert!(!given(&node("iptables-1.37")).to(Mode::Nftables).facts(applies));
    }
}
