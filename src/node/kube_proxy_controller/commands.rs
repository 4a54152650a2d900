//! The controller whose kube-proxy is stopped and started by commands of the operator. The playbook
//! gives the commands; this kind of controller is never detected.

use super::kind::{ReadController, host_config};
use crate::error::Result;
use crate::state::kube_proxy::controller::Commands;
use crate::state::kube_proxy::{CommandLine, ConfigSource};
use crate::state::tools::Process;

impl ReadController for Commands {
    fn program(&self) -> &str {
        &self.program
    }

    fn owns(&self, _cgroup: &str) -> bool {
        true
    }

    fn owns_by_name(&self) -> bool {
        true
    }

    fn config_source(&self, process: &Process, line: CommandLine) -> Result<ConfigSource> {
        host_config(self, process, line)
    }
}
