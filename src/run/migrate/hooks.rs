//! The operator's own commands before and after stages.

use crate::error::{Error, Kind, Result};
use crate::event::Sink;
use crate::node::command::Command;
use crate::node::command::TRUSTED_PATH;
use crate::plan::playbook::{Argv, Hook};

/// Runs a hook.
///
/// # Errors
/// [`Kind::Command`], with what it said.
pub(super) fn run(hook: &Hook, sink: &dyn Sink) -> Result<()> {
    let task = format!("hook: {}", hook.run);
    sink.started(&task);
    command(&hook.run)?.deadline(hook.timeout).run()?;
    sink.finished(&task, "done");
    Ok(())
}

/// The command of `argv`: a path, or a name on the trusted path.
pub(super) fn command(argv: &Argv) -> Result<Command> {
    let program = which::which_in(argv.program(), Some(TRUSTED_PATH), "/").map_err(|e| {
        Error::new(Kind::MissingTool, argv.program(), e)
            .hint("install it, or give its whole path in the playbook")
    })?;
    Ok(Command::new(program).args(argv.arguments().iter().cloned()))
}
