//! What the core says while it works; the user interface decides how it looks.

use serde::{Deserialize, Serialize};

/// One thing that happened. The core emits these and never prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A run begins, or is gone on with.
    Run {
        /// The run.
        id: String,
        /// Its verb: `cleanup`, `migrate`, `check --fix`.
        verb: String,
    },
    /// A piece of work begins.
    Started {
        /// What is being done, as a present participle: `capturing the node`.
        task: String,
    },
    /// The piece of work that was last started is done.
    Finished {
        /// The same words as when it was started.
        task: String,
        /// What came of it, in a few words.
        result: String,
    },
    /// Something was shown to hold, with the evidence.
    Proved {
        /// The claim.
        what: String,
        /// The evidence for it.
        evidence: String,
    },
    /// Something the operator should know; nothing failed.
    Note {
        /// The sentence.
        text: String,
    },
    /// Something that may need the operator; the work goes on.
    Warning {
        /// The sentence.
        text: String,
    },
}

/// Where events go.
pub trait Sink: Sync {
    /// Takes one event; must not fail or block for long.
    fn emit(&self, event: Event);
}

impl dyn Sink + '_ {
    /// A piece of work begins.
    pub fn started(&self, task: &str) {
        self.emit(Event::Started { task: task.into() });
    }

    /// The piece of work ended with `result`.
    pub fn finished(&self, task: &str, result: impl Into<String>) {
        self.emit(Event::Finished { task: task.into(), result: result.into() });
    }

    /// The run `id` of `verb` begins, or is gone on with.
    pub fn run(&self, id: &str, verb: &str) {
        self.emit(Event::Run { id: id.into(), verb: verb.into() });
    }

    /// Something was shown to hold.
    pub fn proved(&self, what: impl Into<String>, evidence: impl Into<String>) {
        self.emit(Event::Proved { what: what.into(), evidence: evidence.into() });
    }

    /// Something the operator should know.
    pub fn note(&self, text: impl Into<String>) {
        self.emit(Event::Note { text: text.into() });
    }

    /// Something that may need the operator.
    pub fn warning(&self, text: impl Into<String>) {
        self.emit(Event::Warning { text: text.into() });
    }
}

/// Takes events and forgets them.
pub struct Silent;

impl Sink for Silent {
    fn emit(&self, _: Event) {}
}
