//! A pod that is older, or newer, than the template of its DaemonSet: under `OnDelete` an upgrade reaches
//! a pod only when that is made anew.

use super::{REFERENCE, named, objects, only_pod, with_objects};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::cluster_facts::{ProxyDaemonSet, ProxyObjects, ProxyPod};

pub(in crate::checks::kube_proxy) const CHECK: Check = Check {
    id: "kube-proxy.half-upgraded",
    title: "a pod of another version than the template of its DaemonSet",
    severity: Severity::Block,
    when: "a move is asked for, and kube-proxy is a pod of a DaemonSet that this node may read",
    applies: |facts| {
        let is_moved = facts.to.is_some() && facts.to != facts.running.mode;
        is_moved && objects(facts).is_some_and(|objects| pair(objects).is_some())
    },
    evaluate: |facts| with_objects(facts, evaluate),
    reference: REFERENCE,
};

/// The pod, and the DaemonSet that made it.
fn pair(objects: &ProxyObjects) -> Option<(&ProxyPod, &ProxyDaemonSet)> {
    let pod = only_pod(objects)?;
    let set = objects.daemon_sets.iter().find(|set| set.id.uid == pod.daemon_set.uid)?;
    Some((pod, set))
}

fn evaluate(_: &Facts<'_>, objects: &ProxyObjects) -> Verdict {
    let Some((pod, set)) = pair(objects) else {
        return Verdict::Unknown("the pod's DaemonSet is not known".into());
    };
    let (Some(runs), Some(template)) = (&pod.image, &set.image) else {
        return Verdict::Unknown("which container of the pod is kube-proxy is not known".into());
    };
    if runs == template {
        return Verdict::Ok(format!("the pod and its template: {runs}"));
    }
    // Admission may have the image of a pod come from another registry, and pin it by its digest.
    let (Some(version), Some(wanted)) = (tag_of(runs), tag_of(template)) else {
        return Verdict::Unknown(format!("which versions these are: {runs}, {template}"));
    };
    if version == wanted {
        return Verdict::Ok(format!("the pod and its template: {version}"));
    }
    let namespace = &objects.namespace;
    Verdict::Found(Found {
        evidence: vec![
            format!("pod {namespace}/{} has the image {runs}", pod.id.name),
            format!("{} has {template} in its template", named(objects, set)),
        ],
        effect:
            "a move makes a new pod, and so changes kube-proxy's version too: if services fail \
                 then, it is for either reason, and the way back does not bring the old version"
                .into(),
        remedy: vec![format!(
            "kubectl delete pod -n {namespace} {}   # first the version, in the mode of now: the pod \
             comes back by the template",
            pod.id.name
        )],
        fix: Vec::new(),
    })
}

/// The tag of an image; none if it is named by its digest alone.
fn tag_of(image: &str) -> Option<&str> {
    let last = image.rsplit_once('/').map_or(image, |(_, last)| last);
    let named = last.split_once('@').map_or(last, |(named, _)| named);
    named.split_once(':').map(|(_, tag)| tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::kube_proxy::daemonset::testing::{PREPARED, UNPREPARED, node_of};
    use crate::checks::testing::given;
    use crate::state::kube_proxy::Mode;

    #[test]
    fn versions_are_compared_and_registries_are_not() {
        for (image, is_found) in [
            ("local.test/k8s/kube-proxy:v1.37.2", false),
            ("mirror.test:5000/kube-proxy:v1.37.2", false),
            ("local.test/k8s/kube-proxy:v1.36.9", true),
            ("local.test/k8s/kube-proxy:v1.36.9@sha256:abc", true),
            ("mirror.test/kube-proxy:v1.37.2@sha256:abc", false),
            // It may be that version.
            ("local.test/k8s/kube-proxy@sha256:abc", false),
        ] {
            let state = node_of(PREPARED, |o| o.pods[0].image = Some(image.into()));
            let verdict = given(&state).to(Mode::Nftables).verdict(&CHECK);
            assert_eq!(matches!(verdict, Verdict::Found(_)), is_found, "{image}: {verdict:?}");
        }
        let unknown = node_of(PREPARED, |o| o.pods[0].image = None);
        let unknown = given(&unknown).to(Mode::Nftables).verdict(&CHECK);
        assert!(matches!(unknown, Verdict::Unknown(_)));
        let applies = |facts: &mut Facts<'_>| (CHECK.applies)(facts);
        let unprepared = node_of(UNPREPARED, |_| ());
        assert!(!given(&unprepared).to(Mode::Nftables).facts(applies), "it may not read it");
        let upgraded = node_of(PREPARED, |o| o.pods[0].image = Some("a/b:v1.36.9".into()));
        for to in [None, Some(Mode::Iptables)] {
            assert!(!given(&upgraded).to(to).facts(applies), "{to:?}");
        }
    }
}
