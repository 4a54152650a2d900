//! The result of an Ansible task: one JSON object.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::error::Error;
use crate::event::{Event, Sink};
use crate::front::ansible::diff::Diff;
use crate::ui::sentences;
use crate::visible::visible;

/// The events of a task, collected as sentences for the result.
#[derive(Debug, Default)]
pub(super) struct EventCollector(Mutex<Collected>);

#[derive(Debug, Default)]
struct Collected {
    warnings: Vec<String>,
    log: Vec<String>,
}

impl Sink for EventCollector {
    fn emit(&self, event: Event) {
        // A poisoned lock can still be used: it only means that a thread panicked while it emitted
        // an event.
        let mut collected = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(text) = sentences::event(&event) else { return };
        let text = visible(&text).into_owned();
        match innermost(&event) {
            Event::Warning { .. } => collected.warnings.push(text),
            Event::Finished { .. } | Event::Verified { .. } | Event::Note { .. } => {
                collected.log.push(text);
            }
            Event::Run { .. } | Event::Started { .. } | Event::Rehearsal { .. } => {}
        }
    }
}

/// The event itself, without the wrapper that marks an event of a rehearsal.
fn innermost(event: &Event) -> &Event {
    match event {
        Event::Rehearsal { inner } => innermost(inner),
        other => other,
    }
}

/// The result of a task, before it becomes JSON.
#[derive(Debug, Default)]
pub(super) struct ModuleResult {
    /// A sentence on what the task changed, or would change.
    pub(super) msg: String,
    /// Whether the task changed the node, or would change it.
    pub(super) changed: bool,
    /// The findings of the checks, if the state ran checks.
    pub(super) findings: Vec<Value>,
    /// The changed objects before and after, in diff mode.
    pub(super) diff: Option<Diff>,
    /// The facts that playbooks can use in templates, below `ansible_facts.proxyshift`.
    pub(super) facts: Value,
    /// The id of the run that the task started or found.
    pub(super) run: Option<String>,
    /// Whether the result has the log of all steps even if the task succeeds.
    pub(super) verbose: bool,
    /// The error that failed the task; none if the task succeeded.
    pub(super) error: Option<Error>,
}

impl ModuleResult {
    /// The result of a task that failed with `error`.
    pub(super) fn failed(error: Error) -> ModuleResult {
        let facts = json!({"version": env!("CARGO_PKG_VERSION")});
        ModuleResult { error: Some(error), facts, ..ModuleResult::default() }
    }

    /// The exit code that the documentation gives for the error; 0 without one.
    pub(super) fn code(&self) -> u8 {
        self.error.as_ref().map_or(0, |e| e.kind.exit_code())
    }

    /// The result as a JSON object, with the events of the task.
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
            document["msg"] = visible(&format!("{error}{hint}")).into();
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
