//! What a run said while it worked, kept beside its journal for whoever reads of it later.
//!
//! Nothing depends on it: it is written as well as may be, and where it cannot be, the run goes on.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{Store, disk};
use crate::clock;
use crate::error::Error;
use crate::event::Event;

/// The file in a run's folder.
pub const SAID: &str = "events.jsonl";

/// The version of the line format; lines of a later one are passed over.
const VERSION: u32 = 1;

/// The room set aside for it, and the most that is ever written, in bytes.
const ROOM: u64 = 64 << 10;
const MOST: u64 = 256 << 10;

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoggedEvent {
    /// The version of the line format.
    pub v: u32,
    /// When: `2026-11-21T20:15:02Z`.
    pub at: String,
    /// How long it took, for what took time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// What.
    pub what: What,
}

/// What was said.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// On the way.
    Event(Event),
    /// At the end of the process that worked on the run: why it failed.
    Error(Error),
}

impl LoggedEvent {
    /// A line of now.
    pub fn now(what: What, seconds: Option<f64>) -> LoggedEvent {
        LoggedEvent { v: VERSION, at: clock::now(), seconds, what }
    }
}

impl Store {
    /// The file of the run `id`, to write to; none where it cannot be had.
    pub fn event_log(&self, id: &str) -> Option<File> {
        let path = self.run_dir(id).join(SAID);
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        let file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(&path).ok()?;
        if is_new {
            let _ = disk::reserve(&file, &path, ROOM);
        }
        Some(file)
    }

    /// What the run `id` said; nothing where nothing was kept. A line that cannot be read is left
    /// out.
    pub fn events(&self, id: &str) -> Vec<LoggedEvent> {
        let text = fs::read_to_string(self.run_dir(id).join(SAID)).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<LoggedEvent>(line).ok());
        lines.filter(|said| said.v <= VERSION).collect()
    }
}

/// Writes one line, as long as there is room.
pub fn write(file: &mut File, said: &LoggedEvent) {
    let Ok(mut line) = serde_json::to_string(said) else { return };
    line.push('\n');
    // Whole or not at all: others append to the same file.
    if file.metadata().is_ok_and(|meta| meta.len() + (line.len() as u64) <= MOST) {
        let _ = file.write_all(line.as_bytes());
    }
}
