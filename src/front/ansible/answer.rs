//! The result of the module: one JSON object.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::error::Error;
use crate::event::{Event, Sink};
use crate::front::ansible::diff::Diff;
use crate::ui::sentences;

/// The events of a task, collected for the result.
#[derive(Debug, Default)]
pub(super) struct EventCollector(Mutex<Collected>);

#[derive(Debug, Default)]
struct Collected {
    warnings: Vec<String>,
    log: Vec<String>,
}

impl Sink for EventCollector {
    fn emit(&self, event: Event) {
        // A poisoned lock only means that a thread panicked while it emitted.
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(text) = sentences::event(&event) else { return };
        match innermost(&event) {
            Event::Warning { .. } => collected.warnings.push(text),
            Event::Finished { .. } | Event::Verified { .. } | Event::Note { .. } => {
                collected.log.push(text);
            }
            Event::Run { .. } | Event::Started { .. } | Event::Rehearsal { .. } => {}
        }
    }
}

/// The event itself, without the mark of a rehearsal.
fn innermost(event: &Event) -> &Event {
    match event {
        Event::Rehearsal { inner } => innermost(inner),
        other => other,
    }
}

/// The result of a task.
#[derive(Debug, Default)]
pub(super) struct ModuleResult {
    /// What changed, or would change, in a sentence.
    pub(super) msg: String,
    /// Whether the node changed, or would.
    pub(super) changed: bool,
    /// The findings of the checks.
    pub(super) findings: Vec<Value>,
    /// The rules concerned, in diff mode.
    pub(super) diff: Option<Diff>,
    /// Facts for templates.
    pub(super) facts: Value,
    /// The run that was created or found.
    pub(super) run: Option<String>,
    /// Adds the log of all steps.
    pub(super) verbose: bool,
    /// The cause of a failure.
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

    /// The result as JSON, with the events of the task.
    pub(super) fn document(self, events: EventCollector) -> Value {
        let collected = events.0.into_inner().unwrap_or_else(PoisonError::into_inner);
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
        if !collected.warnings.is_empty() {
            document["warnings"] = json!(collected.warnings);
        }
        if self.verbose || self.error.is_some() {
            document["log"] = json!(collected.log);
        }
        document
    }
}
