//! Stops and starts kube-proxy by the operator's commands.

use std::time::Duration;

use super::{Operate, running};
use crate::apply::argv;
use crate::error::Result;
use crate::state::kube_proxy::controller::Commands;

impl Operate for Commands {
    fn request_stop(&self, within: Duration) -> Result<()> {
        argv::run(&self.stop, within)
    }

    /// Does nothing while kube-proxy runs, because the start command would run a second one.
    fn request_start(&self, within: Duration) -> Result<()> {
        if running(&self.program)?.is_empty() {
            argv::run(&self.start, within)?;
        }
        Ok(())
    }

    fn request_restart(&self, within: Duration) -> Result<bool> {
        let Some(restart) = &self.restart else { return Ok(false) };
        argv::run(restart, within).map(|()| true)
    }

    fn program(&self) -> &str {
        &self.program
    }

    fn log_and_hint(&self) -> (String, String) {
        (String::new(), "run it by hand to see more".to_owned())
    }
}
