//! kube-proxy as a pod of a DaemonSet: how the cluster is arranged for moves of this node, by what the
//! API server says of it.

mod half_upgraded;
mod managed;
mod next_start;
mod stale;
mod unprepared;

use crate::checks::{Facts, Verdict};
use crate::state::cluster_facts::{
    ClusterAnswer, ProxyConfigMap, ProxyDaemonSet, ProxyObjects, ProxyPod,
};
use crate::state::kube_proxy::Mode;
use crate::state::kubernetes::{MODE_LABEL, name_for_mode};

pub(super) use self::half_upgraded::CHECK as HALF_UPGRADED;
pub(super) use self::managed::CHECK as MANAGED;
pub(super) use self::next_start::CHECK as NEXT_START;
pub(super) use self::stale::CHECK as STALE;
pub(super) use self::unprepared::CHECK as UNPREPARED;

const REFERENCE: &str = "https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/";

/// What the API server has of kube-proxy; none where kube-proxy is no pod of a DaemonSet, and where
/// this was not captured.
fn answer<'f>(facts: &'f Facts<'_>) -> Option<&'f ClusterAnswer> {
    facts.now.cluster.as_ref()?.kube_proxy.as_ref()
}

/// The objects that the API server has of kube-proxy, if it has answered.
fn objects<'f>(facts: &'f Facts<'_>) -> Option<&'f ProxyObjects> {
    match answer(facts)? {
        ClusterAnswer::Objects(objects) => Some(objects),
        ClusterAnswer::Unanswered(_) => None,
    }
}

/// The verdict of `judge` on the objects, or that they are not known.
fn with_objects(facts: &Facts<'_>, judge: fn(&Facts<'_>, &ProxyObjects) -> Verdict) -> Verdict {
    match answer(facts) {
        Some(ClusterAnswer::Objects(objects)) => judge(facts, objects),
        Some(ClusterAnswer::Unanswered(why)) => Verdict::Unknown(why.clone()),
        None => Verdict::Unknown("what the API server says is not in this state".into()),
    }
}

/// The only pod of kube-proxy on this node, as a phrase, if the API server says that it is Ready.
pub(in crate::checks) fn ready_pod(facts: &Facts<'_>) -> Option<String> {
    let objects = objects(facts)?;
    let pod = only_pod(objects).filter(|pod| pod.is_ready)?;
    Some(format!("pod {}/{} is Ready, as its process has started", objects.namespace, pod.id.name))
}

/// The pod of kube-proxy on this node; none if there are several.
fn only_pod(objects: &ProxyObjects) -> Option<&ProxyPod> {
    match &objects.pods[..] {
        [pod] => Some(pod),
        _ => None,
    }
}

/// How a cluster is arranged for moves node by node.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Preparation {
    /// It is not, or the node may not see it. With what shows that.
    Missing(Vec<String>),
    /// It was, for this mode, and something is not as it must be.
    Stale(Mode, Vec<String>),
    /// It is, for this mode.
    Holds(Mode),
}

impl Preparation {
    fn of(objects: &ProxyObjects) -> Preparation {
        let original = objects.daemon_set(&objects.original);
        let parsed = |value: &Option<String>| value.as_ref()?.parse::<Mode>().ok();
        let mode = original
            .and_then(|set| parsed(&set.passes_over))
            .or_else(|| objects.of_modes().map(|(mode, _)| mode).next())
            .or_else(|| parsed(&objects.label));
        let Some(mode) = mode else {
            let mut evidence: Vec<String> = objects
                .unread
                .iter()
                .map(|unread| format!("{}: {}", unread.object, unread.why))
                .collect();
            evidence.extend(original.map(|set| {
                format!(
                    "{} does not pass over Nodes by the label {MODE_LABEL}",
                    named(objects, set)
                )
            }));
            return Preparation::Missing(evidence);
        };
        match flaws(objects, mode) {
            flaws if flaws.is_empty() => Preparation::Holds(mode),
            flaws => Preparation::Stale(mode, flaws),
        }
    }
}

/// What is not as it must be, so that the label alone moves a Node to `mode` and back.
fn flaws(objects: &ProxyObjects, mode: Mode) -> Vec<String> {
    let ours = name_for_mode(&objects.original, mode);
    let sets = [objects.original.as_str(), ours.as_str()].map(|name| objects.daemon_set(name));
    let mut flaws: Vec<String> =
        objects.unread.iter().map(|unread| format!("{}: {}", unread.object, unread.why)).collect();
    if sets[1].is_none() && flaws.is_empty() {
        flaws.push(format!("there is no DaemonSet {}/{ours}", objects.namespace));
    }
    let label = format!("{MODE_LABEL}={mode}");
    if let Some(set) = sets[0].filter(|set| set.passes_over.as_deref() != Some(mode.name())) {
        let set = named(objects, set);
        flaws.push(format!("{set} does not pass over Nodes with the label {label}"));
    }
    if let Some(set) = sets[1].filter(|set| set.keeps_to.as_deref() != Some(mode.name())) {
        flaws
            .push(format!("{} does not keep to Nodes with the label {label}", named(objects, set)));
    }
    for set in sets.iter().flatten().filter(|set| !set.is_on_delete) {
        let set = named(objects, set);
        flaws.push(format!("{set} replaces its pods when its template changes"));
    }
    if let [Some(a), Some(b)] = sets
        && a.image != b.image
    {
        flaws.push(format!("{} and {} have different images", named(objects, a), b.id.name));
    }
    let maps = sets.map(|set| objects.config_map(set?.config_map.as_ref()?));
    if let Some(map) = maps[0].filter(|map| map.mode == Some(mode)) {
        flaws.push(format!("{} says {mode} mode, as for moved Nodes", named_map(objects, map)));
    }
    if let Some(map) = maps[1].filter(|map| map.mode != Some(mode)) {
        flaws.push(format!("{} does not say {mode} mode", named_map(objects, map)));
    }
    if let (Some(key), [Some(a), Some(b)]) = (&objects.differ_by, maps) {
        flaws.push(format!("`{key}` in {} is not as in {}", named_map(objects, a), b.id.name));
    }
    flaws
}

fn named(objects: &ProxyObjects, set: &ProxyDaemonSet) -> String {
    format!("DaemonSet {}/{}", objects.namespace, set.id.name)
}

fn named_map(objects: &ProxyObjects, map: &ProxyConfigMap) -> String {
    format!("ConfigMap {}/{}", objects.namespace, map.id.name)
}

/// The command by which an administrator arranges the cluster.
fn prepare(to: Mode) -> String {
    format!("proxyshift cluster prepare --to {to}   # by an administrator; no pod restarts")
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::checks::testing::Node;
    use crate::state::NodeState;
    use crate::state::cluster_facts::{CLUSTER, ClusterFacts, parse, render};

    /// What was captured of a cluster as kubeadm makes it.
    pub const UNPREPARED: &str = include_str!("../../../../tests/nodes/cluster/unprepared.json");

    /// What was captured of it after `cluster prepare --to nftables`.
    pub const PREPARED: &str = include_str!("../../../../tests/nodes/cluster/prepared.json");

    /// A captured node in iptables mode whose cluster is as captured, but for `change`.
    pub fn node_of(captured: &str, change: impl FnOnce(&mut ProxyObjects)) -> NodeState {
        let mut facts: ClusterFacts = parse(CLUSTER, captured).unwrap();
        let Some(ClusterAnswer::Objects(objects)) = &mut facts.kube_proxy else { panic!("none") };
        change(objects);
        Node::captured("iptables-1.37").put(CLUSTER, &render(&facts).unwrap()).state()
    }

    /// A node whose API server did not answer.
    pub fn silent_node() -> NodeState {
        let why = "the API server does not answer in time".to_owned();
        let kube_proxy = Some(ClusterAnswer::Unanswered(why));
        let facts = ClusterFacts { kube_proxy, ..ClusterFacts::default() };
        Node::captured("iptables-1.37").put(CLUSTER, &render(&facts).unwrap()).state()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{PREPARED, UNPREPARED, node_of};
    use super::*;

    fn preparation(captured: &str, change: impl FnOnce(&mut ProxyObjects)) -> Preparation {
        let state = node_of(captured, change);
        let Some(ClusterAnswer::Objects(objects)) = state.cluster.unwrap().kube_proxy else {
            panic!("none")
        };
        Preparation::of(&objects)
    }

    #[test]
    fn each_flaw_of_an_arrangement_is_named() {
        assert_eq!(preparation(PREPARED, |_| ()), Preparation::Holds(Mode::Nftables));
        type Change = fn(&mut ProxyObjects);
        let changes: [(Change, &str); 11] = [
            (|o| o.daemon_sets[0].passes_over = None, "does not pass over Nodes with the label"),
            (|o| o.daemon_sets[1].keeps_to = None, "kube-proxy-nftables does not keep to Nodes"),
            (|o| o.daemon_sets[0].is_on_delete = false, "kube-proxy replaces its pods"),
            (|o| o.daemon_sets[1].is_on_delete = false, "kube-proxy-nftables replaces its pods"),
            (|o| o.daemon_sets[1].image = None, "different images"),
            (|o| o.config_maps[0].mode = Some(Mode::Nftables), "says nftables mode, as for moved"),
            (|o| o.config_maps[1].mode = Some(Mode::Ipvs), "does not say nftables mode"),
            (|o| o.config_maps[1].mode = None, "does not say nftables mode"),
            (
                |o| o.differ_by = Some("clusterCIDR".into()),
                "`clusterCIDR` in ConfigMap kube-system",
            ),
            (
                |o| drop(o.daemon_sets.remove(1)),
                "there is no DaemonSet kube-system/kube-proxy-nftables",
            ),
            (
                |o| {
                    let why = "the API server answers 403".to_owned();
                    let object = "DaemonSet kube-system/kube-proxy-nftables".to_owned();
                    o.unread.push(crate::state::cluster_facts::UnreadObject { object, why });
                    o.daemon_sets.truncate(1);
                },
                "kube-proxy-nftables: the API server answers 403",
            ),
        ];
        for (change, flaw) in changes {
            let Preparation::Stale(Mode::Nftables, flaws) = preparation(PREPARED, change) else {
                panic!("{flaw}")
            };
            assert!(flaws.len() == 1 && flaws[0].contains(flaw), "{flaws:?}: {flaw}");
        }
    }

    #[test]
    fn what_shows_no_arrangement_is_none() {
        let Preparation::Missing(evidence) = preparation(UNPREPARED, |_| ()) else { panic!("one") };
        assert!(
            evidence[0].starts_with("DaemonSet kube-system/kube-proxy: the API server answers 403")
        );
        let plain = |o: &mut ProxyObjects| {
            o.daemon_sets.truncate(1);
            o.daemon_sets[0].passes_over = None;
        };
        let Preparation::Missing(evidence) = preparation(PREPARED, plain) else { panic!("one") };
        assert!(evidence[0].contains("does not pass over Nodes by the label"), "{evidence:?}");
        // A label without anything else is what is left of one.
        let labelled = |o: &mut ProxyObjects| o.label = Some("nftables".into());
        assert!(matches!(preparation(UNPREPARED, labelled), Preparation::Stale(Mode::Nftables, _)));
    }
}
