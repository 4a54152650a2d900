//! Questions to a person, asked only on a terminal.
//!
//! What each answer leads to is said above the question, so that the question itself is short: a
//! line that wraps cannot be redrawn. Where nothing may be redrawn, answers are typed as lines.

use std::io::{BufRead, IsTerminal, Write};

use console::Term;
use dialoguer::theme::{ColorfulTheme, SimpleTheme, Theme};
use dialoguer::{Confirm, Input, Select};

use super::{Progress, Ui};
use crate::error::{Error, Kind, Result};
use crate::interrupt;

/// True when there is someone to ask.
pub fn attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// An answer that can be chosen.
#[derive(Debug, Clone)]
pub struct Answer {
    /// A word or two: `ignore it`.
    pub label: String,
    /// What happens then.
    pub then: String,
}

impl Answer {
    /// An answer, and what happens then.
    pub fn new(label: impl Into<String>, then: impl Into<String>) -> Answer {
        Answer { label: label.into(), then: then.into() }
    }
}

impl Ui {
    /// Asks a yes-or-no question, which fits in 30 columns; says first what happens on either
    /// answer.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the question was cut off.
    pub fn confirm(&self, question: &str, yes: &str, no: &str, default: bool) -> Result<bool> {
        self.answers(&[Answer::new("yes", yes), Answer::new("no", no)]);
        self.yes_or_no(question, default)
    }

    /// As [`Self::confirm`], of a question whose answers change nothing.
    ///
    /// # Errors
    /// As there.
    pub fn yes_or_no(&self, question: &str, default: bool) -> Result<bool> {
        if self.is_live() {
            let theme = self.theme();
            let confirm = Confirm::with_theme(&*theme).with_prompt(question).default(default);
            return asked(|term| confirm.interact_on(term));
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

    /// Has one of several answers chosen; says first what happens on each. Returns its place.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the question was cut off.
    pub fn choose(&self, question: &str, answers: &[Answer], default: usize) -> Result<usize> {
        self.choose_below("", question, answers, default)
    }

    /// As [`Self::choose`], with a line above the question that [`Self::redraw`] draws anew.
    ///
    /// # Errors
    /// As there.
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
        if self.is_live() {
            let theme = self.theme();
            let select = Select::with_theme(&*theme)
                .with_prompt(question)
                .items(answers.iter().map(|a| a.label.as_str()))
                .default(default)
                .report(true);
            return asked(|term| select.interact_on(term));
        }
        for (i, answer) in answers.iter().enumerate() {
            self.say(&format!("{}: {}", i + 1, answer.label));
        }
        loop {
            let typed = self.line_of_answer(&format!("{question} [{}] ", default + 1))?;
            if typed.is_empty() {
                return Ok(default);
            }
            match typed.parse::<usize>().ok().and_then(|n| n.checked_sub(1)) {
                Some(n) if n < answers.len() => return Ok(n),
                _ => self.say(&format!("Answer with a number from 1 to {}.", answers.len())),
            }
        }
    }

    /// Wants `word` typed, for what is risky; anything else is a no.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the question was cut off.
    pub fn typed(&self, question: &str, word: &str, yes: &str, no: &str) -> Result<bool> {
        let answers = [Answer::new(word, yes), Answer::new("anything else", no)];
        Ok(self.typed_line(question, &answers)? == word)
    }

    /// Has a line typed, and returns it without blanks around it; says first what it leads to.
    ///
    /// # Errors
    /// [`Kind::Interrupted`] when the question was cut off.
    pub fn typed_line(&self, question: &str, answers: &[Answer]) -> Result<String> {
        self.answers(answers);
        if !self.is_live() {
            return self.line_of_answer(&format!("{question}: "));
        }
        let theme = self.theme();
        let input: Input<'_, String> =
            Input::with_theme(&*theme).with_prompt(question).allow_empty(true);
        Ok(asked(|term| input.interact_text_on(term))?.trim().to_owned())
    }

    /// Draws the line anew that stands above the question now asked, which has so many answers.
    pub fn redraw(&self, line: &str, answers: usize) {
        if self.is_live() {
            // The question itself, and the line that the cursor rests in.
            let up = answers + 2;
            let mut err = std::io::stderr().lock();
            let drawn = format!("\x1b7\x1b[{up}A\r{line}\x1b[K\x1b8");
            let _ = err.write_all(drawn.as_bytes()).and_then(|()| err.flush());
        }
    }

    fn answers(&self, answers: &[Answer]) {
        for Answer { label, then } in answers {
            self.paragraph(&format!("{label}: {then}"), "  ", "    ");
        }
    }

    fn is_live(&self) -> bool {
        self.progress == Progress::Auto
    }

    fn theme(&self) -> Box<dyn Theme> {
        match self.colour {
            true => Box::new(ColorfulTheme::default()),
            false => Box::new(SimpleTheme),
        }
    }

    /// A typed line, without blanks around it.
    fn line_of_answer(&self, question: &str) -> Result<String> {
        interrupt::check(QUESTION)?;
        let mut err = std::io::stderr().lock();
        let _ = write!(err, "{question}").and_then(|()| err.flush());
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

fn cut_off() -> Error {
    Error::new(Kind::Interrupted, QUESTION, "was cut off; nothing was changed")
}

/// Asks with one of dialoguer's questions. What it draws goes out in one piece, so that a countdown
/// may be drawn in between.
fn asked<T>(question: impl FnOnce(&Term) -> dialoguer::Result<T>) -> Result<T> {
    interrupt::check(QUESTION)?;
    let term = Term::buffered_stderr();
    let answer = question(&term);
    let _ = term.flush();
    // dialoguer leaves the cursor hidden when it is interrupted.
    let _ = Term::stderr().show_cursor();
    answer.map_err(|_| cut_off())
}
