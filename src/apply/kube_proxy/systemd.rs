//! Stops and starts kube-proxy as a systemd unit.

use std::time::Duration;

use super::Operate;
use crate::apply::systemd::systemctl;
use crate::error::Result;
use crate::node::systemd::log;
use crate::state::kube_proxy::controller::SystemdUnit;

impl Operate for SystemdUnit {
    fn request_stop(&self, within: Duration) -> Result<()> {
        systemctl(&["stop", "--", &self.unit], within)
    }

    fn request_start(&self, within: Duration) -> Result<()> {
        systemctl(&["start", "--", &self.unit], within)
    }

    fn request_restart(&self, within: Duration) -> Result<bool> {
        systemctl(&["restart", "--", &self.unit], within).map(|()| true)
    }

    fn log_and_hint(&self) -> (String, String) {
        (log(&self.unit), format!("see `journalctl -u {}`", self.unit))
    }
}
