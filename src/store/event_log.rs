//! The events of a run, kept beside its journal for its report.
//!
//! Optional: a run continues where they cannot be written.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{Store, disk};
use crate::clock;
use crate::error::Error;
use crate::event::Event;

/// The file's name in a run's folder.
pub const EVENTS: &str = "events.jsonl";

/// The version of the line format; later ones are skipped.
const VERSION: u32 = 1;

/// The space that is reserved, and the limit of what is written, in bytes.
const ROOM: u64 = 64 << 10;
const MOST: u64 = 256 << 10;

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoggedEvent {
    /// The version of the line format.
    pub v: u32,
    /// The time: `2026-11-21T20:15:02Z`.
    pub at: String,
    /// The duration, of an event with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The content.
    pub what: LogContent,
}

/// The content of a line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogContent {
    /// An event.
    Event(Event),
    /// The error of the failed run; written when its process ends.
    Error(Error),
}

impl LoggedEvent {
    /// A line with the current time.
    pub fn now(what: LogContent, seconds: Option<f64>) -> LoggedEvent {
        LoggedEvent { v: VERSION, at: clock::now(), seconds, what }
    }
}

impl Store {
    /// Opens the file of the run `id` for appending; none if it cannot be opened.
    pub fn event_log(&self, id: &str) -> Option<File> {
        let path = self.run_dir(id).join(EVENTS);
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path).ok()?;
        if is_new {
            let _ = disk::reserve(&file, &path, ROOM);
        }
        Some(file)
    }

    /// The events of the run `id`. Unreadable lines are skipped.
    pub fn events(&self, id: &str) -> Vec<LoggedEvent> {
        let text = fs::read_to_string(self.run_dir(id).join(EVENTS)).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<LoggedEvent>(line).ok());
        lines.filter(|logged| logged.v <= VERSION).collect()
    }
}

/// Writes one line, if there is space.
pub fn write(file: &mut File, logged: &LoggedEvent) {
    let Ok(mut line) = serde_json::to_string(logged) else { return };
    line.push('\n');
    // All of it or nothing: other processes append to the same file.
    if file.metadata().is_ok_and(|meta| meta.len() + (line.len() as u64) <= MOST) {
        let _ = file.write_all(line.as_bytes());
    }
}
