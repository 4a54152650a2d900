//! Who runs a process of this node, and what runs in its place after it.

use crate::error::{Error, Kind, Result};
use crate::node::processes;
use crate::runtime::ProcessId;
use crate::state::cgroup;
use crate::state::kube_proxy::controller::PROGRAM;
use crate::state::kubernetes::{ClusterPod, pod_of_process};

/// Whether a process with these cgroups runs below the systemd unit `unit`, which may be named
/// without its `.service`. A pod's own systemd may have a unit of that name too, which is not ours.
pub(super) fn is_below_unit(paths: &[&str], unit: &str) -> bool {
    let is_unit = |part: &str| part == unit || part.strip_suffix(".service") == Some(unit);
    !cgroup::is_pod(paths) && cgroup::of_the_system(paths).any(|path| path.split('/').any(is_unit))
}

/// The text of a process's cgroups; none once the process has ended.
pub(super) fn cgroup_of(pid: u32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()
}

/// The one of `pods`, which must be all of this node, in which a process runs; none for any other, and once
/// it has ended.
pub fn pod_of(pid: u32, pods: &[ClusterPod]) -> Option<&ClusterPod> {
    pod_of_process(pods, &cgroup::paths(&cgroup_of(pid)?))
}

/// Who runs a process.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Supervisor {
    Pod,
    Unit(String),
    /// Neither the kubelet nor systemd.
    Other,
    /// Not known any more: the process has ended.
    Gone,
}

impl Supervisor {
    fn of(text: &str) -> Supervisor {
        let paths = cgroup::paths(text);
        match cgroup::unit(&paths) {
            _ if cgroup::is_pod(&paths) => Supervisor::Pod,
            Some(unit) => Supervisor::Unit(unit.to_owned()),
            None => Supervisor::Other,
        }
    }
}

/// The kube-proxy that an upgrade replaces.
pub struct Predecessor {
    /// Its process.
    pub process: ProcessId,
    supervisor: Supervisor,
}

impl Predecessor {
    /// The kube-proxy that runs now, which must be the only one.
    ///
    /// # Errors
    /// [`Kind::Blocked`] when no kube-proxy runs, or more than one.
    pub fn only() -> Result<Predecessor> {
        let pids = processes::pids(PROGRAM)?;
        let blocked = |cause: String| Error::new(Kind::Blocked, "kube-proxy", cause);
        let [pid] = pids[..] else {
            return Err(blocked(format!("runs {} times here, and must run once", pids.len())));
        };
        let ended = || blocked("has just ended".into());
        let process = ProcessId::of(pid).ok_or_else(ended)?;
        let supervisor = Supervisor::of(&cgroup_of(pid).ok_or_else(ended)?);
        Ok(Predecessor { process, supervisor })
    }

    /// The kube-proxy `process`, which ran earlier.
    pub fn of(process: ProcessId) -> Predecessor {
        let text = cgroup_of(process.pid).filter(|_| process.is_alive());
        let supervisor = text.map_or(Supervisor::Gone, |text| Supervisor::of(&text));
        Predecessor { process, supervisor }
    }

    /// The kube-proxy that runs in place of this one, in a unit of the same name or again in a pod;
    /// none while this one still runs, or no other runs yet.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn successor(&self) -> Result<Option<u32>> {
        if self.process.is_alive() {
            return Ok(None);
        }
        let follows = |pid: &u32| {
            let found = cgroup_of(*pid).map(|text| Supervisor::of(&text));
            found.is_some_and(|found| {
                self.supervisor == Supervisor::Gone || found == self.supervisor
            })
        };
        Ok(processes::pids(PROGRAM)?.into_iter().find(follows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_belongs_to_the_unit_that_it_is_below() {
        let below = |text, unit| is_below_unit(&cgroup::paths(text), unit);
        for (cgroup, expected) in [
            ("0::/system.slice/kube-proxy.service\n", true),
            ("0::/system.slice/kube-proxy.service/inner\n", true),
            ("3:cpu:/\n1:name=systemd:/system.slice/kube-proxy.service\n0::/\n", true),
            // The unit as seen from another cgroup namespace.
            ("0::/../../system.slice/kube-proxy.service\n", true),
            ("0::/system.slice/other-kube-proxy.service\n", false),
            ("0::/system.slice/kube-proxy.service.d\n", false),
            ("0::/system.slice/kube-proxy@2.service\n", false),
            ("0::/system.slice/kubelet.service\n", false),
            ("0::/user.slice/user-0.slice/user@0.service/app.slice/kube-proxy.service\n", false),
            ("0::/user.slice/user-0.slice/session-3.scope\n", false),
            ("0::/kubepods.slice/pod7/9/system.slice/kube-proxy.service\n", false),
            ("0::/\n", false),
            ("", false),
        ] {
            assert_eq!(below(cgroup, "kube-proxy.service"), expected, "{cgroup}");
            assert_eq!(below(cgroup, "kube-proxy"), expected, "{cgroup}");
        }
    }

    #[test]
    fn a_successor_has_the_same_supervisor() {
        let of = Supervisor::of;
        let unit = of("0::/system.slice/kube-proxy.service\n");
        assert_eq!(unit, of("1:name=systemd:/system.slice/kube-proxy.service/inner\n0::/\n"));
        assert_ne!(unit, of("0::/system.slice/other.service\n"));
        let pod = of("0::/kubepods.slice/kubepods-pod7.slice/a.scope\n");
        assert_eq!(pod, of("0::/kubepods.slice/kubepods-pod8.slice/b.scope\n"));
        assert_ne!(pod, of("0::/user.slice/user-0.slice/session-3.scope\n"));
        assert_eq!(of("0::/\n"), of("0::/user.slice/user-0.slice/session-3.scope\n"));
    }
}
