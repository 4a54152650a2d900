//! What the core says while it works; the user interface decides how it looks.

use serde::Serialize;

/// One thing that happened. The core emits these and never prints.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
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

    /// A task begins; returns the event's words for [`Sink::finished`].
    fn started(&self, task: &str) {
        self.emit(Event::Started { task: task.into() });
    }

    /// The task ended with `result`.
    fn finished(&self, task: &str, result: impl Into<String>)
    where
        Self: Sized,
    {
        self.emit(Event::Finished { task: task.into(), result: result.into() });
    }
}

/// Takes events and forgets them.
pub struct Silent;

impl Sink for Silent {
    fn emit(&self, _: Event) {}
}
