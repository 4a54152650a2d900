//! A list of which a person chooses one line with the arrow keys.
//!
//! dialoguer's own list divides the terminal into pages, and panics on one of fewer than 3 rows,
//! even if it becomes so small only later.

use std::borrow::Cow;
use std::fmt;
use std::io;

use console::{Key, Term};
use dialoguer::theme::Theme;

/// Asks `question` with the answers `labels`, which must not be empty. Returns the index of the
/// chosen one; `at` is the index of the one that is chosen at first.
///
/// # Errors
/// When the terminal is closed, or Ctrl-C is pressed.
pub(super) fn choose(
    term: &Term,
    theme: &dyn Theme,
    question: &str,
    labels: &[Cow<'_, str>],
    mut at: usize,
) -> io::Result<usize> {
    term.hide_cursor()?;
    line(term, |f| theme.format_select_prompt(f, question))?;
    loop {
        for (n, label) in labels.iter().enumerate() {
            line(term, |f| theme.format_select_prompt_item(f, label, n == at))?;
        }
        term.flush()?;
        match term.read_key()? {
            Key::ArrowDown | Key::Tab | Key::Char('j') => at = (at + 1) % labels.len(),
            Key::ArrowUp | Key::BackTab | Key::Char('k') => {
                at = (at + labels.len() - 1) % labels.len();
            }
            Key::Enter | Key::Char(' ') => break,
            _ => {}
        }
        term.clear_last_lines(labels.len())?;
    }
    term.clear_last_lines(labels.len() + 1)?;
    line(term, |f| theme.format_select_prompt_selection(f, question, &labels[at]))?;
    term.show_cursor()?;
    term.flush()?;
    Ok(at)
}

/// Writes one line that a theme formats.
fn line(term: &Term, format: impl FnOnce(&mut dyn fmt::Write) -> fmt::Result) -> io::Result<()> {
    let mut text = String::new();
    format(&mut text).map_err(io::Error::other)?;
    term.write_line(&text)
}
