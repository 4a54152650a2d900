//! The command line: one file a verb.

pub mod args;
pub(super) mod check;
pub(super) mod cleanup;
pub mod completions;
pub(super) mod confirm;
pub(super) mod confirm_prompt;
pub(super) mod guard;
mod help;
pub(super) mod migrate;
pub(super) mod plan;
pub(super) mod rehearse;
pub(super) mod report;
pub(super) mod rollback;
mod signals;
pub(super) mod snapshot;
pub(super) mod status;
pub mod usage;
pub(super) mod write_config;

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::event::Sink;
use crate::front::cli::args::Args;
use crate::front::cli::args::Verb;
use crate::node::observe::observe;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::run::Context;
use crate::run::event_log::EventLogger;
use crate::run::snapshot::{parse_snapshot, summary};
use crate::run::watchdog;
use crate::state::NodeState;
use crate::store::snapshots::Snapshot;
use crate::store::{DEFAULT_DIR, Store};
use crate::ui::{Ui, prompt};

/// Carries out the command line; returns the exit code.
pub fn run(args: &Args) -> u8 {
    // It lasts as long as the program, and so may be spoken through by who ends it.
    let ui: &'static Ui = Box::leak(Box::new(Ui::new(args.output, args.progress, args.no_color)));
    let command = Command { args, ui };
    if let Err(e) = signals::watch(&command) {
        return ui.error(&e);
    }
    command.speak_of_pending();
    let result = match &args.verb {
        None => crate::front::wizard::run(&command),
        Some(Verb::Check(options)) => check::run(&command, options),
        Some(Verb::Snapshot(verb)) => snapshot::run(&command, verb),
        Some(Verb::Plan(options)) => plan::run(&command, options),
        Some(Verb::Rehearse(options)) => rehearse::run(&command, options),
        Some(Verb::Migrate(options)) => migrate::run(&command, options),
        Some(Verb::Cleanup(options)) => cleanup::run(&command, options),
        Some(Verb::Guard(options)) => guard::run(&command, options),
        Some(Verb::Resume) => cleanup::resume(&command),
        Some(Verb::Confirm) => confirm::confirm(&command),
        Some(Verb::Extend { time }) => confirm::extend(&command, *time),
        Some(Verb::Watchdog { run }) => confirm::watchdog(&command, run),
        Some(Verb::Rollback(options)) => rollback::run(&command, options.to.as_deref()),
        Some(Verb::Status) => status::run(&command),
        Some(Verb::Report { run }) => report::run(&command, run.as_deref()),
        Some(Verb::Completions { shell }) => completions::run(&command, *shell),
        Some(Verb::Inside { job, dir, to }) => {
            return crate::run::sandbox::JsonLines::end(crate::run::sandbox::inside(
                *job, dir, *to,
            ));
        }
    };
    result.unwrap_or_else(|error| match error.kind {
        Kind::Interrupted => signals::end(&command, error),
        _ => ui.error(&error),
    })
}

/// What every verb has: the arguments and the user interface.
pub(super) struct Command<'a> {
    pub(super) args: &'a Args,
    pub(super) ui: &'static Ui,
}

impl Command<'_> {
    pub(super) fn store(&self) -> Result<Store> {
        Store::open(self.args.store.as_deref())
    }

    /// A run that is pending is the first thing to speak of; the verbs that resolve it do so
    /// themselves. When the process that stood by for it was killed, whoever looks has another.
    fn speak_of_pending(&self) {
        let dir = self.args.store.as_deref().unwrap_or(Path::new(DEFAULT_DIR));
        let resolves = matches!(
            self.args.verb,
            None | Some(
                Verb::Inside { .. }
                    | Verb::Watchdog { .. }
                    | Verb::Report { .. }
                    | Verb::Completions { .. }
                    | Verb::Resume
                    | Verb::Rollback(_)
                    | Verb::Confirm
                    | Verb::Extend { .. }
            )
        );
        // A look at someone else's store, or at none, must not make one.
        if resolves || !dir.join("runs").is_dir() || !rustix::process::geteuid().is_root() {
            return;
        }
        let Ok(Some(run)) = self.store().and_then(|s| s.pending()) else { return };
        match self.with_context(watchdog::ensure_running) {
            Ok(None) => {}
            Ok(Some(run)) => self.sink().warning(format!(
                "the process that stood by to undo run {} was gone; another one stands by now",
                run.id
            )),
            Err(e) => self.sink().warning(format!("nobody stands by to undo run {}: {e}", run.id)),
        }
        if !matches!(self.args.verb, Some(Verb::Status)) {
            self.sink().warning(status::pending(&run));
        }
    }

    fn sink(&self) -> &dyn Sink {
        self.ui
    }

    /// True when there is a person to ask: on a terminal, and no program reads what is printed.
    fn attended(&self) -> bool {
        !self.ui.for_programs() && prompt::attended()
    }

    /// Holds when a question of `verb` need not be asked, or can be.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming `--yes` and what else there is to do.
    fn can_ask(&self, verb: &str, otherwise: &str) -> Result<()> {
        if self.args.yes || self.attended() {
            return Ok(());
        }
        Err(Error::new(Kind::Usage, verb, "nobody is there to be asked")
            .hint(format!("say --yes, or {otherwise}")))
    }

    /// Calls `work` with what a run needs.
    pub(super) fn with_context<T>(
        &self,
        work: impl FnOnce(&Context<'_>) -> Result<T>,
    ) -> Result<T> {
        as_root()?;
        let (tools, store, catalogue) = (Tools::find(), self.store()?, Catalogue::builtin()?);
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

    /// The state that `--snapshot` names, or the live node's.
    fn state(&self, snapshot: Option<&str>) -> Result<NodeState> {
        match snapshot {
            Some(name) => parse_snapshot(Snapshot::load(&self.snapshot_dir(name)?)?.files),
            None => {
                let task = "capturing the node";
                self.sink().started(task);
                let state = observe(&Tools::find(), self.ui)?;
                self.sink().finished(task, summary(&state));
                Ok(state)
            }
        }
    }

    /// The directory of the snapshot of that name; a path needs no store.
    fn snapshot_dir(&self, name: &str) -> Result<std::path::PathBuf> {
        let path = Path::new(name);
        if name.contains('/') || path.is_dir() {
            return Ok(path.to_owned());
        }
        Ok(self.store()?.find(name)?.dir)
    }

    /// Prints a result as a document or as text.
    fn answer(&self, document: &impl serde::Serialize, text: &str) {
        match self.ui.output {
            crate::ui::Output::Json => self.ui.print_json(document),
            crate::ui::Output::Text => self.ui.print(text),
        }
    }
}

/// Who changes the node must be root.
pub(super) fn as_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(Kind::Permission, "this node", "only root may change it")
        .hint("run as root; with `--snapshot DIR`, `check`, `plan` and `rehearse` need no rights"))
}
