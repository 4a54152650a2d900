//! Detects kube-proxy as a systemd unit, by its cgroup.

use super::kind::{Origin, ReadController, host_config};
use super::supervisor::is_below_unit;
use crate::error::Result;
use crate::state::cgroup;
use crate::state::kube_proxy::controller::SystemdUnit;
use crate::state::kube_proxy::{CommandLine, ConfigSource, Controller};
use crate::state::tools::Process;

/// Units in whose cgroup other processes run too. A kube-proxy process without a cgroup of its own
/// appears in one of them.
const SHARED: [&str; 9] = [
    "containerd",
    "cri-docker",
    "crio",
    "docker",
    "k3s",
    "k3s-agent",
    "kubelet",
    "rke2-agent",
    "rke2-server",
];

pub(super) fn detect(origin: &Origin<'_>) -> Result<Option<Controller>> {
    let Some(unit) = cgroup::unit(&origin.cgroups) else { return Ok(None) };
    if SHARED.contains(&unit.trim_end_matches(".service")) {
        let cause = format!("it is counted as a part of unit {unit}, which runs more");
        return Err(origin.unknown(cause));
    }
    Ok(Some(Controller::Systemd(SystemdUnit { unit: unit.to_owned() })))
}

impl ReadController for SystemdUnit {
    fn owns(&self, text: &str) -> bool {
        is_below_unit(&cgroup::paths(text), &self.unit)
    }

    fn config_source(&self, process: &Process, line: CommandLine) -> Result<ConfigSource> {
        host_config(self, process, line)
    }
}
