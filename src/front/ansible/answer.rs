//! What the module answers: one JSON object.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::error::Error;
use crate::event::{Event, Sink};
use crate::front::ansible::diff::Diff;
use crate::ui::sentences;

/// What is said during a task, kept for the answer.
#[derive(Debug, Default)]
pub(super) struct EventCollector(Mutex<LoggedEvent>);

#[derive(Debug, Default)]
struct LoggedEvent {
    warnings: Vec<String>,
    log: Vec<String>,
}

impl Sink for EventCollector {
    fn emit(&self, event: Event) {
        // A poisoned lock only means that a thread died while it spoke.
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(text) = sentences::event(&event) else { return };
        match innermost(&event) {
            Event::Warning { .. } => said.warnings.push(text),
            Event::Finished { .. } | Event::Verified { .. } | Event::Note { .. } => {
                said.log.push(text);
            }
            Event::Run { .. } | Event::Started { .. } | Event::Rehearsal { .. } => {}
        }
    }
}

/// The event itself, of a rehearsal or not.
fn innermost(event: &Event) -> &Event {
    match event {
        Event::Rehearsal { inner } => innermost(inner),
        other => other,
    }
}

/// What came of a task.
#[derive(Debug, Default)]
pub(super) struct ModuleResult {
    /// What was done, or would be, in a sentence.
    pub(super) msg: String,
    /// Whether the node changed, or would.
    pub(super) changed: bool,
    /// What the checks found.
    pub(super) findings: Vec<Value>,
    /// The rules concerned, when asked for.
    pub(super) diff: Option<Diff>,
    /// What templates may want to know.
    pub(super) facts: Value,
    /// The run that was made or found.
    pub(super) run: Option<String>,
    /// Every step is told.
    pub(super) verbose: bool,
    /// Why it failed.
    pub(super) error: Option<Error>,
}

impl ModuleResult {
    /// A task that failed.
    pub(super) fn failed(error: Error) -> ModuleResult {
        let facts = json!({"version": env!("CARGO_PKG_VERSION")});
        ModuleResult { error: Some(error), facts, ..ModuleResult::default() }
    }

    /// The documented exit code.
    pub(super) fn code(&self) -> u8 {
        self.error.as_ref().map_or(0, |e| e.kind.exit_code())
    }

    /// The answer, with what was said during the task.
    pub(super) fn document(self, heard: EventCollector) -> Value {
        let said = heard.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let code = self.code();
        let mut document = json!({
            "changed": self.changed, "msg": self.msg, "code": code, "findings": self.findings,
            "run": self.run, "ansible_facts": {"proxyshift": self.facts},
        });
        if let Some(error) = &self.error {
            let hint = error.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            document["failed"] = true.into();
            document["kind"] = json!(error.kind);
            document["msg"] = format!("{error}{hint}").into();
        }
        if let Some(diff) = &self.diff {
            document["diff"] = diff.document();
        }
        if !said.warnings.is_empty() {
            document["warnings"] = json!(said.warnings);
        }
        if self.verbose || self.error.is_some() {
            document["log"] = json!(said.log);
        }
        document
    }
}
