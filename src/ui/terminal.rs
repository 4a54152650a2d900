//! The terminal as it was found, and as it is left.

use std::io::{IsTerminal, stdin};
use std::sync::OnceLock;

use console::Term;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// How the terminal was set when the program began.
static FOUND: OnceLock<Option<Termios>> = OnceLock::new();

/// Remembers how the terminal is set. A question sets it otherwise while it waits for a key.
pub(super) fn remember() {
    FOUND.get_or_init(|| stdin().is_terminal().then(|| tcgetattr(stdin()).ok()).flatten());
}

/// Sets the terminal as it was found, cursor included. A terminal that is gone needs nothing.
pub(super) fn restore() {
    if let Some(found) = FOUND.get().and_then(Option::as_ref) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, found);
    }
    let term = Term::stderr();
    if term.is_term() && std::env::var_os("TERM").is_none_or(|t| t != "dumb") {
        let _ = term.show_cursor();
    }
}
