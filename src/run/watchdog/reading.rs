//! Reads a run again and again. A run that cannot be read is tried again later; until then, what was
//! read last holds.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::run::watchdog::backoff::Backoff;
use crate::run::watchdog::report::Reporter;
use crate::store::Store;
use crate::store::run::Run;

/// For how long a run may be missing. Nothing can be undone without it.
const MISSING: Duration = Duration::from_secs(3600);

/// The run that a watchdog watches.
pub(super) struct RunReading<'a> {
    store: &'a Path,
    id: &'a str,
    /// The run as it was read last.
    pub(super) last: Option<Run>,
    /// Since when the run has been missing.
    missing: Option<Instant>,
    backoff: Backoff,
    /// When the run is read next.
    next: Instant,
}

impl<'a> RunReading<'a> {
    /// The run `id` of the store in the directory `store`.
    pub(super) fn of(store: &'a Path, id: &'a str) -> RunReading<'a> {
        let (backoff, next) = (Backoff::new(), Instant::now());
        RunReading { store, id, last: None, missing: None, backoff, next }
    }

    /// Reads the run, unless that has just failed. Reports a failure. Returns false when the run has
    /// been missing for too long.
    pub(super) fn update(&mut self, reporter: &mut Reporter<'_>) -> bool {
        if Instant::now() < self.next {
            return true;
        }
        match self.read() {
            Ok(run) => {
                self.last = Some(run);
                self.missing = None;
                self.backoff = Backoff::new();
            }
            Err(e) => {
                let since = *self.missing.get_or_insert_with(Instant::now);
                if e.kind != Kind::NotFound {
                    self.missing = None;
                } else if since.elapsed() >= MISSING {
                    reporter.failure("missing", "is gone, so nobody watches it any more");
                    return false;
                }
                let pause = self.backoff.next();
                self.next = Instant::now() + pause;
                let text = format!("cannot be read: {e}; trying again in {} s", pause.as_secs());
                reporter.failure(&format!("reading {:?}", e.kind), &text);
            }
        }
        true
    }

    fn read(&self) -> Result<Run> {
        let run = Store::read_only(Some(self.store))?.run(self.id)?;
        run.ok_or_else(|| Error::new(Kind::NotFound, self.store.display().to_string(), "not there"))
    }
}
