//! Detects pods whose manifest is not on this node, and refuses them before anything is changed.

use super::kind::Origin;
use super::static_pod;
use crate::error::{Error, Kind, Result};
use crate::state::kube_proxy::Controller;

/// The manifest of kube-proxy that rke2 rewrites at each start of rke2.
pub(super) const RKE2: &str = "var/lib/rancher/rke2/agent/pod-manifests/kube-proxy.yaml";

pub(super) fn refuse(origin: &Origin<'_>) -> Result<Option<Controller>> {
    if !origin.is_pod() {
        return Ok(None);
    }
    if origin.root.join(RKE2).exists() {
        let cause = format!("rke2 writes its manifest /{RKE2} anew at each start");
        return Err(Error::new(Kind::Contested, &origin.object, cause).hint(
            "set kube-proxy-arg in /etc/rancher/rke2/config.yaml and restart rke2, then run \
             `proxyshift cleanup`",
        ));
    }
    let cause = format!(
        "it is a pod without a manifest in /{}, so of a DaemonSet: its configuration is that of \
         every node, and only the API could undo a change",
        static_pod::MANIFESTS
    );
    Err(Error::new(Kind::Contested, &origin.object, cause).hint(
        "change the mode in the ConfigMap kube-system/kube-proxy, delete this node's pod, and run \
         `proxyshift cleanup`; for a static pod elsewhere, name it in the playbook: \
         switch: {controller: {static-pod: FILE}}",
    ))
}
