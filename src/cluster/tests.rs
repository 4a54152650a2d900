//! Tests of what is decided for clusters as kubeadm makes them. `tests/kubeadm.json` has the DaemonSet and
//! the ConfigMap of kubeadm 1.37.2, with what the API server adds.

use serde_json::{Value, json};

use crate::cluster::intent::{Intent, WriteAction, decide};
use crate::cluster::overview::{DriftCode, overview};
use crate::cluster::refusal::ClusterRefusal;
use crate::cluster::state::ClusterState;
use crate::cluster::{ArrangementFlaw, ConfigLocation, verify};
use crate::state::kube_proxy::Mode;
use crate::state::kubernetes::{ApiKind, ConfigMapObject, DaemonSet};

const TO: Mode = Mode::Nftables;

/// The DaemonSet and the ConfigMap.
fn kubeadm() -> (Value, Value) {
    let mut both: Vec<Value> =
        serde_json::from_str(include_str!("tests/kubeadm.json")).expect("JSON");
    let config_map = both.pop().expect("two");
    (both.pop().expect("two"), config_map)
}

fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).expect("an object")
}

/// A cluster with one node of each kind of machine, and a pod on each that has Linux.
fn cluster_of(daemon_set: &Value) -> ClusterState {
    let config_map: ConfigMapObject = parsed(&kubeadm().1);
    let node = |name: &str, os: &str| json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": os}}});
    let mut state = ClusterState {
        original: parsed(daemon_set),
        nodes: [node("amd", "linux"), node("arm", "linux"), node("win", "windows")]
            .iter()
            .map(parsed)
            .collect(),
        kubeadm_version: Some("v1.37.2".into()),
        ..ClusterState::default()
    };
    state.config_maps.insert(config_map.metadata.name.clone(), config_map);
    for node in ["amd", "arm"] {
        add_pod(&mut state, node, &parsed(daemon_set));
    }
    state
}

/// Adds a pod of the DaemonSet, as it is made of its template.
fn add_pod(state: &mut ClusterState, node: &str, of: &DaemonSet) {
    let mut spec = of.spec.template["spec"].clone();
    spec["nodeName"] = json!(node);
    let owner = json!({"kind": "DaemonSet", "name": of.metadata.name, "uid": of.metadata.uid,
        "controller": true});
    let name = format!("{}-{node}", of.metadata.name);
    let pod = json!({"metadata": {"name": name, "uid": name, "ownerReferences": [owner]},
        "spec": spec, "status": {"phase": "Running"}});
    state.pods.push(parsed(&pod));
}

/// The cluster after all writes of the intent, as an API server makes it.
fn written(mut state: ClusterState, intent: &Intent) -> ClusterState {
    for write in &intent.writes {
        match &write.action {
            WriteAction::Create(object) => {
                let mut object = object.clone();
                object["metadata"]["uid"] = json!(write.object.to_string());
                match write.object.kind {
                    ApiKind::ConfigMap => {
                        state.config_maps.insert(write.object.name.clone(), parsed(&object));
                    }
                    ApiKind::DaemonSet => state.ours.push(parsed(&object)),
                    _ => {
                        state.others.insert(write.object.clone(), parsed(&object));
                    }
                }
            }
            WriteAction::Patch { changes, .. } => {
                let is_original = write.object == intent.original;
                let target = if is_original { &mut state.original } else { &mut state.ours[0] };
                for part in changes {
                    match &part.path[..] {
                        ["spec", "updateStrategy"] => {
                            target.spec.update_strategy = part.after.clone();
                        }
                        ["spec", "template"] => target.spec.template = part.after.clone(),
                        ["spec", "template", "spec", "affinity"] => {
                            target.spec.template["spec"]["affinity"] = part.after.clone();
                        }
                        ["metadata", "annotations", key] => {
                            let value = part.after.as_str().expect("text").to_owned();
                            target.metadata.annotations.insert((*key).to_owned(), value);
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
    }
    state
}

fn decided(state: &ClusterState) -> Intent {
    decide(state, TO, true).expect("nothing stands in the way")
}

fn codes(state: &ClusterState) -> Vec<&'static str> {
    let refusals = decide(state, TO, true).expect_err("refused");
    refusals.iter().map(ClusterRefusal::code).collect()
}

#[test]
fn a_cluster_of_kubeadm_is_prepared_once() {
    let state = cluster_of(&kubeadm().0);
    let intent = decided(&state);
    let written_ones: Vec<String> =
        intent.writes.iter().map(|write| write.object.to_string()).collect();
    assert_eq!(written_ones[0], "ConfigMap kube-system/proxyshift-kube-proxy");
    assert_eq!(written_ones[1], "DaemonSet kube-system/kube-proxy");
    assert!(written_ones[2].starts_with("ConfigMap kube-system/kube-proxy-nftables-"));
    assert_eq!(written_ones[3], "DaemonSet kube-system/kube-proxy-nftables");
    assert_eq!(written_ones.len(), 8, "{written_ones:?}");
    let after = written(state, &intent);
    assert_eq!(verify(&after.original, &after.ours[0], TO), []);
    assert_eq!(decided(&after).writes, []);
    // It goes on after any number of writes.
    for count in 0..intent.writes.len() {
        let begun = Intent { writes: intent.writes[..count].to_vec(), ..intent.clone() };
        let partly = written(cluster_of(&kubeadm().0), &begun);
        let rest = decided(&partly);
        assert_eq!(rest.writes.len(), 8 - count, "{count}");
        let whole = written(partly, &rest);
        assert_eq!(whole.original.spec, after.original.spec, "{count}");
        assert_eq!(whole.ours[0].spec, after.ours[0].spec, "{count}");
        assert_eq!(whole.config_maps.len(), after.config_maps.len(), "{count}");
    }
}

#[test]
fn ours_selects_other_pods_and_has_its_own_configuration() {
    let state = cluster_of(&kubeadm().0);
    let after = written(state.clone(), &decided(&state));
    let (original, ours) = (&after.original, &after.ours[0]);
    assert_eq!(ours.spec.selector["matchLabels"]["k8s-app"], "kube-proxy-nftables");
    assert_eq!(ours.spec.template["metadata"]["labels"]["k8s-app"], "kube-proxy-nftables");
    assert_eq!(original.spec.selector["matchLabels"]["k8s-app"], "kube-proxy");
    let location = ConfigLocation::of(ours).expect("a ConfigMap");
    assert_eq!(location.key, "config.conf");
    let config_map = &after.config_maps[&location.config_map];
    assert_eq!(config_map.immutable, Some(true));
    assert_eq!(location.config(config_map).expect("a configuration").mode(), TO);
    let other = &after.config_maps["kube-proxy"];
    assert_eq!(other.data["kubeconfig.conf"], config_map.data["kubeconfig.conf"]);
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (before, now) = (lines(&other.data["config.conf"]), lines(&config_map.data["config.conf"]));
    let changed: Vec<&String> = now.iter().filter(|line| !before.contains(line)).collect();
    assert_eq!(changed, ["mode: nftables"]);
}

#[test]
fn what_stands_in_the_way_is_named() {
    let with = |change: &dyn Fn(&mut ClusterState)| {
        let mut state = cluster_of(&kubeadm().0);
        change(&mut state);
        codes(&state)
    };
    let label = |state: &mut ClusterState, node: usize, mode: &str| {
        let labels = &mut state.nodes[node].metadata.labels;
        labels.insert("proxyshift.dev/mode".into(), mode.into());
    };
    assert_eq!(with(&|state| label(state, 1, "nftables")), ["labelled-nodes"]);
    assert_eq!(with(&|state| label(state, 0, "ipvs")), ["labelled-nodes"]);
    let mut windows = cluster_of(&kubeadm().0);
    label(&mut windows, 2, "nftables");
    assert_eq!(decided(&windows).writes.len(), 8, "a Windows node does not count");
    assert_eq!(
        with(&|s| {
            s.original.metadata.labels.insert("meta.helm.sh/release-name".into(), "x".into());
        }),
        ["managed"]
    );
    assert_eq!(with(&|s| s.kubeadm_version = Some("v1.38.0".into())), ["half-upgraded"]);
    assert_eq!(
        with(&|s| s.pods[0].spec.containers[0].image = "kube-proxy:v1.36.0".into()),
        ["versions-differ"]
    );
    assert_eq!(with(&|s| s.original.metadata.generation = 99), ["rolling-update"]);
    assert_eq!(
        with(&|s| {
            s.original.status.desired_number_scheduled = 5;
            s.original.status.updated_number_scheduled = 4;
        }),
        ["rolling-update"]
    );
    assert_eq!(with(&|s| s.config_maps.clear()), ["no-config-file"]);
    assert_eq!(
        with(&|s| {
            s.original.spec.template["spec"]["containers"][0]["command"] =
                json!(["kube-proxy", "--proxy-mode=iptables"]);
        }),
        ["no-config-file"]
    );
    assert_eq!(
        with(&|s| {
            s.original.spec.selector["matchExpressions"] = json!([{"key": "a"}]);
        }),
        ["unusual-selector"]
    );
    assert_eq!(
        decide(&cluster_of(&kubeadm().0), Mode::Iptables, true).expect_err("the same"),
        [ClusterRefusal::SameMode(Mode::Iptables)]
    );
    let state = cluster_of(&kubeadm().0);
    let prepared = written(state.clone(), &decided(&state));
    assert_eq!(
        decide(&prepared, Mode::Ipvs, true).expect_err("another"),
        [ClusterRefusal::OtherMode(TO)]
    );
    // What manages it does not count for who only gets manifests.
    let mut managed = state;
    managed.original.metadata.labels.insert("meta.helm.sh/release-name".into(), "x".into());
    assert!(decide(&managed, TO, false).is_ok());
}

#[test]
fn what_kubeadm_has_overwritten_is_prepared_again_though_nodes_have_moved() {
    let state = cluster_of(&kubeadm().0);
    let mut after = written(state.clone(), &decided(&state));
    let ours = after.ours[0].clone();
    after.nodes[0].metadata.labels.insert("proxyshift.dev/mode".into(), "nftables".into());
    after.pods.retain(|pod| pod.spec.node_name != "amd");
    add_pod(&mut after, "amd", &ours);
    let moved = overview(&after);
    assert_eq!((moved.drift.as_slice(), moved.prepared.as_slice()), (&[][..], &[TO][..]));
    assert_eq!(moved.nodes.len(), 2);
    assert_eq!(moved.nodes[0].pods[0].mode, Some(TO));
    assert_eq!(moved.nodes[1].pods[0].mode, Some(Mode::Iptables));

    after.original = state.original.clone();
    let original = after.original.clone();
    add_pod(&mut after, "amd", &original);
    let flaws = verify(&after.original, &ours, TO);
    assert_eq!(flaws, [ArrangementFlaw::OriginalNotExcluded, ArrangementFlaw::OriginalRolls]);
    let drift: Vec<DriftCode> = overview(&after).drift.iter().map(|drift| drift.code).collect();
    assert_eq!(drift, [DriftCode::Arrangement, DriftCode::Arrangement, DriftCode::TwoPods]);
    let again = decided(&after);
    assert_eq!(again.writes.len(), 1);
    assert_eq!(again.writes[0].object, again.original);
    // Another version: ours is made anew of it, too.
    after.original.spec.template["spec"]["containers"][0]["image"] = json!("kube-proxy:v1.38.0");
    after.kubeadm_version = Some("v1.38.0".into());
    after.pods.retain(|pod| pod.metadata.controller().unwrap().name != "kube-proxy");
    let newer = decided(&after);
    let objects: Vec<String> = newer.writes.iter().map(|w| w.object.to_string()).collect();
    assert_eq!(
        objects,
        ["DaemonSet kube-system/kube-proxy", "DaemonSet kube-system/kube-proxy-nftables"]
    );
    assert_eq!(decided(&written(after, &newer)).writes, []);
}

#[test]
fn drift_is_named_on_its_node() {
    let state = cluster_of(&kubeadm().0);
    let prepared = written(state.clone(), &decided(&state));
    let with = |change: &dyn Fn(&mut ClusterState)| {
        let mut state = prepared.clone();
        change(&mut state);
        let drift = overview(&state).drift;
        drift.into_iter().map(|drift| (drift.code, drift.object)).collect::<Vec<_>>()
    };
    let label = |state: &mut ClusterState, mode: &str| {
        let labels = &mut state.nodes[0].metadata.labels;
        labels.insert("proxyshift.dev/mode".into(), mode.into());
    };
    let on_amd = |code| vec![(code, "amd".to_owned())];
    assert_eq!(with(&|s| label(s, "ipvs")), on_amd(DriftCode::LabelWithoutDaemonset));
    assert_eq!(with(&|s| label(s, "nftables")), on_amd(DriftCode::OtherThanLabel));
    // Registered anew without its label, while the pod of ours is not gone yet.
    assert_eq!(
        with(&|s| {
            let ours = s.ours[0].clone();
            s.pods.retain(|pod| pod.spec.node_name != "amd");
            add_pod(s, "amd", &ours);
        }),
        on_amd(DriftCode::OtherThanLabel)
    );
    assert_eq!(
        with(&|s| {
            let annotations = &mut s.nodes[0].metadata.annotations;
            annotations.insert("proxyshift.dev/run".into(), "x".into());
        }),
        on_amd(DriftCode::UnknownRun)
    );
    // Between the two, a node has none.
    assert_eq!(
        with(&|s| {
            label(s, "nftables");
            s.pods.retain(|pod| pod.spec.node_name != "amd");
        }),
        []
    );
}
