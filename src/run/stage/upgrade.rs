//! The stage `upgrade`: somebody, a command of the operator's, or the controller of kube-proxy's DaemonSet
//! replaces kube-proxy by another version.

use std::time::Duration;

use crate::apply::argv;
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Sink, Task};
use crate::interrupt;
use crate::node::kube_proxy_controller::Predecessor;
use crate::plan::playbook::{Upgrade, UpgradeMethod};
use crate::run::execution::Execution;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::{Stage, Undo, replaced_pod};
use crate::run::wait::{Poll, poll};
use crate::state::stage::{RunStage, StageName};

/// The function that undoes the stage. Only an administrator brings the old version back.
pub(super) const UNDO: Option<Undo> = Some(replaced_pod::undo);

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

    fn preview(&self, previewer: &Previewer<'_>) -> Previewed {
        Previewed::line(match &self.by {
            UpgradeMethod::Command { run, .. } => format!("runs `{run}`"),
            UpgradeMethod::Controller { .. } => match replaced_pod::preview(previewer) {
                Ok(line) => line,
                Err(e) => return Previewed::stops(&e),
            },
            UpgradeMethod::Operator { ask } => format!("asks: {ask}"),
        })
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let sink = execution.context.sink;
        if matches!(self.by, UpgradeMethod::Controller { .. }) {
            return replaced_pod::replace(execution, self.timeout);
        }
        let old = Predecessor::only()?;
        match &self.by {
            UpgradeMethod::Controller { .. } => {}
            UpgradeMethod::Command { run, .. } => {
                let task = Task::Upgrade { command: run.to_string() };
                sink.started(&task);
                argv::run(run, self.timeout)?;
                sink.finished(&task, Outcome::Succeeded);
                // A kubelet acts on a new manifest only after its command has ended. A run that is
                // resumed may find kube-proxy replaced already, so nothing fails here.
                let replaced = await_successor(&old, self.timeout.min(AFTER_A_COMMAND), sink)?;
                if !replaced {
                    let pid = old.process.pid;
                    let text = format!(
                        "the command has ended, and kube-proxy (pid {pid}) was not replaced within \
                         {} s: the one that runs is judged",
                        AFTER_A_COMMAND.as_secs()
                    );
                    sink.warning(text);
                }
            }
            UpgradeMethod::Operator { ask } => {
                sink.warning(ask.clone());
                if !await_successor(&old, self.timeout, sink)? {
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
            }
        }
        Ok(())
    }
}

/// How long kube-proxy may go on after the command that replaces it has ended.
const AFTER_A_COMMAND: Duration = Duration::from_secs(120);

/// Waits until another kube-proxy runs in place of `old`. Returns whether one does in time.
fn await_successor(old: &Predecessor, timeout: Duration, sink: &dyn Sink) -> Result<bool> {
    let task = Task::AwaitUpgrade;
    sink.started(&task);
    let keep_waiting = || interrupt::check("waiting for the upgrade");
    let replaced = poll(timeout, &keep_waiting, || {
        Ok(match old.successor()? {
            Some(_) => Poll::Ready(()),
            None => Poll::NotYet(()),
        })
    })?;
    let replaced = matches!(replaced, Poll::Ready(()));
    sink.finished(&task, if replaced { Outcome::Replaced } else { Outcome::TimedOut });
    Ok(replaced)
}
