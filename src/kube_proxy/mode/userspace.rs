//! userspace mode, in which kube-proxy itself forwards each connection. kube-proxy had this mode up
//! to 1.25, and its leftovers can be removed.

use super::{ProxyMode, ServiceFilter, UnsupportedMode};
use crate::kube_proxy::services::Services;
use crate::owners::matcher::Ownership;
use crate::state::kube_proxy::Mode;
use crate::state::{Family, NodeState};

/// The userspace mode of kube-proxy.
pub(super) struct UserspaceMode;

impl ProxyMode for UserspaceMode {
    fn mode(&self) -> Mode {
        Mode::Userspace
    }

    /// No services, because only the kube-proxy process knows them.
    fn services_where(&self, _: &NodeState, _: &ServiceFilter<'_>) -> Services {
        Services::new()
    }

    fn evidence(&self, _: &NodeState, _: &Ownership<'_>) -> Option<String> {
        None
    }

    fn missing_objects(&self, _: &NodeState, _: Family) -> Option<String> {
        Some("userspace mode cannot be judged".into())
    }

    fn has_started(&self, _: &NodeState, _: Family) -> bool {
        false
    }

    fn dropped(&self) -> Option<u32> {
        Some(26)
    }

    fn unsupported(&self) -> Option<UnsupportedMode> {
        Some(UnsupportedMode {
            cause: "kube-proxy has no userspace mode since 1.26",
            hint: "use iptables or ipvs",
        })
    }
}
