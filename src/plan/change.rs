//! One change to a node, as data. The journal holds it, a run undoes it, a report describes it.

mod edit;
mod removal;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::state::kube_proxy::{ConfigSource, Controller};

pub use edit::{
    ChainText, Direction, Edit, LinkSpec, NativeTable, RealServerRef, RulePos, SetDump, TableEdit,
    Target,
};
pub use removal::{detach, edits};

/// One change. An edit may be as large as the node: where a change is only written, `E` is a
/// reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change<E = Edit> {
    /// Objects of the kernel are removed or added.
    Objects(E),
    /// A sysctl gets another value.
    Sysctl {
        /// Its name: `net.ipv4.vs.conntrack`.
        name: String,
        /// Its value before; `None` if there was no such sysctl.
        from: Option<String>,
        /// Its value after.
        to: String,
    },
    /// A file gets another text.
    File {
        /// The file.
        path: PathBuf,
        /// Its text before; `None` if there was no such file.
        from: Option<String>,
        /// Its text after; `None` if the file is removed.
        to: Option<String>,
    },
    /// kube-proxy's configuration gets another text, and kube-proxy is restarted. The texts are in
    /// the run's folder, and in no export.
    Configuration {
        /// Its source: a file, a manifest or a ConfigMap.
        source: ConfigSource,
        /// The controller that restarts kube-proxy.
        controller: Controller,
    },
    /// A change that cannot be undone.
    Irreversible(Irreversible),
}

/// A change that cannot be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Irreversible {
    /// A command of the operator ran.
    Hook {
        /// The command.
        command: String,
    },
    /// A kernel module was loaded. A rollback keeps it: another program may use it by then.
    Module {
        /// Its name.
        name: String,
    },
    /// Stale conntrack entries were cleared.
    Conntrack {
        /// How many.
        cleared: usize,
    },
}

impl<E: fmt::Display> fmt::Display for Change<E> {
    /// For reports: without the text of files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Objects(edit) => edit.fmt(f),
            Change::Sysctl { name, from, to } => {
                write!(f, "sysctl {name}: {} → {to}", from.as_deref().unwrap_or("none"))
            }
            Change::File { path, from: None, .. } => write!(f, "file {} written", path.display()),
            Change::File { path, .. } => write!(f, "file {} changed", path.display()),
            Change::Configuration { source, controller } => {
                write!(f, "kube-proxy's {source} edited, {controller} restarted")
            }
            Change::Irreversible(Irreversible::Hook { command }) => write!(f, "hook: {command}"),
            Change::Irreversible(Irreversible::Module { name }) => {
                write!(f, "module {name} loaded")
            }
            Change::Irreversible(Irreversible::Conntrack { cleared }) => {
                write!(f, "{cleared} stale conntrack entries cleared")
            }
        }
    }
}
