//! What of a run may leave the node.
//!
//! The commands of the operator's (hooks, an upgrade, commands that start kube-proxy) may hold any
//! secret, and so may what they print. Of each, only its program is kept. The texts of configuration
//! files are left out.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::StoredRun;
use crate::error::{Error, Result};
use crate::event::{Event, Task};
use crate::node::secrets::{mask_texts, masked_lines};
use crate::plan::change::{Change, Irreversible};
use crate::run::payload::{JournalLine, Payload};
use crate::runtime::Caller;
use crate::state::argv::Argv;
use crate::state::kube_proxy::Controller;
use crate::state::tools::MASK;
use crate::store::Store;
use crate::store::event_log::{LogContent, LoggedEvent};
use crate::store::journal::{self, JOURNAL};
use crate::store::run::Run;

/// The commands of the operator's that a run names.
#[derive(Debug, Default)]
struct OperatorCommands(BTreeSet<String>);

impl OperatorCommands {
    fn of<'a>(
        changes: impl Iterator<Item = &'a Change>,
        events: impl Iterator<Item = &'a LoggedEvent>,
    ) -> OperatorCommands {
        let mut found = BTreeSet::new();
        for change in changes {
            match change {
                Change::Irreversible(Irreversible::Hook { command }) => {
                    found.insert(command.clone());
                }
                Change::Configuration { controller: Controller::Commands(commands), .. } => {
                    let restart = commands.restart.iter();
                    found.extend(
                        [&commands.stop, &commands.start]
                            .into_iter()
                            .chain(restart)
                            .map(ToString::to_string),
                    );
                }
                _ => {}
            }
        }
        for logged in events {
            if let LogContent::Event(Event::Started { task } | Event::Finished { task, .. }) =
                &logged.what
                && let Task::Hook { command } | Task::Upgrade { command } = task
            {
                found.insert(command.clone());
            }
        }
        OperatorCommands(found)
    }

    /// The text without arguments of a command, and without what follows them.
    fn hidden(&self, text: &str) -> String {
        // A command that is one word has no arguments, but its output may follow.
        let commands = self.0.iter().filter(|command| !command.is_empty());
        let first = commands.filter_map(|command| Some((text.find(command.as_str())?, command)));
        match first.min_by_key(|(at, command)| (*at, std::cmp::Reverse(command.len()))) {
            None => masked_lines(text),
            Some((at, command)) if text.len() == command.len() && !command.contains(' ') => {
                masked_lines(&text[at..])
            }
            Some((at, command)) => {
                let program = command.split(' ').next().unwrap_or_default();
                format!("{}{program} {MASK}", masked_lines(&text[..at]))
            }
        }
    }

    fn hide(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.hidden(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.hide(value)),
            Value::Object(fields) => fields.values_mut().for_each(|value| self.hide(value)),
            _ => {}
        }
    }

    fn error(&self, error: &Error) -> Error {
        let is_of_a_command = self.0.contains(&error.object);
        Error {
            kind: error.kind,
            object: self.hidden(&error.object),
            cause: if is_of_a_command { status(&error.cause) } else { self.hidden(&error.cause) },
            hint: error.hint.as_ref().map(|hint| self.hidden(hint)),
        }
    }

    fn event(&self, logged: &LoggedEvent) -> Option<LoggedEvent> {
        let what = match &logged.what {
            LogContent::Error(error) => LogContent::Error(self.error(error)),
            LogContent::Event(event) => {
                let mut value = serde_json::to_value(event).ok()?;
                self.hide(&mut value);
                LogContent::Event(serde_json::from_value(value).ok()?)
            }
        };
        Some(LoggedEvent { what, ..logged.clone() })
    }

    fn change(&self, change: Change) -> Change {
        let bare = |argv: &Argv| {
            let words = vec![argv.program().to_owned(), MASK.to_owned()];
            Argv::try_from(words).unwrap_or_else(|_| argv.clone())
        };
        match change {
            Change::Irreversible(Irreversible::Hook { command }) => {
                Change::Irreversible(Irreversible::Hook { command: self.hidden(&command) })
            }
            Change::Configuration { source, controller: Controller::Commands(mut commands) } => {
                commands.stop = bare(&commands.stop);
                commands.start = bare(&commands.start);
                commands.restart = commands.restart.as_ref().map(bare);
                Change::Configuration { source, controller: Controller::Commands(commands) }
            }
            other => other,
        }
    }
}

/// How a command of the operator's ended, without what it printed.
fn status(cause: &str) -> String {
    let has_code = cause.starts_with("exit status: ") || cause.starts_with("signal: ");
    let kept: Vec<&str> = cause.split(": ").take(if has_code { 2 } else { 1 }).collect();
    kept.join(": ")
}

impl StoredRun {
    /// The same run, without secrets.
    #[must_use]
    pub fn without_secrets(mut self) -> StoredRun {
        let commands = OperatorCommands::of(self.journal.begun.iter(), self.events.iter());
        let begun = std::mem::take(&mut self.journal.begun);
        self.journal.begun = begun.into_iter().map(|change| commands.change(change)).collect();
        self.events = self.events.iter().filter_map(|logged| commands.event(logged)).collect();
        self
    }
}

/// The journal and the event log of `run` without secrets, as JSON lines. A change of the journal is
/// told in words, a line for each object.
///
/// # Errors
/// [`Kind::Store`](crate::error::Kind::Store) when the journal cannot be read; the event log then is in
/// no file either.
pub fn masked_logs(store: &Store, run: &Run) -> Result<(String, String)> {
    let folder = store.folder(&run.id);
    let lines: Vec<JournalLine> =
        if folder.contains(JOURNAL) { journal::read(&folder)? } else { Vec::new() };
    let events = store.events(&run.id);
    let changes = lines.iter().filter_map(|line| match &line.payload {
        Some(Payload::Change(change)) => Some(change),
        _ => None,
    });
    let commands = OperatorCommands::of(changes, events.iter());
    let journal: String = lines.into_iter().map(|line| commands.line(line)).collect();
    let events = events.iter().filter_map(|logged| commands.event(logged));
    let events = events.filter_map(|logged| serde_json::to_string(&logged).ok());
    Ok((journal, events.map(|line| line + "\n").collect()))
}

impl OperatorCommands {
    fn line(&self, line: JournalLine) -> String {
        let what = match line.payload {
            None => Value::Null,
            Some(Payload::Change(change)) => json!({ "change": self.change(change).lines() }),
            Some(Payload::Error(error)) => json!({ "error": self.error(&error) }),
            Some(Payload::Extended { seconds }) => json!({ "extended": seconds }),
        };
        let by = line.by.map(|by| Caller { words: self.hidden(&by.words), ..by });
        let mut value = json!({
            "seq": line.seq, "at": line.at, "boottime_ns": line.boottime_ns, "stage": line.stage,
            "step": line.step, "kind": line.kind, "by": by, "what": what,
        });
        mask_texts(&mut value);
        format!("{value}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const HOOK: &str = "curl -H Authorization:s3cret https://h/";

    fn commands() -> OperatorCommands {
        OperatorCommands([HOOK.to_owned(), "/bin/true".to_owned()].into())
    }

    #[test]
    fn of_a_command_nothing_but_its_program_is_kept() {
        let commands = commands();
        for (text, kept) in [
            (HOOK.to_owned(), "curl <masked>"),
            (format!("the hook {HOOK}: exit status: 1: s3cret"), "the hook curl <masked>"),
            ("/bin/true".into(), "/bin/true"),
            ("/bin/true: s3cret".into(), "/bin/true <masked>"),
            ("x --token s3cret\ny".into(), "x --token <masked>\ny"),
        ] {
            assert_eq!(commands.hidden(&text), kept);
        }
    }

    #[test]
    fn what_a_command_printed_is_left_out() {
        for (cause, kept) in [
            ("exit status: 1: s3cret; more", "exit status: 1"),
            ("signal: 9 (SIGKILL): s3cret", "signal: 9 (SIGKILL)"),
            (
                "did not finish within 5s, and was killed: s3: cret",
                "did not finish within 5s, and was killed",
            ),
        ] {
            let error = commands().error(&Error::new(Kind::Command, HOOK, cause));
            assert_eq!((error.object.as_str(), error.cause.as_str()), ("curl <masked>", kept));
        }
    }
}
