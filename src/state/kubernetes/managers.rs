//! Who manages an object: programs that write it again and again, and would undo what others write.

use super::names::MANAGED_BY;
use super::objects::ObjectMeta;

/// Keys of labels and annotations by which one knows who writes an object again and again. One that
/// ends with `/` stands for all keys below it.
const MARKS: [(&str, &str); 12] = [
    ("addonmanager.kubernetes.io/mode", "the add-on manager"),
    ("kubernetes.io/cluster-service", "the add-on manager"),
    ("argocd.argoproj.io/", "Argo CD"),
    ("kustomize.toolkit.fluxcd.io/", "Flux"),
    ("helm.toolkit.fluxcd.io/", "Flux"),
    ("meta.helm.sh/", "Helm"),
    ("eks.amazonaws.com/", "the EKS add-on"),
    ("kubernetes.azure.com/", "AKS"),
    ("components.gke.io/", "GKE"),
    ("addon.kops.k8s.io/", "kOps"),
    ("k0s.k0sproject.io/", "k0s"),
    ("objectset.rio.cattle.io/", "Rancher's deploy controller"),
];

/// Programs that write objects again and again, by the name that the API server has of them.
const MANAGERS: [(&str, &str); 8] = [
    ("argocd", "Argo CD"),
    ("kustomize-controller", "Flux"),
    ("helm-controller", "Flux"),
    ("helm", "Helm"),
    ("eks", "the EKS add-on"),
    ("k0s", "k0s"),
    ("talos", "Talos"),
    ("addon-manager", "the add-on manager"),
];

/// Who manages an object, and would undo what others write; none if nobody is known to.
pub fn manager(metadata: &ObjectMeta) -> Option<String> {
    if let Some(owner) = metadata.owner_references.first() {
        return Some(format!("{} {}", owner.kind, owner.name));
    }
    let keys = || metadata.labels.keys().chain(metadata.annotations.keys());
    let is_marked = |mark: &str| {
        keys().any(|key| if mark.ends_with('/') { key.starts_with(mark) } else { key == mark })
    };
    if let Some((_, who)) = MARKS.into_iter().find(|(mark, _)| is_marked(mark)) {
        return Some(who.to_owned());
    }
    if let Some(by) = metadata.labels.get(MANAGED_BY.0).filter(|by| *by != MANAGED_BY.1) {
        return Some(by.clone());
    }
    let written = metadata.managed_fields.iter().filter(|fields| fields.subresource.is_empty());
    let known = written.filter_map(|fields| {
        let name = fields.manager.to_lowercase();
        MANAGERS.into_iter().find(|(program, _)| name.starts_with(program))
    });
    known.map(|(_, who)| who.to_owned()).next()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata(value: serde_json::Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn who_manages_it_is_named() {
        for (value, who) in [
            (json!({"labels": {"k8s-app": "kube-proxy"}}), None),
            (
                json!({"managedFields": [{"manager": "kubeadm"}, {"manager": "kubectl-patch"}]}),
                None,
            ),
            (json!({"labels": {"app.kubernetes.io/managed-by": "proxyshift"}}), None),
            (
                json!({"labels": {"addonmanager.kubernetes.io/mode": "Reconcile"}}),
                Some("the add-on manager"),
            ),
            (json!({"labels": {"app.kubernetes.io/managed-by": "Helm"}}), Some("Helm")),
            (json!({"annotations": {"argocd.argoproj.io/tracking-id": "x"}}), Some("Argo CD")),
            (json!({"labels": {"kustomize.toolkit.fluxcd.io/name": "x"}}), Some("Flux")),
            (
                json!({"labels": {"eks.amazonaws.com/component": "kube-proxy"}}),
                Some("the EKS add-on"),
            ),
            (
                json!({"ownerReferences": [{"kind": "Network", "name": "cluster"}]}),
                Some("Network cluster"),
            ),
            (json!({"managedFields": [{"manager": "argocd-controller"}]}), Some("Argo CD")),
            (json!({"managedFields": [{"manager": "eks", "subresource": "status"}]}), None),
        ] {
            assert_eq!(manager(&metadata(value.clone())).as_deref(), who, "{value}");
        }
    }
}
