//! Finds another version of kube-proxy that waits in the template of its DaemonSet, and that this node may
//! let in by deleting its own pod.

use std::fs;
use std::path::Path;

use super::arrangement::ArrangementReader;
use super::daemonset::{RunningPod, contested};
use super::kind::Origin;
use crate::error::{Error, Kind, Result};
use crate::state::kube_proxy::Mode;
use crate::state::kubernetes::{ApiKind, DaemonSet, MODE_LABEL, PodUpdate, mode_of_terms};
use crate::state::tools::Process;

/// The update that waits for the pod of the kube-proxy `process`, which runs in the mode `running`.
///
/// # Errors
/// [`Kind::Blocked`] or [`Kind::Contested`], naming why this node has nothing to let in: the process is no
/// pod of a DaemonSet, the DaemonSet is another than the one that made the pod, its strategy is not
/// OnDelete, its image is the pod's, or its configuration has another mode. When the API server cannot be
/// asked.
pub fn find_update(process: &Process, running: Mode) -> Result<PodUpdate> {
    let path = format!("/proc/{}/cgroup", process.pid);
    let cgroup = fs::read_to_string(&path).map_err(|e| Error::io(Path::new(&path), &e))?;
    let origin = Origin::of(process, &cgroup, Path::new("/"));
    let no_pod = |cause: &str| {
        Error::new(Kind::Blocked, &origin.object, cause).hint(
            "an upgrade of any other kube-proxy has `ask` or `run` in the place of `controller` in \
             its playbook",
        )
    };
    let Some(config) = &origin.config else {
        return Err(no_pod("has no configuration file, as kube-proxy of a DaemonSet has"));
    };
    let Some(found) = RunningPod::of(&origin)? else {
        return Err(no_pod("is in no pod that a DaemonSet has made, as the API server knows it"));
    };
    let reader = found.reader(config);
    let set: DaemonSet = reader.object(&reader.reference(&found.owner.name))?;
    let named = reader.reference(&set.metadata.name);
    if set.metadata.uid != found.owner.uid {
        let cause = format!("is another than the one that made pod {}", found.pod.metadata.name);
        return Err(contested(&named, cause));
    }
    selects(&reader, &set, &found)?;
    if !set.is_on_delete() {
        let cause = format!(
            "has the update strategy {}, so its controller replaces the pods itself",
            set.strategy()
        );
        return Err(Error::new(Kind::Blocked, named.to_string(), cause).hint(
            "an administrator has it wait for the nodes: `proxyshift cluster prepare --to MODE`",
        ));
    }
    let (from, to) = (found.pod.spec.images(), set.pod_spec().images());
    if from == to {
        let images: Vec<&str> = to.values().map(String::as_str).collect();
        let cause = format!(
            "has the image {}, which pod {} runs: there is nothing to do",
            images.join(", "),
            found.pod.metadata.name
        );
        return Err(Error::new(Kind::Blocked, named.to_string(), cause)
            .hint("an administrator changes the image first, as `kubectl set image` does"));
    }
    let (of_mode, _) = reader.of_mode(&set, None)?;
    if of_mode.mode != running {
        let cause = format!(
            "has {} mode, and kube-proxy runs in {running} mode: its next start changes the mode too",
            of_mode.mode
        );
        return Err(Error::new(Kind::Blocked, of_mode.config_map.to_string(), cause)
            .hint("an administrator puts the mode right there first"));
    }
    Ok(PodUpdate {
        namespace: found.pod.metadata.namespace.clone(),
        daemon_set: set.metadata.name,
        daemon_set_uid: set.metadata.uid,
        config_map: of_mode.config_map,
        pod: found.pod.metadata.name.clone(),
        pod_uid: found.pod.metadata.uid.clone(),
        from,
        to,
        kubeconfig: found.kubeconfig.clone(),
        node: found.node.clone(),
    })
}

/// Succeeds if the DaemonSet still has a pod on this Node by its label: it would make none anew otherwise.
fn selects(reader: &ArrangementReader<'_>, set: &DaemonSet, found: &RunningPod) -> Result<()> {
    let node = reader.node(&found.node)?;
    let label = node.metadata.labels.get(MODE_LABEL).map(String::as_str);
    let spec = &set.spec.template["spec"];
    let is_left_out = label.is_some() && mode_of_terms(spec, "NotIn") == label;
    let is_not_wanted = mode_of_terms(spec, "In").is_some_and(|mode| label != Some(mode));
    if !is_left_out && !is_not_wanted {
        return Ok(());
    }
    let cause = format!(
        "makes no pod where the Node has the label {MODE_LABEL}={}",
        label.unwrap_or("(none)")
    );
    Err(contested(&reader.reference(&set.metadata.name), cause))
}

impl PodUpdate {
    /// The DaemonSet as it is now.
    ///
    /// # Errors
    /// [`Kind::Contested`] for another DaemonSet of that name; and when it cannot be read.
    pub fn read_daemon_set(&self) -> Result<DaemonSet> {
        let reader = ArrangementReader {
            kubeconfig: &self.kubeconfig,
            namespace: &self.namespace,
            key: self.config_map.key.clone(),
        };
        let named = reader.reference(&self.daemon_set);
        let set: DaemonSet = reader.object(&named)?;
        if set.metadata.uid == self.daemon_set_uid {
            return Ok(set);
        }
        Err(contested(&named, "is another than before".into()))
    }

    /// Succeeds if the DaemonSet is still the one with the update.
    ///
    /// # Errors
    /// [`Kind::Contested`] if somebody has changed its images or its strategy; and when it cannot be read.
    pub fn verify(&self) -> Result<()> {
        let set = self.read_daemon_set()?;
        if set.is_on_delete() && set.pod_spec().images() == self.to {
            return Ok(());
        }
        let cause = "has been changed since this run was planned".to_owned();
        Err(contested(&set.metadata.reference(ApiKind::DaemonSet), cause))
    }
}
