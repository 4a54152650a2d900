//! Lets another version of kube-proxy in that waits in a DaemonSet: the node deletes its own pod, and the
//! DaemonSet makes another one of its template.

use std::time::Duration;

use super::Time;
use super::awaited_pod::AwaitedPod;
use crate::api::ApiStatus;
use crate::api::write::{self, Persistence};
use crate::error::{Error, Kind, Result};
use crate::node::kubelet;
use crate::state::kubernetes::{ApiKind, ClusterPod, ObjectRef, PodUpdate};

/// Deletes the pod, and waits for one of the template in its place. Returns the PID of its kube-proxy. A pod
/// that somebody else has deleted meanwhile is as good.
///
/// # Errors
/// [`Kind::Blocked`] when the API server does not delete it; [`Kind::Contested`] when the new pod has other
/// images than the template had, as admission may give it the old ones; [`Kind::Command`] when no new
/// kube-proxy runs `within` that time.
pub fn let_in(update: &PodUpdate, within: Duration) -> Result<u32> {
    let time = Time::new(within);
    delete(update, &update.pod, &update.pod_uid, time.left())?;
    let (pid, pod) = awaited(update, &update.pod_uid).wait(&time)?;
    let images = pod.spec.images();
    if images != update.from {
        return Ok(pid);
    }
    let named = pod.metadata.reference(ApiKind::Pod);
    Err(Error::new(Kind::Contested, named.to_string(), "has the images of the old pod again")
        .hint("does a webhook or a policy set them? `kubectl describe pod` of it"))
}

/// Deletes the pod `present`, which is of the update, now that the template has the images of before again;
/// waits for one of these, and returns its PID.
///
/// # Errors
/// As [`let_in`].
pub fn undo_update(update: &PodUpdate, present: &ClusterPod, within: Duration) -> Result<u32> {
    let time = Time::new(within);
    let uid = &present.metadata.uid;
    delete(update, &present.metadata.name, uid, time.left())?;
    awaited(update, uid).wait(&time).map(|(pid, _)| pid)
}

fn delete(update: &PodUpdate, name: &str, uid: &str, within: Duration) -> Result<()> {
    let named = ObjectRef::new(ApiKind::Pod, update.namespace.clone(), name);
    let deleted = kubelet::request(&update.kubeconfig, within, |client| {
        write::delete(client, &named, uid, Persistence::Kept)
    });
    match deleted {
        // The pod of that uid is gone.
        Err(failure) if failure.is_not_found() || failure.status() == Some(ApiStatus::Conflict) => {
            Ok(())
        }
        deleted => deleted.map_err(|failure| kubelet::error(&named.to_string(), &failure)),
    }
}

fn awaited<'a>(update: &'a PodUpdate, replaces: &'a str) -> AwaitedPod<'a> {
    AwaitedPod {
        kubeconfig: &update.kubeconfig,
        node: &update.node,
        namespace: &update.namespace,
        daemon_set: &update.daemon_set,
        daemon_set_uid: &update.daemon_set_uid,
        replaces: Some(replaces),
    }
}
