//! Hooks: commands of the operator's before and after stages.

use crate::apply::argv;
use crate::error::Result;
use crate::event::{Outcome, Sink, Task};
use crate::plan::playbook::Hook;

/// Runs a hook.
///
/// # Errors
/// [`crate::error::Kind::Command`], with the command's output.
pub(super) fn run(hook: &Hook, sink: &dyn Sink) -> Result<()> {
    let task = Task::Hook { command: hook.run.to_string() };
    sink.started(&task);
    argv::run(&hook.run, hook.timeout)?;
    sink.finished(&task, Outcome::Succeeded);
    Ok(())
}
