//! Waits for kube-proxy's pod, which a DaemonSet is to make on this Node.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::{PAUSE, Time};
use crate::error::{Error, Kind, Result};
use crate::node::kube_proxy_controller::{pod_of, pods_of_node};
use crate::node::processes;
use crate::state::kube_proxy::controller::PROGRAM;
use crate::state::kubernetes::ClusterPod;

/// How long the pods of the Node are not listed again, while the old process ends and the new starts.
const BETWEEN_LISTS: Duration = Duration::from_millis(500);

/// Where more is to be seen of a pod that does not start.
pub(super) const LOGS: &str =
    "see /var/log/pods/kube-system_kube-proxy-*, and `kubectl describe pod` of it";

/// The pod that is waited for.
pub(super) struct AwaitedPod<'a> {
    pub(super) kubeconfig: &'a Path,
    /// The name of the Node.
    pub(super) node: &'a str,
    /// The DaemonSet that makes it.
    pub(super) namespace: &'a str,
    pub(super) daemon_set: &'a str,
    pub(super) daemon_set_uid: &'a str,
    /// The uid of the pod that it replaces, which does not count.
    pub(super) replaces: Option<&'a str>,
}

impl AwaitedPod<'_> {
    /// Waits until one kube-proxy runs here, and this is in the pod. Returns its PID and the pod. Whether
    /// the pod is ready says no more.
    ///
    /// # Errors
    /// [`Kind::Command`] when none does in time, with what the API server has of it.
    pub(super) fn wait(&self, time: &Time) -> Result<(u32, ClusterPod)> {
        let mut pods: Vec<ClusterPod> = Vec::new();
        let mut listed: Option<Instant> = None;
        let mut away: Option<Error> = None;
        loop {
            let is_over = time.left().is_zero();
            if listed.is_none_or(|at| at.elapsed() >= BETWEEN_LISTS) {
                match pods_of_node(self.kubeconfig, self.node, Duration::ZERO) {
                    Ok(now) => (pods, away) = (now, None),
                    Err(e) => away = Some(e),
                }
                listed = Some(Instant::now());
            }
            if let [pid] = processes::pids(PROGRAM)?[..] {
                let own = pod_of(pid, &pods).filter(|pod| self.is_made(pod));
                let own = own.filter(|pod| self.replaces != Some(pod.metadata.uid.as_str()));
                if let Some(pod) = own {
                    return Ok((pid, pod.clone()));
                }
            }
            if is_over {
                let what = away.map_or_else(|| self.what_is_there(&pods), |e| e.to_string());
                let object = format!("DaemonSet {}/{}", self.namespace, self.daemon_set);
                let cause = format!("no kube-proxy of it runs {:?} later: {what}", time.within);
                return Err(Error::new(Kind::Command, object, cause).hint(LOGS));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Whether the DaemonSet has made the pod.
    fn is_made(&self, pod: &ClusterPod) -> bool {
        pod.metadata.controller().is_some_and(|owner| owner.uid == self.daemon_set_uid)
    }

    /// What the API server has of the DaemonSet's pods. A node sees no pod that no scheduler has bound to
    /// it.
    fn what_is_there(&self, pods: &[ClusterPod]) -> String {
        let all = pods.iter().filter(|pod| self.is_made(pod));
        let all: Vec<String> =
            all.map(|pod| format!("pod {} is {}", pod.metadata.name, pod.progress())).collect();
        match all.is_empty() {
            true => {
                format!("{} has no pod on Node {}: is it scheduled?", self.daemon_set, self.node)
            }
            false => all.join(", "),
        }
    }
}
