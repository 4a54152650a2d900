//! The event log of a run: the file from which the run's report is made. It is in the same folder
//! as the run's journal.
//!
//! The log is optional: a run continues if its events cannot be written.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{Store, disk};
use crate::clock;
use crate::error::Error;
use crate::event::Event;

/// The name of the event log in a run's folder.
pub const EVENTS: &str = "events.jsonl";

/// The version of the line format. Lines of a later version are skipped.
const VERSION: u32 = 1;

/// The bytes that are reserved for the event log (`ROOM`), and the size that the event log never
/// exceeds (`MOST`).
const ROOM: u64 = 64 << 10;
const MOST: u64 = 256 << 10;

/// One line of the event log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoggedEvent {
    /// The version of the line's format.
    pub v: u32,
    /// When the line was written: `2026-11-21T20:15:02Z`.
    pub at: String,
    /// How long the event took, in seconds; none for an event without a duration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The event or error that the line records.
    pub what: LogContent,
}

/// What a line of the event log records.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogContent {
    /// An event of the run.
    Event(Event),
    /// The error with which the run failed, written when the run's process ends.
    Error(Error),
}

impl LoggedEvent {
    /// A line that is dated now.
    pub fn now(what: LogContent, seconds: Option<f64>) -> LoggedEvent {
        LoggedEvent { v: VERSION, at: clock::now(), seconds, what }
    }
}

impl Store {
    /// Opens the event log of the run `id` for appending; none if it cannot be opened.
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

    /// The lines in the event log of the run `id`. Unreadable lines are skipped.
    pub fn events(&self, id: &str) -> Vec<LoggedEvent> {
        let text = fs::read_to_string(self.run_dir(id).join(EVENTS)).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<LoggedEvent>(line).ok());
        lines.filter(|logged| logged.v <= VERSION).collect()
    }
}

/// Appends one line, if the event log has space for it.
pub fn write(file: &mut File, logged: &LoggedEvent) {
    let Ok(mut line) = serde_json::to_string(logged) else { return };
    line.push('\n');
    // The whole line is written at once or not at all, because other processes append to the same
    // file.
    if file.metadata().is_ok_and(|meta| meta.len() + (line.len() as u64) <= MOST) {
        let _ = file.write_all(line.as_bytes());
    }
}
