//! Writes the events of a run into the run's folder, for the report.

use std::fs::File;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::error::Error;
use crate::event::{Event, Outcome, Sink, Task};
use crate::store::Store;
use crate::store::event_log;
use crate::store::event_log::LogContent;
use crate::store::event_log::LoggedEvent;

/// Passes every event on to a sink, and logs those that a report needs. Events from before the run
/// has a folder are buffered, and dropped if no run begins.
pub struct EventLogger<'a> {
    store: &'a Store,
    sink: &'a dyn Sink,
    buffer: Mutex<Buffer>,
}

#[derive(Default)]
struct Buffer {
    /// The tasks that have started and not finished, each with the time since boot at which it
    /// started.
    started: Vec<(Task, Duration)>,
    waiting: Vec<LoggedEvent>,
    file: Option<File>,
}

impl<'a> EventLogger<'a> {
    /// Logs the runs of `store`, and passes every event on to `sink`.
    pub fn new(store: &'a Store, sink: &'a dyn Sink) -> EventLogger<'a> {
        EventLogger { store, sink, buffer: Mutex::default() }
    }

    /// Logs `error` as the reason why the run failed, if a run has begun.
    pub fn failed(&self, error: &Error) {
        self.buffer().log(LogContent::Error(error.clone()), None);
    }

    fn buffer(&self) -> std::sync::MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    fn log(&mut self, what: LogContent, seconds: Option<f64>) {
        let line = LoggedEvent::now(what, seconds);
        match &mut self.file {
            Some(file) => event_log::write(file, &line),
            None => self.waiting.push(line),
        }
    }

    fn event(&mut self, store: &Store, event: &Event) {
        let seconds = match event {
            Event::Run { id, .. } => return self.open(store, id),
            Event::Started { task } => {
                self.started.push((task.clone(), clock::boottime()));
                return;
            }
            Event::Finished { task, outcome } => {
                let seconds = self.seconds(task);
                // An applied edit is not logged, because it is in the journal.
                if *outcome == Outcome::Applied {
                    return;
                }
                seconds
            }
            Event::Rehearsal { inner } => match **inner {
                Event::Verified { .. } | Event::Warning { .. } => None,
                _ => return,
            },
            Event::Note { .. } | Event::Verified { .. } | Event::Warning { .. } => None,
        };
        self.log(LogContent::Event(event.clone()), seconds);
    }

    /// Opens the event log of the run `id`, and writes the buffered events to it.
    fn open(&mut self, store: &Store, id: &str) {
        self.file = store.event_log(id);
        for line in std::mem::take(&mut self.waiting) {
            self.file.iter_mut().for_each(|file| event_log::write(file, &line));
        }
    }

    /// How many seconds a finished task took; none if its start was not seen.
    fn seconds(&mut self, task: &Task) -> Option<f64> {
        let index = self.started.iter().rposition(|(started, _)| started == task)?;
        let took = clock::boottime().saturating_sub(self.started.remove(index).1);
        Some((took.as_secs_f64() * 1000.0).round() / 1000.0)
    }
}

impl Sink for EventLogger<'_> {
    fn emit(&self, event: Event) {
        self.buffer().event(self.store, &event);
        self.sink.emit(event);
    }
}
