//! Detects pods whose manifest is not on this node, and refuses them before anything is changed.

use super::kind::Origin;
use super::static_pod;
use crate::error::{Error, Result};
use crate::state::kube_proxy::delivery::ConfigMap;
use crate::state::kube_proxy::{Controller, Delivery};

/// The manifest of kube-proxy that rke2 rewrites at each start of rke2.
pub(super) const RKE2: &str = "var/lib/rancher/rke2/agent/pod-manifests/kube-proxy.yaml";

pub(super) fn refuse(origin: &Origin<'_>) -> Result<Option<Controller>> {
    if !origin.is_pod() {
        return Ok(None);
    }
    let (delivery, elsewhere) = if origin.root.join(RKE2).exists() {
        (Delivery::Rke2, String::new())
    } else {
        let delivery = match &origin.delivery {
            delivery @ (Delivery::DaemonSet(_) | Delivery::Managed(_)) => delivery.clone(),
            _ => Delivery::DaemonSet(ConfigMap::Kubeadm),
        };
        let elsewhere = format!(
            "; it has no manifest in /{}: for a static pod elsewhere, name it in the playbook: \
             switch: {{controller: {{static-pod: FILE}}}}",
            static_pod::MANIFESTS
        );
        (delivery, elsewhere)
    };
    let Some(error) = delivery.refusal() else { return Ok(None) };
    let hint = error.hint.clone().unwrap_or_default();
    Err(Error::new(error.kind, &origin.object, &error.cause).hint(format!("{hint}{elsewhere}")))
}
