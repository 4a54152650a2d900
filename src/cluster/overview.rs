//! The nodes of a cluster, each with its kube-proxy, and what is not as it should be.

use serde::Serialize;

use crate::cluster::arrangement::{ArrangementFlaw, verify};
use crate::cluster::config::{ConfigLocation, container};
use crate::cluster::state::ClusterState;
use crate::state::kube_proxy::Mode;
use crate::state::kubernetes::{
    ApiKind, ClusterNode, ClusterPod, DaemonSet, MODE_LABEL, RUN_ANNOTATION, RunNote,
};

/// A cluster's nodes, and its arrangement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// The original DaemonSet: `kube-system/kube-proxy`.
    pub daemonset: String,
    /// The mode of nodes that have not moved; none if its configuration is not understood.
    pub mode: Option<Mode>,
    /// The modes that nodes can move to, by the DaemonSets that are there.
    pub prepared: Vec<Mode>,
    /// Every Linux node that runs kube-proxy, or should.
    pub nodes: Vec<NodeRow>,
    /// What is not as it should be.
    pub drift: Vec<Drift>,
}

/// A node, and its kube-proxy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeRow {
    /// Its name.
    pub node: String,
    /// The mode that its label says; none without the label.
    pub label: Option<String>,
    /// Its pods of kube-proxy.
    pub pods: Vec<PodRow>,
    /// Its pending run.
    pub run: Option<RunNote>,
}

/// A pod of kube-proxy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PodRow {
    /// Its name.
    pub pod: String,
    /// The DaemonSet that made it.
    pub daemonset: String,
    /// The mode of the DaemonSet's configuration; none if that is not known.
    pub mode: Option<Mode>,
    /// The tag of its image, which usually is kube-proxy's version.
    pub version: Option<String>,
    /// Whether its process has started.
    pub ready: bool,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drift {
    /// What: a code for programs.
    pub code: DriftCode,
    /// The node, or the DaemonSet.
    pub object: String,
    /// A sentence.
    pub text: String,
    /// The next step.
    pub remedy: String,
}

/// The ways in which an arrangement is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftCode {
    /// Two pods of kube-proxy are alive on one node.
    TwoPods,
    /// The arrangement does not hold, as after `kubeadm upgrade`.
    Arrangement,
    /// A node has a label, and there is no DaemonSet for it.
    LabelWithoutDaemonset,
    /// A node's pod is not of the DaemonSet that its label names: it was registered anew without it.
    OtherThanLabel,
    /// A node's annotation of its run is not understood.
    UnknownRun,
}

impl Overview {
    /// Whether a node has a pending run.
    pub fn has_pending(&self) -> bool {
        self.nodes.iter().any(|node| node.run.is_some())
    }
}

/// The nodes of a cluster.
pub fn overview(state: &ClusterState) -> Overview {
    let of_mode = |ours: &DaemonSet| ours.metadata.labels.get(MODE_LABEL)?.parse::<Mode>().ok();
    let prepared: Vec<(Mode, &DaemonSet)> =
        state.ours.iter().filter_map(|ours| Some((of_mode(ours)?, ours))).collect();
    let all: Vec<&DaemonSet> = std::iter::once(&state.original).chain(&state.ours).collect();
    let mut nodes = Vec::new();
    let mut drift = Vec::new();
    for (mode, ours) in &prepared {
        let flaws = verify(&state.original, ours, *mode);
        drift.extend(flaws.into_iter().map(|flaw| arrangement_drift(state, flaw, *mode)));
    }
    for node in state.linux_nodes() {
        let name = &node.metadata.name;
        let pods: Vec<(&DaemonSet, &ClusterPod)> = all
            .iter()
            .flat_map(|daemon_set| {
                state.pods_on(name, daemon_set).map(move |pod| (*daemon_set, pod))
            })
            .collect();
        let label = node.metadata.labels.get(MODE_LABEL).cloned();
        let note = node.metadata.annotations.get(RUN_ANNOTATION);
        if pods.is_empty() && label.is_none() && note.is_none() {
            continue;
        }
        let run = note.and_then(|text| RunNote::parse(text));
        if note.is_some() && run.is_none() {
            drift.push(Drift {
                code: DriftCode::UnknownRun,
                object: name.clone(),
                text: "its annotation proxyshift.dev/run is not understood".into(),
                remedy: "on the node: proxyshift status".into(),
            });
        }
        drift.extend(node_drift(node, label.as_deref(), &pods, &prepared));
        let pods =
            pods.into_iter().map(|(daemon_set, pod)| pod_row(state, daemon_set, pod)).collect();
        nodes.push(NodeRow { node: name.clone(), label, pods, run });
    }
    let metadata = &state.original.metadata;
    Overview {
        daemonset: format!("{}/{}", metadata.namespace, metadata.name),
        mode: mode_of(state, &state.original),
        prepared: prepared.iter().map(|(mode, _)| *mode).collect(),
        nodes,
        drift,
    }
}

/// The mode of a DaemonSet's configuration.
fn mode_of(state: &ClusterState, daemon_set: &DaemonSet) -> Option<Mode> {
    let location = ConfigLocation::of(daemon_set).ok()?;
    let config_map = state.config_maps.get(&location.config_map)?;
    location.config(config_map).ok().map(|config| config.mode())
}

fn pod_row(state: &ClusterState, daemon_set: &DaemonSet, pod: &ClusterPod) -> PodRow {
    let named = container(daemon_set).map(|container| container.name);
    let its = pod.spec.containers.iter().find(|c| Some(&c.name) == named.as_ref());
    let tag = its.and_then(|c| c.image.rsplit_once(':')).map(|(_, tag)| tag);
    PodRow {
        pod: pod.metadata.name.clone(),
        daemonset: daemon_set.metadata.name.clone(),
        mode: mode_of(state, daemon_set),
        version: tag.filter(|tag| !tag.contains('/')).map(str::to_owned),
        ready: pod.is_ready(),
    }
}

fn arrangement_drift(state: &ClusterState, flaw: ArrangementFlaw, mode: Mode) -> Drift {
    let writers = state.original.metadata.managed_fields.iter();
    let is_kubeadm = writers.clone().any(|fields| fields.manager == "kubeadm");
    let since = if is_kubeadm && flaw == ArrangementFlaw::OriginalNotExcluded {
        ", as after `kubeadm upgrade` or its addon phase"
    } else {
        ""
    };
    Drift {
        code: DriftCode::Arrangement,
        object: state.original.metadata.reference(ApiKind::DaemonSet).to_string(),
        text: format!("{}{since}", flaw.sentence()),
        remedy: format!("proxyshift cluster prepare --to {mode}"),
    }
}

fn node_drift(
    node: &ClusterNode,
    label: Option<&str>,
    pods: &[(&DaemonSet, &ClusterPod)],
    prepared: &[(Mode, &DaemonSet)],
) -> Vec<Drift> {
    let name = &node.metadata.name;
    let found =
        |code, text: String, remedy: String| Drift { code, object: name.clone(), text, remedy };
    let mut drift = Vec::new();
    let meant = label.and_then(|label| prepared.iter().find(|(mode, _)| mode.name() == label));
    if let (Some(label), None) = (label, meant) {
        drift.push(found(
            DriftCode::LabelWithoutDaemonset,
            format!("its label says {label}, and no DaemonSet is for that"),
            format!("kubectl label node {name} {MODE_LABEL}-"),
        ));
    }
    if pods.len() > 1 {
        let names: Vec<&str> = pods.iter().map(|(_, pod)| pod.metadata.name.as_str()).collect();
        drift.push(found(
            DriftCode::TwoPods,
            format!("two kube-proxies are alive on it: {}", names.join(", ")),
            "the remedy of the DaemonSet, then on the node: proxyshift check".into(),
        ));
    }
    // While the two change places, a node has the old pod, the new one or none for a second.
    let wanted_uid = meant.map(|(_, ours)| &ours.metadata.uid);
    let is_other = match pods {
        [(daemon_set, _)] => {
            let is_ours = prepared.iter().any(|(_, o)| o.metadata.uid == daemon_set.metadata.uid);
            match wanted_uid {
                Some(uid) => daemon_set.metadata.uid != *uid,
                None => is_ours,
            }
        }
        _ => false,
    };
    if is_other {
        drift.push(found(
            DriftCode::OtherThanLabel,
            "its kube-proxy is not the one that its label names".into(),
            format!(
                "kubectl label node {name} {MODE_LABEL}=MODE, or on the node: proxyshift status"
            ),
        ));
    }
    drift
}
