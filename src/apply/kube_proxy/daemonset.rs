//! Moves kube-proxy between the pods of two DaemonSets, by the label of the Node.
//!
//! The controller of the one DaemonSet deletes its pod, and that of the other makes one: the old process
//! ends 0.1 to 0.2 s later, and the new one starts 0.9 to 1.5 s after it (Kubernetes 1.37.2).

use std::thread;
use std::time::Duration;

use serde_json::json;

use super::awaited_pod::{AwaitedPod, LOGS};
use super::{Operate, PAUSE, Time};
use crate::api::ApiStatus;
use crate::api::write::{self, Persistence};
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::node::kube_proxy_controller::{contested, pods_of_node};
use crate::node::kubelet;
use crate::runtime::NAME;
use crate::state::kube_proxy::controller::{DaemonSetPair, ModeDaemonSet};
use crate::state::kube_proxy::{ConfigSource, KubeProxyConfig};
use crate::state::kubernetes::{
    AnyObject, ApiKind, ClusterNode, JsonPatch, MODE_LABEL, ObjectRef, RUN_ANNOTATION, RunNote,
};

/// The namespace of Events about Nodes, which have none of their own.
const EVENTS: &str = "default";

/// How long the label may take to be set for a kube-proxy that is not waited for.
const STOPPED: Duration = Duration::from_secs(120);

impl Operate for DaemonSetPair {
    /// Deletes the Node's pod. Its DaemonSet makes another one.
    fn request_stop(&self, within: Duration) -> Result<()> {
        let pods = pods_of_node(&self.kubeconfig, &self.node, within)?;
        for pod in self.own(&pods) {
            let named = pod.metadata.reference(ApiKind::Pod);
            kubelet::request(&self.kubeconfig, within, |client| {
                write::delete(client, &named, &pod.metadata.uid, Persistence::Kept)
            })
            .map_err(|failure| kubelet::error(&named.to_string(), &failure))?;
        }
        Ok(())
    }

    /// Does nothing: the DaemonSets' controller starts a pod wherever there is none.
    fn request_start(&self, _within: Duration) -> Result<()> {
        Ok(())
    }

    fn log_and_hint(&self) -> (String, String) {
        (String::new(), LOGS.to_owned())
    }

    /// Sets the label of the Node so that the DaemonSet with a configuration of the mode of `to` has its
    /// pod here, and waits for the pod's process. The texts are not written: the ConfigMaps have them.
    fn configure(
        &self,
        _source: &ConfigSource,
        from: &str,
        to: &str,
        within: Duration,
    ) -> Result<u32> {
        let time = Time::new(within);
        let target = self.target(to)?;
        self.select(target, from, to, &time)?;
        let awaited = AwaitedPod {
            kubeconfig: &self.kubeconfig,
            node: &self.node,
            namespace: &self.namespace,
            daemon_set: &target.name,
            daemon_set_uid: &target.uid,
            replaces: None,
        };
        awaited.wait(&time).map(|(pid, _)| pid)
    }

    fn configure_stopped(&self, _source: &ConfigSource, from: &str, to: &str) -> Result<()> {
        self.select(self.target(to)?, from, to, &Time::new(STOPPED))
    }

    fn can_configure(&self, _source: &ConfigSource, from: &str, to: &str) -> Result<()> {
        self.target(to)?;
        self.verify(from, to)
    }

    /// The annotation of the Node.
    fn announce(&self, note: Option<&RunNote>) -> Result<()> {
        let annotation = ["metadata", "annotations", RUN_ANNOTATION];
        let node = self.read_node(Duration::ZERO)?;
        let patch = JsonPatch::of_uid(&self.node_uid);
        let patch = match note {
            Some(note) => patch.add(&annotation, note.value()),
            None if node.metadata.annotations.contains_key(RUN_ANNOTATION) => {
                patch.remove(&annotation)
            }
            None => return Ok(()),
        };
        let named = ObjectRef::of_cluster(ApiKind::Node, &self.node);
        kubelet::request(&self.kubeconfig, Duration::ZERO, |client| {
            write::patch::<AnyObject>(client, &named, &patch, Persistence::Kept).map(drop)
        })
        .map_err(|failure| kubelet::error(&named.to_string(), &failure))
    }

    /// An Event about the Node. The kubelet's own have the Node's name for its uid too.
    fn report_event(&self, sentence: &str) -> Result<()> {
        let (name, now) = (format!("{}.{:016x}", self.node, clock::random()), clock::now());
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": EVENTS},
            "involvedObject": {"kind": "Node", "name": self.node, "uid": self.node},
            "reason": "KubeProxyMode", "message": sentence, "type": "Normal",
            "source": {"component": NAME, "host": self.node},
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        });
        let named = ObjectRef::new(ApiKind::Event, EVENTS, name);
        kubelet::request(&self.kubeconfig, Duration::ZERO, |client| {
            write::create::<AnyObject>(client, &named, &event, Persistence::Kept).map(drop)
        })
        .map_err(|failure| kubelet::error("an Event", &failure))
    }

    /// Nothing is kept of an old configuration.
    fn forget(&self, _source: &ConfigSource) -> Result<()> {
        Ok(())
    }
}

impl DaemonSetPair {
    /// The DaemonSet that runs kube-proxy with a configuration of the mode of `text`.
    fn target(&self, text: &str) -> Result<&ModeDaemonSet> {
        let mode = KubeProxyConfig::parse("kube-proxy's configuration", text)?.mode();
        self.of_mode(mode).ok_or_else(|| {
            let cause =
                format!("run kube-proxy in {} or {} mode here", self.current.mode, self.other.mode);
            Error::new(Kind::Blocked, self.to_string(), cause)
                .hint(format!("`proxyshift cluster prepare --to {mode}`"))
        })
    }

    /// Sets the label so that it selects `target`. What others have changed meanwhile is read again.
    fn select(&self, target: &ModeDaemonSet, from: &str, to: &str, time: &Time) -> Result<()> {
        let named = ObjectRef::of_cluster(ApiKind::Node, &self.node);
        loop {
            let node = self.read_node(time.left())?;
            let label = node.metadata.labels.get(MODE_LABEL).map(String::as_str);
            if label == target.label.as_deref() {
                return Ok(());
            }
            if self.of_label(label).is_none() {
                let cause =
                    format!("somebody has set its label {MODE_LABEL} to {label:?} meanwhile");
                return Err(contested(&named, cause));
            }
            // The way back asks nothing: it is the only one.
            if *target == self.other {
                self.verify(from, to)?;
            }
            let patch = self.patch(label, target.label.as_deref());
            let patched = kubelet::request(&self.kubeconfig, time.left(), |client| {
                write::patch::<ClusterNode>(client, &named, &patch, Persistence::Kept)
            });
            let Err(failure) = patched else { return Ok(()) };
            let is_test =
                matches!(failure.status(), Some(ApiStatus::Conflict | ApiStatus::Invalid));
            if !is_test || time.left().is_zero() {
                return Err(kubelet::error(&named.to_string(), &failure));
            }
            thread::sleep(PAUSE);
        }
    }

    /// The patch that changes the label `from` one value `to` another.
    fn patch(&self, from: Option<&str>, to: Option<&str>) -> JsonPatch {
        let label = ["metadata", "labels", MODE_LABEL];
        let patch = JsonPatch::of_uid(&self.node_uid).test(&label, from);
        match to {
            Some(value) => patch.add(&label, value),
            None => patch.remove(&label),
        }
    }
}
