//! The questions about a pending run, which come before all others.

use crate::error::Result;
use crate::front::cli::cleanup;
pub(in crate::front) use crate::front::cli::command::Invocation;
use crate::front::cli::confirm_prompt;
use crate::front::cli::rollback;
use crate::front::cli::status;
use crate::store::run::{Run, RunKind, RunState};
use crate::ui::prompt::Answer;

pub(super) fn run(command: &Invocation<'_>, run: &Run) -> Result<u8> {
    command.ui.heading("A run is pending");
    command.ui.paragraph(&status::pending(run), "  ", "  ");
    if run.state == RunState::Unconfirmed {
        return confirm_prompt::run(command, &run.id);
    }
    if run.runner_is_alive() {
        return Ok(6);
    }
    let mut answers = vec![
        Answer::new("leave it", "nothing is done now"),
        Answer::new("roll it back", "what it did is undone, and proven to be"),
    ];
    // To go on is not offered for a fix, because an interrupted fix cannot be resumed.
    if !matches!(run.kind, RunKind::Fix { .. }) {
        answers.push(Answer::new("go on with it", "what is left to do is done"));
    }
    match command.ui.choose("This run", &answers, 0)? {
        0 => status::run(command),
        1 => rollback::run(command, None),
        _ => cleanup::resume(command),
    }
}
