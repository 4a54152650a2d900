//! Stops and starts kube-proxy by the operator's commands.

use std::time::Duration;

use super::Operate;
use crate::apply::argv;
use crate::error::Result;
use crate::state::kube_proxy::controller::Commands;

impl Operate for Commands {
    fn request_stop(&self, within: Duration) -> Result<()> {
        argv::run(&self.stop, within)
    }

    fn request_start(&self, within: Duration) -> Result<()> {
        argv::run(&self.start, within)
    }

    fn request_restart(&self, within: Duration) -> Result<bool> {
        let Some(restart) = &self.restart else { return Ok(false) };
        argv::run(restart, within).map(|()| true)
    }

    fn log_and_hint(&self) -> (String, String) {
        (String::new(), "run it by hand to see more".to_owned())
    }
}
