//! What stages change besides rules: files, sysctls, kube-proxy's settings. Each is written into the
//! journal with what undoes it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::apply::files::swap;
use crate::apply::sysctl;
use crate::error::{Error, Kind, Result};
use crate::node::{kube_proxy_controller, sysctls};
use crate::plan::playbook::ControllerChoice;
use crate::state::kube_proxy::{ConfigSource, Controller};
use crate::state::tools::Process;
use crate::store::journal::{Entry, Journal, Mark, Record};

/// One reversible change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(super) enum Step {
    /// A sysctl gets another value.
    Sysctl {
        /// Its name: `net.ipv4.vs.conntrack`.
        name: String,
        /// Its value before; none if there was no such sysctl.
        from: Option<String>,
        /// Its value after.
        to: String,
    },
    /// A file gets another text.
    File {
        /// The file.
        path: PathBuf,
        /// Its text before; none if there was no such file.
        from: Option<String>,
        /// Its text after.
        to: Option<String>,
    },
    /// kube-proxy's settings get another text, and it is restarted. The texts lie in the run's
    /// folder, and go into no export.
    Settings {
        /// Where they are.
        source: ConfigSource,
        /// Who restarts kube-proxy.
        controller: Controller,
    },
}

impl std::fmt::Display for Step {
    /// For reports: no text of a file.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Sysctl { name, from, to } => {
                write!(f, "sysctl {name}: {} → {to}", from.as_deref().unwrap_or("none"))
            }
            Step::File { path, from: None, .. } => write!(f, "file {} written", path.display()),
            Step::File { path, .. } => write!(f, "file {} changed", path.display()),
            Step::Settings { source, controller } => {
                write!(f, "kube-proxy's {source} edited, {controller} restarted")
            }
        }
    }
}

/// The steps other than edits that a journal says were begun, for people.
pub(in crate::run) fn shown(entries: &[Entry]) -> Vec<String> {
    let hooks = entries.iter().filter(|e| e.kind == Mark::Intent).filter_map(|e| {
        let step = Step::deserialize(&e.edit).ok().map(|step| step.to_string());
        step.or_else(|| Some(format!("hook: {}", e.edit["hook"].as_str()?)))
    });
    hooks.collect()
}

/// The texts of kube-proxy's settings in the run's folder.
pub(super) const BEFORE: &str = "settings.before";
pub(super) const AFTER: &str = "settings.after";

impl Step {
    /// Writes down that the step begins.
    pub(super) fn begin(&self, journal: &mut Journal, stage: &str, step: u32) -> Result<()> {
        let edit = serde_json::to_value(self)
            .map_err(|e| Error::new(Kind::Unexpected, "the journal", e))?;
        append(journal, stage, step, Mark::Intent, edit)
    }

    /// The steps that a journal says were begun, in order.
    pub(super) fn begun(entries: &[Entry]) -> Vec<Step> {
        let intents = entries.iter().filter(|e| e.kind == Mark::Intent);
        intents.filter_map(|entry| Step::deserialize(&entry.edit).ok()).collect()
    }

    /// Undoes a file or a sysctl, if it is still as the step made it.
    ///
    /// # Errors
    /// [`Kind::LostRace`] when someone has changed it since; it is left as found.
    pub(super) fn undo(&self) -> Result<()> {
        match self {
            Step::File { path, from, to } => swap(path, to.as_deref(), from.as_deref()),
            Step::Sysctl { name, from: Some(from), to } => {
                match sysctls::value_of(name)?.as_deref() {
                    Some(now) if now == from => Ok(()),
                    Some(now) if now != to => Err(Error::new(
                        Kind::LostRace,
                        name,
                        format!("is {now} now, neither {from} nor {to}; it is left as found"),
                    )),
                    _ => sysctl::set(name, from),
                }
            }
            // It came with a module, which stays loaded.
            Step::Sysctl { from: None, .. } | Step::Settings { .. } => Ok(()),
        }
    }
}

/// Writes down that a command of the operator's begins.
pub(super) fn hook(journal: &mut Journal, command: &str) -> Result<()> {
    append(journal, "hook", 1, Mark::Intent, json!({"hook": command}))
}

/// Keeps a text in the run's folder, where only root reads it.
pub(super) fn keep(path: &Path, text: &str) -> Result<()> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let mut options = fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)
}

/// Writes down that a step is done.
pub(super) fn done(journal: &mut Journal, stage: &str, step: u32) -> Result<()> {
    append(journal, stage, step, Mark::Done, Value::Null)
}

/// Writes down a change that cannot be undone, once it is done.
pub(super) fn note(journal: &mut Journal, stage: &str, what: Value) -> Result<()> {
    append(journal, stage, 1, Mark::Done, what)
}

/// Writes down that a step failed.
pub(super) fn failed(journal: &mut Journal, stage: &str, error: &Error) -> Result<()> {
    append(journal, stage, 0, Mark::Failed, serde_json::to_value(error).unwrap_or_default())
}

fn append(journal: &mut Journal, stage: &str, step: u32, kind: Mark, edit: Value) -> Result<()> {
    let record = Record { stage: stage.to_owned(), step, kind, edit, undo: Value::Null };
    journal.append(record).map(|_| ())
}

/// The controller that the playbook names, or the one that is found.
pub(super) fn controller(chosen: &ControllerChoice, process: &Process) -> Result<Controller> {
    match chosen {
        ControllerChoice::Auto => kube_proxy_controller::detect(process, Path::new("/")),
        ControllerChoice::Named(controller) => Ok(controller.clone()),
    }
}
