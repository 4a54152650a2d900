//! The command line: one file a verb.

pub mod args;
mod check;
mod cleanup;
mod plan;
mod rehearse;
mod rollback;
mod snapshot;
mod status;
mod write_config;

use std::path::Path;
use std::time::Duration;

use crate::cli::args::{Args, Verb};
use crate::error::{Error, Kind, Result};
use crate::event::Sink;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::run::Context;
use crate::run::look::look;
use crate::state::NodeState;
use crate::store::Store;
use crate::store::snapshots::Snapshot;
use crate::ui::Ui;

/// Carries out the command line; returns the exit code.
pub fn run(args: &Args) -> u8 {
    let ui = Ui::new(args.output, args.progress, args.no_color);
    let command = Command { args, ui: &ui };
    let result = match &args.verb {
        None => Err(Error::new(Kind::Usage, "proxyshift", "which verb?")
            .hint("`proxyshift --help` lists them")),
        Some(Verb::Check(options)) => check::run(&command, options),
        Some(Verb::Snapshot(verb)) => snapshot::run(&command, verb),
        Some(Verb::Plan(options)) => plan::run(&command, options),
        Some(Verb::Rehearse(options)) => rehearse::run(&command, options),
        Some(Verb::Cleanup(options)) => cleanup::run(&command, options),
        Some(Verb::Resume) => cleanup::resume(&command),
        Some(Verb::Rollback) => rollback::run(&command),
        Some(Verb::Status) => status::run(&command),
        Some(Verb::Inside { job, dir }) => {
            return crate::run::inside::Outward::end(crate::run::inside::inside(*job, dir));
        }
    };
    result.unwrap_or_else(|error| ui.error(&error))
}

/// What every verb has: the arguments and the user interface.
struct Command<'a> {
    args: &'a Args,
    ui: &'a Ui,
}

impl Command<'_> {
    fn store(&self) -> Result<Store> {
        Store::open(self.args.store.as_deref())
    }

    fn sink(&self) -> &dyn Sink {
        self.ui
    }

    /// Calls `work` with what a run needs.
    fn with_context<T>(&self, work: impl FnOnce(&Context<'_>) -> Result<T>) -> Result<T> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::new(Kind::Permission, "this node", "only root may change it")
                .hint("run as root; `plan`, `rehearse` and `snapshot verify` need no rights"));
        }
        let (tools, store, catalogue) = (Tools::find(), self.store()?, Catalogue::builtin()?);
        work(&Context {
            tools: &tools,
            store: &store,
            catalogue: &catalogue,
            sink: self.ui,
            lock_wait: Duration::from_secs(self.args.lock_wait),
        })
    }

    /// The state that `--snapshot` names, or the live node's.
    fn state(&self, snapshot: Option<&str>) -> Result<NodeState> {
        match snapshot {
            Some(name) => NodeState::parse(Snapshot::load(&self.snapshot_dir(name)?)?.files),
            None => {
                let task = "capturing the node";
                self.sink().started(task);
                let state = look(&Tools::find(), self.ui)?;
                self.sink().finished(task, crate::run::take::summary(&state));
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
    fn answer(&self, document: &serde_json::Value, text: &str) {
        match self.ui.output {
            crate::ui::Output::Json => self.ui.print_json(document),
            crate::ui::Output::Text => self.ui.print(text),
        }
    }
}
