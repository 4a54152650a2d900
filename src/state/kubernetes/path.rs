//! Where the API server has an object.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kinds of objects that are read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ApiKind {
    /// A Node.
    Node,
    /// A Pod.
    Pod,
    /// A ConfigMap.
    ConfigMap,
    /// A DaemonSet.
    DaemonSet,
    /// A revision of a DaemonSet's template.
    ControllerRevision,
    /// A Role.
    Role,
    /// A RoleBinding.
    RoleBinding,
    /// A ClusterRole.
    ClusterRole,
    /// A ClusterRoleBinding.
    ClusterRoleBinding,
    /// A Lease.
    Lease,
    /// An Event (of the core group).
    Event,
    /// A ServiceAccount.
    ServiceAccount,
}

impl ApiKind {
    /// The path of its group and version, and its name in paths.
    fn parts(self) -> (&'static str, &'static str) {
        const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
        match self {
            ApiKind::Node => ("/api/v1", "nodes"),
            ApiKind::Pod => ("/api/v1", "pods"),
            ApiKind::ConfigMap => ("/api/v1", "configmaps"),
            ApiKind::Event => ("/api/v1", "events"),
            ApiKind::ServiceAccount => ("/api/v1", "serviceaccounts"),
            ApiKind::DaemonSet => ("/apis/apps/v1", "daemonsets"),
            ApiKind::ControllerRevision => ("/apis/apps/v1", "controllerrevisions"),
            ApiKind::Role => (RBAC, "roles"),
            ApiKind::RoleBinding => (RBAC, "rolebindings"),
            ApiKind::ClusterRole => (RBAC, "clusterroles"),
            ApiKind::ClusterRoleBinding => (RBAC, "clusterrolebindings"),
            ApiKind::Lease => ("/apis/coordination.k8s.io/v1", "leases"),
        }
    }

    /// The path of its objects in `namespace`, or of all of them.
    pub fn collection(self, namespace: Option<&str>) -> String {
        let (group, plural) = self.parts();
        match namespace {
            Some(namespace) => format!("{group}/namespaces/{}/{plural}", segment(namespace)),
            None => format!("{group}/{plural}"),
        }
    }

    /// The value of `apiVersion` in an object of the kind.
    pub fn api_version(self) -> &'static str {
        let group = self.parts().0;
        group.trim_start_matches("/apis/").trim_start_matches("/api/")
    }
}

impl fmt::Display for ApiKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What names an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: ApiKind,
    /// Its namespace; none for a kind that has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// An object in a namespace.
    pub fn new(kind: ApiKind, namespace: impl Into<String>, name: impl Into<String>) -> ObjectRef {
        ObjectRef { kind, namespace: Some(namespace.into()), name: name.into() }
    }

    /// An object of a kind that has no namespace.
    pub fn of_cluster(kind: ApiKind, name: impl Into<String>) -> ObjectRef {
        ObjectRef { kind, namespace: None, name: name.into() }
    }

    /// Its path.
    pub fn path(&self) -> String {
        let collection = self.kind.collection(self.namespace.as_deref());
        format!("{collection}/{}", segment(&self.name))
    }
}

/// As an operator reads it: `DaemonSet kube-system/kube-proxy`.
impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// A name as one part of a path. Names have none of the characters that mean something there, except
/// in what is no name.
fn segment(name: &str) -> String {
    let is_dots = !name.is_empty() && name.bytes().all(|byte| byte == b'.');
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':');
        if is_plain || (byte == b'.' && !is_dots) {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_no_other_path() {
        let role = ObjectRef::new(ApiKind::Role, "kube-system", "kubeadm:kubelet-config");
        assert_eq!(
            role.path(),
            "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/kubeadm:kubelet-config"
        );
        let node = |name: &str| ObjectRef::of_cluster(ApiKind::Node, name).path();
        assert_eq!(node("a.example"), "/api/v1/nodes/a.example");
        assert_eq!(node("../pods?x#"), "/api/v1/nodes/..%2Fpods%3Fx%23");
        assert_eq!(node(".."), "/api/v1/nodes/%2E%2E");
        assert_eq!(ApiKind::Pod.collection(None), "/api/v1/pods");
        assert_eq!(ApiKind::Pod.api_version(), "v1");
        assert_eq!(ApiKind::Lease.api_version(), "coordination.k8s.io/v1");
    }
}
