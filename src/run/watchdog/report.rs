//! What a watchdog reports, and where: in the run's log, in the system log and, of each kind of
//! failure once, on the terminals of all users.

use std::collections::BTreeSet;

use crate::event::Sink;
use crate::run::watchdog::system_log;

/// Reports what becomes of a run.
pub(super) struct Reporter<'a> {
    id: &'a str,
    sink: &'a (dyn Sink + 'a),
    /// The kinds of failures that were broadcast.
    broadcast: BTreeSet<String>,
}

impl<'a> Reporter<'a> {
    /// Reports on the run `id`; `sink` writes to its log.
    pub(super) fn new(id: &'a str, sink: &'a (dyn Sink + 'a)) -> Reporter<'a> {
        Reporter { id, sink, broadcast: BTreeSet::new() }
    }

    /// Reports `text`, which goes on from `run ID`.
    pub(super) fn report(&self, text: &str) {
        self.sink.warning(format!("run {} {text}", self.id));
        system_log::log(&format!("run {} {text}", self.id));
    }

    /// Reports a failure of the kind `kind`.
    pub(super) fn failure(&mut self, kind: &str, text: &str) {
        self.report(text);
        if self.broadcast.insert(kind.to_owned()) {
            system_log::broadcast(&format!("run {} {text}", self.id));
        }
    }
}
