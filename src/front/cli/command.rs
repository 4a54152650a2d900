//! What every verb gets: the arguments, the user interface, and the context of a run.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::event::{Sink, Task};
use crate::front::cli::args::Args;
use crate::node::observe::observe;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::run::Context;
use crate::run::event_log::EventLogger;
use crate::run::snapshot::summary;
use crate::run::stored::{beside_rules, parse_snapshot};
use crate::state::NodeState;
use crate::store::Store;
use crate::store::snapshots::Snapshot;
use crate::ui::page::Page;
use crate::ui::{Ui, prompt};

/// One call of the program: its arguments and its user interface.
pub(in crate::front) struct Invocation<'a> {
    pub(in crate::front) args: &'a Args,
    pub(in crate::front) ui: &'static Ui,
}

impl Invocation<'_> {
    /// The store, for reading. A store that does not exist is not created, and reads as empty.
    pub(in crate::front) fn store(&self) -> Result<Store> {
        Store::read_only(self.args.store.as_deref())
    }

    /// The store, for writing. It is created if it does not exist.
    pub(in crate::front) fn store_to_write(&self) -> Result<Store> {
        Store::open(self.args.store.as_deref())
    }

    pub(in crate::front) fn sink(&self) -> &dyn Sink {
        self.ui
    }

    /// True when a person can answer questions: the program is on a terminal, and its output is not
    /// for programs.
    pub(in crate::front) fn attended(&self) -> bool {
        !self.ui.for_programs() && prompt::attended()
    }

    /// Succeeds if `--yes` was given, or a person can answer the questions of `verb`.
    ///
    /// # Errors
    /// [`Kind::Usage`]; its hint names `--yes` and the alternative `otherwise`.
    pub(in crate::front) fn can_ask(&self, verb: &str, otherwise: &str) -> Result<()> {
        if self.args.yes || self.attended() {
            return Ok(());
        }
        Err(Error::new(Kind::Usage, verb, "nobody is there to be asked")
            .hint(format!("say --yes, or {otherwise}")))
    }

    /// Opens the store and calls `work` with the context of a run.
    pub(in crate::front) fn with_context<T>(
        &self,
        work: impl FnOnce(&Context<'_>) -> Result<T>,
    ) -> Result<T> {
        as_root()?;
        let (tools, store, catalogue) =
            (Tools::find(), self.store_to_write()?, Catalogue::builtin()?);
        let recorder = EventLogger::new(&store, self.ui);
        let context = Context {
            tools: &tools,
            store: &store,
            catalogue: &catalogue,
            sink: &recorder,
            lock_wait: Duration::from_secs(self.args.lock_wait),
        };
        work(&context).inspect_err(|e| recorder.failed(e))
    }

    /// The node state in the snapshot that `--snapshot` names; without that option, the state of
    /// the live node.
    pub(in crate::front) fn state(&self, snapshot: Option<&str>) -> Result<NodeState> {
        match snapshot {
            Some(name) => parse_snapshot(Snapshot::load(&self.snapshot(name)?.dir)?.files),
            None => {
                let task = Task::Capture;
                self.sink().started(&task);
                let state = observe(&Tools::find(), self.ui)?;
                self.sink().finished(&task, summary(&state));
                Ok(state)
            }
        }
    }

    /// What the snapshot `name` holds, and why a part of the node is missing in it, if so. Without that
    /// part there are no rules, as in [`capture_beside_rules`].
    ///
    /// [`capture_beside_rules`]: crate::node::capture::capture_beside_rules
    pub(in crate::front) fn snapshot_state(
        &self,
        name: &str,
    ) -> Result<(NodeState, Option<Error>)> {
        let loaded = Snapshot::load_partly(&self.snapshot(name)?.dir)?;
        let files = match &loaded.unread {
            None => loaded.files,
            Some(_) => beside_rules(loaded.files),
        };
        Ok((parse_snapshot(files)?, loaded.unread))
    }

    /// The snapshot with this name or path. A path has a `/`, and needs no store: what lies in the
    /// working directory must not stand for a snapshot of the store.
    pub(in crate::front) fn snapshot(&self, name: &str) -> Result<Snapshot> {
        if name.contains('/') { Snapshot::at(name) } else { self.store()?.find(name) }
    }

    /// Prints a result: `document` if the output is for programs, otherwise `text`, which is a page
    /// or one line.
    pub(in crate::front) fn answer(&self, document: &impl serde::Serialize, text: impl Into<Page>) {
        match self.ui.output {
            crate::ui::OutputFormat::Json => self.ui.print_json(document),
            crate::ui::OutputFormat::Text => self.ui.print(text),
        }
    }
}

/// Fails unless this process is root.
pub(in crate::front) fn as_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(Kind::Permission, "this node", "only root may change it").hint(
        "run as root; with `--snapshot ./DIR` (or a bundle), `check`, `plan` and `rehearse` need no rights",
    ))
}
