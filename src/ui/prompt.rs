//! Questions to a person, asked only on a terminal.

use std::io::IsTerminal;

use console::Term;
use dialoguer::Confirm;

use crate::error::{Error, Kind, Result};

/// True when there is someone to ask.
pub fn attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks a yes-or-no question whose safe answer is no.
///
/// # Errors
/// [`Kind::Interrupted`] when the question was cut off.
pub fn confirm(question: &str) -> Result<bool> {
    let term = Term::stderr();
    let answer = Confirm::new().with_prompt(question).default(false).interact_on(&term);
    // dialoguer leaves the cursor hidden when it is interrupted.
    let _ = term.show_cursor();
    answer.map_err(|e| Error::new(Kind::Interrupted, "the question", e))
}
