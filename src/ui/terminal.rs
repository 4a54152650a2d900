//! Remembers the settings of the terminal, and restores them.

use std::io::{IsTerminal, stdin};
use std::sync::OnceLock;

use console::Term;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The settings of the terminal when the program began; none if standard input was no terminal.
static FOUND: OnceLock<Option<Termios>> = OnceLock::new();

/// Remembers the settings of the terminal, because a question changes them while it waits for a
/// key.
pub(super) fn remember() {
    FOUND.get_or_init(|| stdin().is_terminal().then(|| tcgetattr(stdin()).ok()).flatten());
}

/// Restores the remembered settings, and shows the cursor. A closed terminal is no error.
pub(super) fn restore() {
    if let Some(found) = FOUND.get().and_then(Option::as_ref) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, found);
    }
    let term = Term::stderr();
    if term.is_term() && std::env::var_os("TERM").is_none_or(|t| t != "dumb") {
        let _ = term.show_cursor();
    }
}
