//! The stage `upgrade`: somebody, or a command of the operator's, replaces kube-proxy by another
//! version.

use std::time::Duration;

use crate::apply::argv;
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::interrupt;
use crate::node::kube_proxy_controller::Predecessor;
use crate::plan::playbook::{Upgrade, UpgradeMethod};
use crate::run::execution::Execution;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::{Stage, Undo};
use crate::run::wait::{Poll, poll};
use crate::state::stage::{RunStage, StageName};

/// Nothing undoes the stage: no stage brings the old version of kube-proxy back.
pub(super) const UNDO: Option<Undo> = None;

/// The stage `upgrade` with the options of the playbook.
pub(super) fn stage(options: Upgrade) -> Box<dyn Stage> {
    Box::new(options)
}

impl Stage for Upgrade {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Upgrade)
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn preview(&self, _: &Previewer<'_>) -> Previewed {
        Previewed::line(match &self.by {
            UpgradeMethod::Command { run, .. } => format!("runs `{run}`"),
            UpgradeMethod::Operator { ask } => format!("asks: {ask}"),
        })
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let sink = execution.context.sink;
        let old = Predecessor::only()?;
        match &self.by {
            UpgradeMethod::Command { run, .. } => {
                let task = Task::Upgrade { command: run.to_string() };
                sink.started(&task);
                argv::run(run, self.timeout)?;
                sink.finished(&task, Outcome::Succeeded);
            }
            UpgradeMethod::Operator { ask } => {
                sink.warning(ask.clone());
                let task = Task::AwaitUpgrade;
                sink.started(&task);
                let keep_waiting = || interrupt::check("waiting for the upgrade");
                let replaced = poll(self.timeout, &keep_waiting, || {
                    Ok(match old.successor()? {
                        Some(_) => Poll::Ready(()),
                        None => Poll::NotYet(()),
                    })
                })?;
                if let Poll::NotYet(()) = replaced {
                    sink.finished(&task, Outcome::TimedOut);
                    let cause = if old.process.is_alive() {
                        format!("pid {} still runs after {:?}", old.process.pid, self.timeout)
                    } else {
                        format!(
                            "none runs in place of pid {} after {:?}",
                            old.process.pid, self.timeout
                        )
                    };
                    return Err(Error::new(Kind::Command, "kube-proxy", cause));
                }
                sink.finished(&task, Outcome::Replaced);
            }
        }
        Ok(())
    }
}
