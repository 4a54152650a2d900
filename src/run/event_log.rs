//! Keeps what a run says in the run's folder, for its report.

use std::fs::File;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::error::Error;
use crate::event::{Event, Sink};
use crate::run::apply_edits;
use crate::run::rehearsal::REHEARSAL;
use crate::store::Store;
use crate::store::event_log;
use crate::store::event_log::LoggedEvent;
use crate::store::event_log::What;

/// Passes events on, and keeps those that a report needs. What was said before the run had its
/// folder waits until then, and is dropped if no run comes of it.
pub struct EventLogger<'a> {
    store: &'a Store,
    sink: &'a dyn Sink,
    buffer: Mutex<Buffer>,
}

#[derive(Default)]
struct Buffer {
    /// The tasks in hand, and the time since boot at which each began.
    started: Vec<(String, Duration)>,
    waiting: Vec<LoggedEvent>,
    file: Option<File>,
}

impl<'a> EventLogger<'a> {
    /// Records runs of `store`, and passes everything on to `sink`.
    pub fn new(store: &'a Store, sink: &'a dyn Sink) -> EventLogger<'a> {
        EventLogger { store, sink, buffer: Mutex::default() }
    }

    /// Keeps why the run failed, if there is one.
    pub fn failed(&self, error: &Error) {
        self.buffer().say(What::Error(error.clone()), None);
    }

    fn buffer(&self) -> std::sync::MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    fn say(&mut self, what: What, seconds: Option<f64>) {
        let line = LoggedEvent::now(what, seconds);
        match &mut self.file {
            Some(file) => event_log::write(file, &line),
            None => self.waiting.push(line),
        }
    }

    fn event(&mut self, store: &Store, event: &Event) {
        let mut seconds = None;
        match event {
            Event::Run { id, .. } => {
                self.file = store.event_log(id);
                for line in std::mem::take(&mut self.waiting) {
                    self.file.iter_mut().for_each(|file| event_log::write(file, &line));
                }
                return;
            }
            Event::Started { task } => {
                self.started.push((task.clone(), clock::boottime()));
                return;
            }
            Event::Finished { task, result } => {
                let begun = self.started.iter().rposition(|(name, _)| name == task);
                seconds = begun.map(|place| {
                    let took = clock::boottime().saturating_sub(self.started.remove(place).1);
                    (took.as_secs_f64() * 1000.0).round() / 1000.0
                });
                // The journal has each edit.
                if result == apply_edits::DONE || task.starts_with(REHEARSAL) {
                    return;
                }
            }
            Event::Note { text } if text.starts_with(REHEARSAL) => return,
            Event::Note { .. } | Event::Proved { .. } | Event::Warning { .. } => {}
        }
        self.say(What::Event(event.clone()), seconds);
    }
}

impl Sink for EventLogger<'_> {
    fn emit(&self, event: Event) {
        self.buffer().event(self.store, &event);
        self.sink.emit(event);
    }
}
