//! A run that is pending comes first.

use crate::cli::wizard::heading;
use crate::cli::{Command, cleanup, countdown, rollback, status};
use crate::error::Result;
use crate::run::fix::FIX;
use crate::store::run::{Run, RunState};
use crate::ui::prompt::Answer;

pub(super) fn run(command: &Command<'_>, run: &Run) -> Result<u8> {
    heading(command, "A run is pending");
    command.ui.paragraph(&status::pending(run), "  ", "  ");
    if run.state == RunState::Unconfirmed {
        return countdown::stay(command, &run.id);
    }
    if run.runner_is_alive() {
        return Ok(6);
    }
    let mut answers = vec![
        Answer::new("leave it", "nothing is done now"),
        Answer::new("roll it back", "what it did is undone, and proven to be"),
    ];
    // Remedies that were cut off are only undone.
    if run.verb != FIX {
        answers.push(Answer::new("go on with it", "what is left to do is done"));
    }
    match command.ui.choose("This run", &answers, 0)? {
        0 => status::run(command),
        1 => rollback::run(command, None),
        _ => cleanup::resume(command),
    }
}
