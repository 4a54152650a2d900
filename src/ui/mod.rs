//! Shows events and results to a person or a program: on a terminal, as plain lines, as JSON lines,
//! or not at all.
//!
//! Progress goes to standard error, results to standard output. Text is shown through
//! [`visible`]: here, in [`Page`], or in [`json`]. The styles are added after that, so the only
//! escape sequences on the terminal are ours.

pub mod json;
pub mod page;
pub mod prompt;
mod select;
pub mod sentences;
pub mod table;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use console::{Style, Term};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, Kind};
use crate::event::{Event, Sink, Task};
use crate::visible::visible;
use page::Page;

/// The form of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OutputFormat {
    /// Text for people; it may change.
    #[default]
    Text,
    /// One document with a schema and a version.
    Json,
}

/// The form of progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Progress {
    /// Live on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// One line an event, nothing redrawn: for logs and screen readers.
    Plain,
    /// One JSON object a line.
    Json,
    /// Nothing.
    None,
}

/// The user interface: shows events, results and errors.
pub struct Ui {
    /// The form of results.
    pub output: OutputFormat,
    progress: Progress,
    colour: bool,
    style: Styles,
    /// The tasks that are running, the innermost last.
    tasks: Mutex<Vec<RunningTask>>,
    /// Why a result could not be written.
    unwritten: Mutex<Option<io::Error>>,
}

/// An event as a line of JSON that can be read without the lines before it.
#[derive(serde::Serialize)]
struct EventLine<'a> {
    schema: &'static str,
    version: u32,
    #[serde(flatten)]
    event: &'a Event,
    /// The event as a sentence for people. A note or warning has none here, because its text is a
    /// sentence already.
    #[serde(skip_serializing_if = "Option::is_none")]
    sentence: Option<String>,
}

impl<'a> From<&'a Event> for EventLine<'a> {
    fn from(event: &'a Event) -> Self {
        let sentence = match event {
            Event::Note { .. } | Event::Warning { .. } => None,
            _ => sentences::event(event),
        };
        EventLine { schema: "proxyshift.event", version: 1, event, sentence }
    }
}

/// A task that has started and is not over.
struct RunningTask {
    task: Task,
    of_rehearsal: bool,
    start: Instant,
    spinner: Option<ProgressBar>,
}

/// The mark in front of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineMark {
    /// For something that is done or verified.
    Good,
    /// For something that needs attention.
    Warn,
    /// For something that failed.
    Bad,
}

impl LineMark {
    fn symbol(self) -> &'static str {
        match self {
            LineMark::Good => "✓",
            LineMark::Warn => "!",
            LineMark::Bad => "✗",
        }
    }
}

/// The styles for text on the terminal. Without colour, they all change nothing.
#[derive(Debug, Clone)]
struct Styles {
    good: Style,
    warn: Style,
    bad: Style,
    /// For the less important part of a line.
    dim: Style,
    /// For the most important part of a line.
    strong: Style,
}

impl Styles {
    fn new(colour: bool) -> Self {
        let style = || Style::new().for_stderr().force_styling(colour);
        Styles {
            good: style().green(),
            warn: style().yellow(),
            bad: style().red().bold(),
            dim: style().dim(),
            strong: style().bold(),
        }
    }
}

/// Prints a line on standard error, for a process without options.
pub fn say_plainly(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", visible(text));
}

/// Prints a document as one line of JSON on standard output, for a process without options. If it
/// cannot be written, standard error says why.
pub fn print_line(document: &impl serde::Serialize) {
    if let Err(e) = json::write_line(io::stdout().lock(), document) {
        say_plainly(&format!("standard output: {e}"));
    }
}

impl Ui {
    /// A user interface with these options. It uses colour only on a terminal, and only if neither
    /// `no_color` nor the environment variable `NO_COLOR` (<https://no-color.org>) is set.
    pub fn new(output: OutputFormat, progress: Progress, no_color: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let wanted = !no_color && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let progress = match progress {
            Progress::Auto if !terminal || dumb => Progress::Plain,
            other => other,
        };
        let colour = terminal && wanted && !dumb;
        // dialoguer and indicatif use colour if this is set.
        console::set_colors_enabled_stderr(colour);
        terminal::remember();
        Ui {
            output,
            progress,
            colour,
            style: Styles::new(colour),
            tasks: Mutex::default(),
            unwritten: Mutex::default(),
        }
    }

    /// True when a program reads the results or the progress. Then no questions are asked, results
    /// are one JSON document, and progress is nothing but JSON lines.
    pub fn for_programs(&self) -> bool {
        self.output == OutputFormat::Json || self.progress == Progress::Json
    }

    /// Prints a result on standard output.
    pub fn print(&self, page: impl Into<Page>) {
        self.print_script(page.into().text());
    }

    /// Prints a script on standard output as it is: text of this program alone, for a shell.
    pub fn print_script(&self, text: &str) {
        let mut out = io::stdout().lock();
        self.remember(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
    }

    /// Prints a document as JSON on standard output.
    pub fn print_json(&self, document: &impl serde::Serialize) {
        self.remember(json::write(io::stdout().lock(), document));
    }

    /// Remembers that a result could not be written. A pipe that nobody reads any more is no
    /// failure: its reader has seen what it wanted.
    fn remember(&self, written: io::Result<()>) {
        if let Err(e) = written
            && e.kind() != io::ErrorKind::BrokenPipe
        {
            lock(&self.unwritten).get_or_insert(e);
        }
    }

    /// The error of a result that could not be written to standard output; none if all was.
    pub fn output_error(&self) -> Option<Error> {
        lock(&self.unwritten).as_ref().map(|e| Error::new(Kind::Blocked, "standard output", e))
    }

    /// Prints an error, as text or as JSON. Returns the exit code for it.
    pub fn error(&self, error: &Error) -> u8 {
        let code = error.kind.exit_code();
        self.stop_spinner();
        let document = || {
            serde_json::json!({
                "schema": "proxyshift.error", "version": 1, "code": code, "kind": error.kind,
                "object": error.object, "cause": error.cause, "hint": error.hint,
            })
        };
        if self.output == OutputFormat::Json && lock(&self.unwritten).is_none() {
            self.print_json(&document());
        } else if self.progress == Progress::Json {
            let _ = json::write_line(io::stderr().lock(), &document());
        } else {
            let label = match error.kind {
                Kind::Interrupted => self.style.warn.apply_to("stopped:"),
                _ => self.style.bad.apply_to("error:"),
            };
            self.raw_line(&format!("{label} {}", visible(&error.to_string())));
            if let Some(hint) = &error.hint {
                let label = self.style.strong.apply_to(" next:");
                self.raw_line(&format!("{label} {}", visible(hint)));
            }
        }
        code
    }

    /// Stops the spinner, and restores the terminal.
    pub fn close(&self) {
        self.stop_spinner();
        terminal::restore();
    }

    /// Prints a page, or one line, on standard error.
    pub fn say(&self, page: impl Into<Page>) {
        let _ = io::stderr().lock().write_all(page.into().text().as_bytes());
    }

    /// Prints a paragraph on standard error, wrapped at [`Self::width`].
    pub fn paragraph(&self, text: &str, first: &str, next: &str) {
        let mut page = Page::new();
        page.folded(text, self.width(), first, next);
        self.say(page);
    }

    /// As [`Self::paragraph`], with a mark in front.
    pub fn marked(&self, mark: LineMark, text: &str) {
        let mut page = Page::new();
        page.folded(text, self.width(), &format!("  {} ", mark.symbol()), "    ");
        // The mark is the first character that is not blank.
        let text = page.text().replacen(mark.symbol(), &self.styled(mark), 1);
        self.raw_line(text.trim_end_matches('\n'));
    }

    /// Prints a heading on standard error, after an empty line.
    pub fn heading(&self, text: &str) {
        self.raw_line(&format!("\n{}", self.style.strong.apply_to(visible(text))));
    }

    /// The width at which text is wrapped: that of a page, or that of the terminal if the terminal
    /// is narrower.
    pub fn width(&self) -> usize {
        let columns = Term::stderr().size_checked().map(|(_, columns)| usize::from(columns));
        columns.filter(|c| *c > 0).map_or(page::WIDTH, |c| c.min(page::WIDTH))
    }

    /// Prints text on standard error as it is, even escape sequences.
    fn raw_line(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    fn styled(&self, mark: LineMark) -> String {
        let style = match mark {
            LineMark::Good => &self.style.good,
            LineMark::Warn => &self.style.warn,
            LineMark::Bad => &self.style.bad,
        };
        style.apply_to(mark.symbol()).to_string()
    }

    fn stop_spinner(&self) {
        for task in lock(&self.tasks).drain(..) {
            if let Some(spinner) = task.spinner {
                spinner.finish_and_clear();
            }
        }
    }

    fn spinner(&self, name: &str) -> Option<ProgressBar> {
        if self.progress != Progress::Auto {
            return None;
        }
        let target = ProgressDrawTarget::term(Term::stderr(), 12);
        let bar = ProgressBar::with_draw_target(None, target);
        // The template is a constant, so it always parses.
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.set_message(visible(name).into_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Some(bar)
    }

    /// Prints a line on standard error, with a mark if there is one, above the spinner if one is
    /// drawn.
    fn above_spinner(&self, mark: Option<LineMark>, text: &str) {
        let mark = mark.map_or_else(|| "  ".to_owned(), |mark| format!("{} ", self.styled(mark)));
        let line = format!("  {mark}{}", visible(text));
        match lock(&self.tasks).last().and_then(|t| t.spinner.clone()) {
            Some(spinner) => spinner.suspend(|| self.raw_line(&line)),
            None => self.raw_line(&line),
        }
    }

    fn show(&self, event: &Event, of_rehearsal: bool) {
        let worded = |text: String| {
            if of_rehearsal { sentences::rehearsed(&text) } else { text }
        };
        match event {
            Event::Run { .. } => {}
            Event::Started { task } => {
                self.started(task, of_rehearsal, &worded(sentences::task(task)));
            }
            Event::Finished { task, outcome } => {
                self.finished(task, of_rehearsal, &worded(sentences::finished(task, outcome)));
            }
            Event::Verified { claim } => {
                self.above_spinner(Some(LineMark::Good), &worded(sentences::claim(claim)));
            }
            Event::Note { text } => self.above_spinner(None, &worded(text.clone())),
            Event::Warning { text } => {
                self.above_spinner(Some(LineMark::Warn), &worded(text.clone()));
            }
            Event::Rehearsal { inner } => self.show(inner, true),
        }
    }

    fn started(&self, task: &Task, of_rehearsal: bool, text: &str) {
        if self.progress == Progress::Plain {
            self.say(format!("  … {text}"));
        }
        let mut tasks = lock(&self.tasks);
        // Only one spinner is drawn at a time, so the outer task's is cleared before the next is
        // drawn.
        if let Some(outer) = tasks.last().and_then(|t| t.spinner.as_ref()) {
            outer.finish_and_clear();
        }
        let (task, start) = (task.clone(), Instant::now());
        tasks.push(RunningTask { task, of_rehearsal, start, spinner: self.spinner(text) });
    }

    fn finished(&self, task: &Task, of_rehearsal: bool, text: &str) {
        let mut tasks = lock(&self.tasks);
        let index = tasks.iter().rposition(|t| t.task == *task && t.of_rehearsal == of_rehearsal);
        let Some(index) = index else { return };
        let running = tasks.remove(index);
        drop(tasks);
        if let Some(spinner) = running.spinner {
            spinner.finish_and_clear();
        }
        let took = running.start.elapsed().as_secs_f64();
        let took = if took >= 0.1 { format!(" ({took:.1} s)") } else { String::new() };
        let (mark, text) = (self.styled(LineMark::Good), visible(text));
        self.raw_line(&format!("  {mark} {text}{}", self.style.dim.apply_to(took)));
    }
}

/// Locks `mutex`, even if it is poisoned, because poison only means that another thread panicked
/// while it printed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Sink for Ui {
    fn emit(&self, event: Event) {
        match self.progress {
            Progress::None => {}
            Progress::Json => {
                let _ = json::write_line(io::stderr().lock(), &EventLine::from(&event));
            }
            Progress::Auto | Progress::Plain => self.show(&event, false),
        }
    }
}
