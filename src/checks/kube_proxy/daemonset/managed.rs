//! A DaemonSet that somebody writes again and again, and so would undo what others write.

use super::{REFERENCE, answer, named, named_map, with_objects};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::cluster_facts::ProxyObjects;

pub(in crate::checks::kube_proxy) const CHECK: Check = Check {
    id: "kube-proxy.managed",
    title: "who writes kube-proxy's DaemonSet again and again",
    severity: Severity::Warn,
    when: "a move is asked for, and kube-proxy is a pod of a DaemonSet",
    applies: |facts| facts.to.is_some() && answer(facts).is_some(),
    evaluate: |facts| with_objects(facts, evaluate),
    reference: REFERENCE,
};

fn evaluate(facts: &Facts<'_>, objects: &ProxyObjects) -> Verdict {
    let sets = objects.daemon_sets.iter();
    let sets = sets.filter_map(|set| Some((named(objects, set), set.managed_by.as_ref()?)));
    let maps = objects.config_maps.iter();
    let maps = maps.filter_map(|map| Some((named_map(objects, map), map.managed_by.as_ref()?)));
    let evidence: Vec<String> =
        sets.chain(maps).map(|(object, who)| format!("{object}: {who} manages it")).collect();
    if evidence.is_empty() {
        return Verdict::Ok("nothing that this node may read says that somebody does".into());
    }
    let to = facts.to.unwrap_or_default();
    Verdict::Found(Found {
        evidence,
        effect:
            "what it writes undoes an arrangement that it does not know: a node that has moved \
                 then gets a second kube-proxy"
                .into(),
        remedy: vec![format!(
            "proxyshift cluster prepare --to {to} --render DIR   # manifests, to hand to what manages it"
        )],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::kube_proxy::daemonset::testing::{
        PREPARED, UNPREPARED, node_of, silent_node,
    };
    use crate::checks::testing::given;
    use crate::state::kube_proxy::Mode;

    #[test]
    fn who_manages_either_object_is_named() {
        let verdict = |captured: &str, change: fn(&mut ProxyObjects)| {
            given(&node_of(captured, change)).to(Mode::Nftables).verdict(&CHECK)
        };
        assert!(matches!(verdict(PREPARED, |_| ()), Verdict::Ok(_)));
        let Verdict::Found(found) =
            verdict(PREPARED, |o| o.daemon_sets[0].managed_by = Some("Argo CD".into()))
        else {
            panic!("ok")
        };
        assert_eq!(found.evidence, ["DaemonSet kube-system/kube-proxy: Argo CD manages it"]);
        assert!(found.remedy[0].contains("--to nftables --render DIR"), "{found:?}");
        // Of a cluster that is not prepared, a node may read the ConfigMap alone.
        let Verdict::Found(found) =
            verdict(UNPREPARED, |o| o.config_maps[0].managed_by = Some("Argo CD".into()))
        else {
            panic!("ok")
        };
        assert_eq!(found.evidence, ["ConfigMap kube-system/kube-proxy: Argo CD manages it"]);
        let silent = given(&silent_node()).to(Mode::Nftables).verdict(&CHECK);
        assert!(matches!(silent, Verdict::Unknown(_)));
    }
}
