//! Calico's felix looks for kube-ipvs0 when felix starts, and restarts when kube-ipvs0 is added or
//! removed.

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::owners::liveness::{self, Liveness};

pub(super) const CHECK: Check = Check {
    id: "cni.calico-restart",
    title: "felix, which starts anew when kube-ipvs0 appears or goes",
    severity: Severity::Info,
    when: "Calico may run, and kube-proxy is to go to ipvs mode or away from it",
    applies,
    evaluate,
    reference: "https://github.com/projectcalico/calico/blob/master/felix/dataplane/linux/int_dataplane.go",
};

fn applies(facts: &Facts<'_>) -> bool {
    let crosses = match (facts.running.mode, facts.to) {
        (_, None) => false,
        (Some(from), Some(to)) => {
            mode::of(from).binds_addresses() != mode::of(to).binds_addresses()
        }
        (None, Some(to)) => mode::of(to).binds_addresses(),
    };
    crosses && !calico_liveness(facts).is_gone()
}

fn calico_liveness(facts: &Facts<'_>) -> Liveness {
    match facts.catalogue.component("calico") {
        Some(component) => liveness::liveness(component, facts.now),
        None => Liveness::Gone("calico is not in the catalogue".into()),
    }
}

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let evidence = match calico_liveness(facts) {
        Liveness::Alive(evidence) => evidence,
        Liveness::SeemsGone(missing) | Liveness::Unknown(missing) => {
            return Verdict::Unknown(format!("whether Calico runs: {missing}"));
        }
        Liveness::Gone(evidence) => return Verdict::Ok(evidence),
    };
    let there = facts.now.links.iter().any(|l| l.name == "kube-ipvs0");
    let (link, comes) = match (there, facts.to.is_some_and(|to| mode::of(to).binds_addresses())) {
        (true, true) => return Verdict::Ok("kube-ipvs0 is there already".into()),
        (false, false) => return Verdict::Ok("kube-ipvs0 is not there already".into()),
        (true, false) => ("kube-ipvs0 is there, and goes", "when it goes"),
        (false, true) => ("there is no kube-ipvs0, and it comes", "when it appears"),
    };
    let canal = facts.now.file("/etc/cni/net.d/10-canal.conflist").is_some();
    let set = if canal { "canal" } else { "calico-node" };
    Verdict::Found(Found {
        evidence: vec![evidence, link.into()],
        effect: format!(
            "{comes}, felix exits and starts anew: for some seconds no new pod and no changed \
             network policy takes effect on this node; so after a rollback"
        ),
        remedy: vec![format!(
            "kubectl -n kube-system rollout status daemonset/{set}   # wait for its readiness \
             after the switch, before the next node"
        )],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::kube_proxy::Mode;

    const CANAL: &str = "canal-stale-flannel-1.20";

    #[test]
    fn found_on_the_way_to_ipvs_alone() {
        let Verdict::Found(found) = given(&node(CANAL)).to(Mode::Ipvs).verdict(&CHECK) else {
            panic!("not found")
        };
        assert!(found.remedy[0].contains("daemonset/canal"), "{:?}", found.remedy);
        for to in [None, Some(Mode::Iptables), Some(Mode::Nftables)] {
            given(&node(CANAL)).to(to).facts(|facts| assert!(!(CHECK.applies)(facts), "{to:?}"));
        }
    }

    #[test]
    fn ok_when_the_link_is_there_and_unknown_when_calico_is() {
        let there =
            Node::captured(CANAL).replace("addr.json", "\"docker0\"", "\"kube-ipvs0\"").state();
        assert!(matches!(given(&there).to(Mode::Ipvs).verdict(&CHECK), Verdict::Ok(_)));
        let unknown = Node::captured("docker-iptables-1.30").remove("processes.json").state();
        assert!(matches!(given(&unknown).to(Mode::Ipvs).verdict(&CHECK), Verdict::Unknown(_)));
    }
}
