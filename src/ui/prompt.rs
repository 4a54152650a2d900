//! Asks a person questions, only on a terminal.
//!
//! A question is short, because a line that wraps cannot be redrawn. What each answer does is
//! therefore printed above the question. With plain progress, or on a terminal that is too small,
//! nothing is redrawn, so answers are typed as lines.

use std::io::{BufRead, IsTerminal, Write};

use console::Term;
use dialoguer::Confirm;
use dialoguer::theme::{ColorfulTheme, SimpleTheme, Theme};

use super::{Progress, Ui, select};
use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::visible::visible;

/// True when a person can answer: standard input and standard error are a terminal.
pub fn attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// One of the answers to a question.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The label to choose, of a word or two: `ignore it`.
    pub label: String,
    /// What happens if this answer is chosen.
    pub then: String,
}

impl Answer {
    /// An answer with its label and what it does.
    pub fn new(label: impl Into<String>, then: impl Into<String>) -> Answer {
        Answer { label: label.into(), then: then.into() }
    }
}

impl Ui {
    /// Asks a yes-or-no question, which must fit in 30 columns. Above the question, prints what
    /// each answer does.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the question ended without an answer, as after Ctrl-C.
    pub fn confirm(&self, question: &str, yes: &str, no: &str, default: bool) -> Result<bool> {
        self.answers(&[Answer::new("yes", yes), Answer::new("no", no)]);
        self.yes_or_no(question, default)
    }

    /// As [`Self::confirm`], without printing what each answer does, for answers that change
    /// nothing.
    ///
    /// # Errors
    /// As [`Self::confirm`].
    pub fn yes_or_no(&self, question: &str, default: bool) -> Result<bool> {
        if self.is_live(1) {
            let theme = self.theme();
            let confirm =
                Confirm::with_theme(&*theme).with_prompt(visible(question)).default(default);
            return ask(|term| confirm.interact_on(term));
        }
        let hint = if default { "Y/n" } else { "y/N" };
        loop {
            match self.line_of_answer(&format!("{question} [{hint}] "))?.to_lowercase().as_str() {
                "" => return Ok(default),
                "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => self.say("Answer y or n."),
            }
        }
    }

    /// Asks for one of several answers. Above the question, prints what each answer does. Returns
    /// the index of the chosen answer.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the question ended without an answer, as after Ctrl-C.
    pub fn choose(&self, question: &str, answers: &[Answer], default: usize) -> Result<usize> {
        self.choose_below("", question, answers, default)
    }

    /// As [`Self::choose`], with `line` above the question. [`Self::redraw`] can replace that line
    /// while the question waits.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn choose_below(
        &self,
        line: &str,
        question: &str,
        answers: &[Answer],
        default: usize,
    ) -> Result<usize> {
        self.answers(answers);
        if !line.is_empty() {
            self.say(line);
        }
        if self.is_live(answers.len() + 1) {
            let theme = self.theme();
            let labels: Vec<_> = answers.iter().map(|a| visible(&a.label)).collect();
            return ask(|term| select::choose(term, &*theme, &visible(question), &labels, default));
        }
        for (i, answer) in answers.iter().enumerate() {
            self.say(format!("{}: {}", i + 1, answer.label));
        }
        loop {
            let typed = self.line_of_answer(&format!("{question} [{}] ", default + 1))?;
            if typed.is_empty() {
                return Ok(default);
            }
            match typed.parse::<usize>().ok().and_then(|n| n.checked_sub(1)) {
                Some(n) if n < answers.len() => return Ok(n),
                _ => self.say(format!("Answer with a number from 1 to {}.", answers.len())),
            }
        }
    }

    /// Asks a person to type `word` before a risky step. Returns false for any other text.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the question ended without an answer, as after Ctrl-C.
    pub fn typed(&self, question: &str, word: &str, yes: &str, no: &str) -> Result<bool> {
        let answers = [Answer::new(word, yes), Answer::new("anything else", no)];
        Ok(self.typed_line(question, &answers)? == word)
    }

    /// Asks for a line of text. Above the question, prints what the answers do. Returns the line
    /// trimmed.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the question ended without an answer, as after Ctrl-C.
    pub fn typed_line(&self, question: &str, answers: &[Answer]) -> Result<String> {
        self.answers(answers);
        // The terminal itself edits the line, whatever its size.
        self.line_of_answer(&format!("{question}: "))
    }

    /// Replaces the line above the current question. `answers` is how many answers the question
    /// lists.
    pub fn redraw(&self, line: &str, answers: usize) {
        if self.is_live(answers + 2) {
            // The cursor is on the line after the answers. Above it are the answers, the question,
            // and the line to replace.
            let up = answers + 2;
            let mut err = std::io::stderr().lock();
            let line = visible(line);
            let drawn = format!("\x1b7\x1b[{up}A\r{line}\x1b[K\x1b8");
            let _ = err.write_all(drawn.as_bytes()).and_then(|()| err.flush());
        }
    }

    fn answers(&self, answers: &[Answer]) {
        for Answer { label, then } in answers {
            self.paragraph(&format!("{label}: {then}"), "  ", "    ");
        }
    }

    /// Whether a question of so many lines can be redrawn.
    fn is_live(&self, lines: usize) -> bool {
        // A terminal that does not tell its size is taken to be large enough.
        let fits = |(rows, columns): (u16, u16)| {
            usize::from(rows) > lines && usize::from(columns) >= NARROWEST
        };
        self.progress == Progress::Auto && Term::stderr().size_checked().is_none_or(fits)
    }

    fn theme(&self) -> Box<dyn Theme> {
        if self.colour { Box::new(ColorfulTheme::default()) } else { Box::new(SimpleTheme) }
    }

    /// Prints `question`, reads a line from standard input, and trims it.
    fn line_of_answer(&self, question: &str) -> Result<String> {
        interrupt::check(QUESTION)?;
        // Standard error is not locked while the question waits: a signal has its own last words.
        let mut err = std::io::stderr();
        let _ = write!(err, "{}", visible(question)).and_then(|()| err.flush());
        let mut line = String::new();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(0) => {
                let _ = writeln!(err);
                Err(cut_off())
            }
            Ok(_) => Ok(line.trim().to_owned()),
            Err(_) => Err(cut_off()),
        }
    }
}

const QUESTION: &str = "the question";

/// The smallest number of columns in which every question fits.
const NARROWEST: usize = 40;

fn cut_off() -> Error {
    Error::new(Kind::Interrupted, QUESTION, "was cut off; nothing was changed")
}

/// Asks a question. The output is buffered and written in one piece, so that a countdown can be
/// drawn in between.
fn ask<T, E>(question: impl FnOnce(&Term) -> Result<T, E>) -> Result<T> {
    interrupt::check(QUESTION)?;
    let term = Term::buffered_stderr();
    let answer = question(&term);
    let _ = term.flush();
    // A question that Ctrl-C interrupts leaves the cursor hidden.
    let _ = Term::stderr().show_cursor();
    answer.map_err(|_| cut_off())
}
