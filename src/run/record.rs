//! Keeps what a run says in the run's folder, for its report.

use std::fs::File;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::error::Error;
use crate::event::{Event, Sink};
use crate::run::execute;
use crate::run::rehearsal::REHEARSAL;
use crate::store::Store;
use crate::store::said::{self, Said, What};

/// Passes events on, and keeps those that a report needs. What was said before the run had its
/// folder waits until then, and is dropped if no run comes of it.
pub struct Recorder<'a> {
    store: &'a Store,
    sink: &'a dyn Sink,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The tasks in hand, and the time since boot at which each began.
    started: Vec<(String, Duration)>,
    waiting: Vec<Said>,
    file: Option<File>,
}

impl<'a> Recorder<'a> {
    /// Records runs of `store`, and passes everything on to `sink`.
    pub fn new(store: &'a Store, sink: &'a dyn Sink) -> Recorder<'a> {
        Recorder { store, sink, kept: Mutex::default() }
    }

    /// Keeps why the run failed, if there is one.
    pub fn failed(&self, error: &Error) {
        self.kept().say(What::Error(error.clone()), None);
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn say(&mut self, what: What, seconds: Option<f64>) {
        let line = Said::now(what, seconds);
        match &mut self.file {
            Some(file) => said::write(file, &line),
            None => self.waiting.push(line),
        }
    }

    fn event(&mut self, store: &Store, event: &Event) {
        let mut seconds = None;
        match event {
            Event::Run { id, .. } => {
                self.file = store.saying(id);
                for line in std::mem::take(&mut self.waiting) {
                    self.file.iter_mut().for_each(|file| said::write(file, &line));
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
                if result == execute::DONE || task.starts_with(REHEARSAL) {
                    return;
                }
            }
            Event::Note { text } if text.starts_with(REHEARSAL) => return,
            Event::Note { .. } | Event::Proved { .. } | Event::Warning { .. } => {}
        }
        self.say(What::Event(event.clone()), seconds);
    }
}

impl Sink for Recorder<'_> {
    fn emit(&self, event: Event) {
        self.kept().event(self.store, &event);
        self.sink.emit(event);
    }
}
