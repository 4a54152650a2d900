//! An arrangement that no longer holds: somebody, such as `kubeadm upgrade`, has written over a part of it.

use super::{Preparation, REFERENCE, objects, prepare, with_objects};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::cluster_facts::ProxyObjects;

pub(in crate::checks::kube_proxy) const CHECK: Check = Check {
    id: "kube-proxy.prepared-stale",
    title: "a cluster that was arranged for moves node by node, and is no longer",
    severity: Severity::Block,
    when: "kube-proxy is a pod of a DaemonSet in a cluster that was prepared",
    applies: |facts| {
        objects(facts).is_some_and(|o| !matches!(Preparation::of(o), Preparation::Missing(_)))
    },
    evaluate: |facts| with_objects(facts, evaluate),
    reference: REFERENCE,
};

fn evaluate(_: &Facts<'_>, objects: &ProxyObjects) -> Verdict {
    let (mode, evidence) = match Preparation::of(objects) {
        Preparation::Missing(_) => return Verdict::Ok("the cluster is not prepared".into()),
        Preparation::Holds(mode) => {
            return Verdict::Ok(format!("the label alone moves a node to {mode} mode and back"));
        }
        Preparation::Stale(mode, flaws) => (mode, flaws),
    };
    let name = objects.daemon_set(&objects.original).and_then(|set| set.config_map.as_ref());
    let map = name.and_then(|name| objects.config_map(name)).filter(|map| map.mode == Some(mode));
    let edit = map.map(|map| {
        let (namespace, name) = (&objects.namespace, &map.id.name);
        format!("kubectl edit -n {namespace} configmap {name}   # its mode, as it was before")
    });
    Verdict::Found(Found {
        evidence,
        effect:
            "a node that has moved may get a second kube-proxy, or none; none can be moved, or \
                 brought back, by its label"
                .into(),
        remedy: edit.into_iter().chain([prepare(mode)]).collect(),
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::kube_proxy::daemonset::testing::{PREPARED, UNPREPARED, node_of};
    use crate::checks::testing::{given, verdict_of};
    use crate::state::kube_proxy::Mode;

    #[test]
    fn what_was_written_over_is_found_with_its_remedy() {
        let verdict = verdict_of(&CHECK, &node_of(PREPARED, |_| ()));
        assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
        let state = node_of(PREPARED, |o| o.daemon_sets[0].passes_over = None);
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("ok") };
        assert_eq!(found.remedy.len(), 1, "{found:?}");
        assert!(found.remedy[0].contains("prepare --to nftables"), "{found:?}");
        let state = node_of(PREPARED, |o| o.config_maps[0].mode = Some(Mode::Nftables));
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("ok") };
        assert!(found.remedy[0].contains("edit -n kube-system configmap kube-proxy"), "{found:?}");
        let unprepared = node_of(UNPREPARED, |_| ());
        assert!(!given(&unprepared).facts(|facts| (CHECK.applies)(facts)));
    }
}
