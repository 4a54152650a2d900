//! One change to a node, as data. The journal records it, a run undoes it, and a report describes
//! it.

mod edit;
mod removal;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::runtime::ProcessId;
use crate::state::Family;
use crate::state::kube_proxy::{ConfigSource, Controller};
use crate::state::kubernetes::PodUpdate;

pub use edit::{
    ChainText, Direction, Edit, LinkSpec, NativeTable, RealServerRef, RulePos, SetDump, TableEdit,
    Target,
};
pub use removal::{detach, edits, native_table};

/// One change to a node. An edit may be as large as the node's whole state, so code that only
/// writes a change uses a reference to the edit as `E`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change<E = Edit> {
    /// Objects of the kernel are removed or added.
    Objects(E),
    /// A sysctl gets another value.
    Sysctl {
        /// The sysctl's name: `net.ipv4.vs.conntrack`.
        name: String,
        /// The value before the change; `None` if the sysctl did not exist.
        from: Option<String>,
        /// The value after the change.
        to: String,
    },
    /// A file gets another text, is created or is removed.
    File {
        /// The path of the file.
        path: PathBuf,
        /// The file's text before the change; `None` if the file did not exist.
        from: Option<String>,
        /// The file's text after the change; `None` if the change removes the file.
        to: Option<String>,
    },
    /// kube-proxy's configuration gets another text, and kube-proxy is restarted. Both texts are in
    /// the run's folder, and no export contains them.
    Configuration {
        /// Where the configuration is: in a file, a manifest or a ConfigMap.
        source: ConfigSource,
        /// The controller that restarts kube-proxy.
        controller: Controller,
    },
    /// Somebody is asked to change kube-proxy's mode.
    SwitchRequested {
        /// The text that asks.
        ask: String,
        /// The kube-proxy that runs before.
        process: ProcessId,
    },
    /// kube-proxy's pod is deleted, so that its DaemonSet makes one of another version in its place.
    PodReplaced(Box<PodUpdate>),
    /// The bridge is loaded. Its scripts are in the run's folder.
    BridgeLoaded {
        /// The address families that it serves.
        families: Vec<Family>,
    },
    /// The bridge is deleted.
    BridgeDeleted,
    /// A change that cannot be undone.
    Irreversible(Irreversible),
}

/// The kinds of changes that cannot be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Irreversible {
    /// A command of the operator ran.
    Hook {
        /// The command line.
        command: String,
    },
    /// A kernel module was loaded. A rollback does not unload it, because another program may use
    /// it by then.
    Module {
        /// The module's name, such as `ip_vs`.
        name: String,
    },
    /// Stale conntrack entries were cleared.
    Conntrack {
        /// How many entries were cleared.
        cleared: usize,
    },
}

impl Change {
    /// Describes the change for people, one line for each object.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Change::Objects(edit) => edit.lines(),
            other => vec![other.to_string()],
        }
    }
}

impl<E: fmt::Display> fmt::Display for Change<E> {
    /// Describes the change for reports, without the texts of files.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Objects(edit) => edit.fmt(f),
            Change::Sysctl { name, from, to } => {
                write!(f, "sysctl {name}: {} → {to}", from.as_deref().unwrap_or("none"))
            }
            Change::File { path, from: None, .. } => write!(f, "file {} written", path.display()),
            Change::File { path, .. } => write!(f, "file {} changed", path.display()),
            Change::Configuration { source, controller } => {
                write!(
                    f,
                    "kube-proxy's {} edited, {controller} restarted",
                    controller.edited(source)
                )
            }
            Change::SwitchRequested { ask, .. } => write!(f, "asked: {ask}"),
            Change::PodReplaced(update) => {
                write!(f, "pod {} deleted, {} ({update})", update.pod, update.changes())
            }
            Change::BridgeLoaded { families } => {
                let families: Vec<String> = families.iter().map(ToString::to_string).collect();
                write!(f, "bridge loaded for {}", families.join(" and "))
            }
            Change::BridgeDeleted => f.write_str("bridge deleted"),
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
