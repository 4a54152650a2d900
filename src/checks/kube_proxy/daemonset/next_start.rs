//! A ConfigMap that was edited after the pod started: nothing happens until kube-proxy starts again, for
//! whatever reason. The file in the pod follows within minutes, and `kube-proxy.mode` then says the same.

use super::{REFERENCE, answer, named_map, only_pod, prepare, with_objects};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::cluster_facts::{ClusterAnswer, ProxyObjects};

pub(in crate::checks::kube_proxy) const CHECK: Check = Check {
    id: "kube-proxy.next-start",
    title: "the mode in which kube-proxy's pod would start again",
    severity: Severity::Warn,
    when: "kube-proxy is a pod of a DaemonSet",
    applies: |facts| match answer(facts) {
        Some(ClusterAnswer::Objects(objects)) => only_pod(objects).is_some(),
        Some(ClusterAnswer::Unanswered(_)) => true,
        None => false,
    },
    evaluate: |facts| with_objects(facts, evaluate),
    reference: REFERENCE,
};

fn evaluate(facts: &Facts<'_>, objects: &ProxyObjects) -> Verdict {
    let name = only_pod(objects).and_then(|pod| pod.config_map.as_ref());
    let Some(map) = name.and_then(|name| objects.config_map(name)) else {
        return Verdict::Unknown("the ConfigMap of the pod's configuration is not known".into());
    };
    let object = named_map(objects, map);
    let Some(next) = map.mode else {
        return Verdict::Unknown(format!("the configuration in {object} is not understood"));
    };
    let [now] = facts.running.serving[..] else {
        return Verdict::Unknown(format!(
            "which mode runs is not clear: {}",
            facts.running.evidence
        ));
    };
    if now == next {
        return Verdict::Ok(format!("{object}: {next}, as the kernel serves"));
    }
    Verdict::Found(Found {
        evidence: vec![
            format!("{object}: mode: {next}"),
            format!("the kernel serves {now} mode, and no other"),
        ],
        effect: format!(
            "kube-proxy reads it only when it starts: the next restart, by a crash, a reboot or an \
             upgrade, moves this node to {next} mode, and nothing serves meanwhile"
        ),
        remedy: vec![
            format!(
                "kubectl edit -n {} configmap {}   # mode: {now}, until nodes are moved one by one",
                objects.namespace, map.id.name
            ),
            prepare(next),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::kube_proxy::daemonset::testing::{
        PREPARED, UNPREPARED, node_of, silent_node,
    };
    use crate::checks::testing::verdict_of;
    use crate::state::kube_proxy::Mode;

    #[test]
    fn the_config_map_of_the_pod_is_compared_with_the_kernel() {
        for captured in [UNPREPARED, PREPARED] {
            let verdict = verdict_of(&CHECK, &node_of(captured, |_| ()));
            assert!(matches!(&verdict, Verdict::Ok(_)), "{verdict:?}");
            let edited = node_of(captured, |o| o.config_maps[0].mode = Some(Mode::Ipvs));
            let Verdict::Found(found) = verdict_of(&CHECK, &edited) else { panic!("ok") };
            assert_eq!(found.evidence[0], "ConfigMap kube-system/kube-proxy: mode: ipvs");
            assert!(found.remedy[0].contains("# mode: iptables"), "{found:?}");
        }
        // That of the other DaemonSet is for nodes that have moved.
        let other = node_of(PREPARED, |o| o.config_maps[1].mode = Some(Mode::Ipvs));
        assert!(matches!(verdict_of(&CHECK, &other), Verdict::Ok(_)));
        let mut unserved = node_of(PREPARED, |_| ());
        unserved.rulesets.clear();
        for state in [
            silent_node(),
            unserved,
            node_of(PREPARED, |o| o.config_maps[0].mode = None),
            node_of(PREPARED, |o| o.config_maps.clear()),
        ] {
            assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        }
    }
}
