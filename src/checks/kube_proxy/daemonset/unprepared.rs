//! A node of a DaemonSet moves by its label alone, and only in a cluster that is arranged for it.

use super::{Preparation, REFERENCE, answer, prepare, with_objects};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::cluster_facts::ProxyObjects;
use crate::state::kube_proxy::Mode;

pub(in crate::checks::kube_proxy) const CHECK: Check = Check {
    id: "kube-proxy.unprepared",
    title: "a cluster whose DaemonSet is not arranged for moves node by node",
    severity: Severity::Block,
    when: "a move is asked for, and kube-proxy is a pod of a DaemonSet",
    applies: |facts| facts.to.is_some() && answer(facts).is_some(),
    evaluate: |facts| with_objects(facts, evaluate),
    reference: REFERENCE,
};

fn evaluate(facts: &Facts<'_>, objects: &ProxyObjects) -> Verdict {
    let Some(to) = facts.to else { return Verdict::Ok("no move is asked for".into()) };
    if facts.running.mode == Some(to) {
        return Verdict::Ok(format!("{to} mode runs already"));
    }
    let mode = match Preparation::of(objects) {
        Preparation::Missing(evidence) => return found(to, evidence, prepare(to)),
        Preparation::Holds(mode) | Preparation::Stale(mode, _) => mode,
    };
    let original = objects.daemon_set(&objects.original);
    let map = original.and_then(|set| objects.config_map(set.config_map.as_ref()?));
    if to == mode || map.is_some_and(|map| map.mode == Some(to)) {
        return Verdict::Ok(format!("the cluster is prepared for {mode} mode"));
    }
    let evidence = format!("the cluster is prepared for {mode} mode");
    found(to, vec![evidence], "proxyshift cluster status   # finish or undo that first".into())
}

fn found(to: Mode, evidence: Vec<String>, remedy: String) -> Verdict {
    Verdict::Found(Found {
        evidence,
        effect: format!(
            "no label moves this node to {to} mode, so a move is refused; an edit of the DaemonSet's \
             ConfigMap would move every node"
        ),
        remedy: vec![remedy],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::kube_proxy::daemonset::testing::{
        PREPARED, UNPREPARED, node_of, silent_node,
    };
    use crate::checks::testing::{given, node};

    #[test]
    fn a_move_needs_a_cluster_that_is_prepared_for_its_mode() {
        let verdict =
            |captured: &str, to: Mode| given(&node_of(captured, |_| ())).to(to).verdict(&CHECK);
        let Verdict::Found(found) = verdict(UNPREPARED, Mode::Nftables) else { panic!("ok") };
        assert!(
            found.remedy[0].starts_with("proxyshift cluster prepare --to nftables"),
            "{found:?}"
        );
        assert!(found.evidence[0].contains("403"), "{found:?}");
        for (captured, to) in [(UNPREPARED, Mode::Iptables), (PREPARED, Mode::Nftables)] {
            assert!(matches!(verdict(captured, to), Verdict::Ok(_)), "{to}");
        }
        let Verdict::Found(found) = verdict(PREPARED, Mode::Ipvs) else { panic!("ok") };
        assert_eq!(found.evidence, ["the cluster is prepared for nftables mode"]);
        let silent = given(&silent_node()).to(Mode::Nftables).verdict(&CHECK);
        assert_eq!(silent, Verdict::Unknown("the API server does not answer in time".into()));
    }

    #[test]
    fn it_applies_to_no_other_node() {
        let applies = |facts: &mut Facts<'_>| (CHECK.applies)(facts);
        assert!(!given(&node("iptables-1.37")).to(Mode::Nftables).facts(applies));
        assert!(!given(&node_of(UNPREPARED, |_| ())).facts(applies));
    }
}
