//! Hooks: commands of the operator's that run before and after stages.

use crate::apply::argv;
use crate::error::Result;
use crate::event::{Outcome, Sink, Task};
use crate::plan::playbook::Hook;

/// Runs one hook to its end.
///
/// # Errors
/// [`crate::error::Kind::Command`], with the output of the hook's command.
pub(super) fn run(hook: &Hook, sink: &dyn Sink) -> Result<()> {
    let task = Task::Hook { command: hook.run.to_string() };
    sink.started(&task);
    argv::run(&hook.run, hook.timeout)?;
    sink.finished(&task, Outcome::Succeeded);
    Ok(())
}
