//! Where kube-proxy's configuration is, and the edit of its text. No I/O.

mod config_edit;
mod configuration;
mod line;
mod manifest;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Result;

pub use config_edit::ConfigEdit;
pub use manifest::{host_path, runs_kube_proxy};

/// Where kube-proxy's configuration is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfigSource {
    /// Its configuration file, by its path on the host.
    File(PathBuf),
    /// The arguments in the manifest of its static pod.
    Manifest(PathBuf),
}

impl ConfigSource {
    /// The file on the host that holds it.
    pub fn path(&self) -> &Path {
        match self {
            ConfigSource::File(path) | ConfigSource::Manifest(path) => path,
        }
    }

    /// The text with `edit` made: the lines concerned and no other byte. The same text, if there
    /// is nothing to change.
    ///
    /// # Errors
    /// [`crate::error::Kind::Parse`], with file and line, for a form that is not understood.
    pub fn edit(&self, text: &str, edit: &ConfigEdit) -> Result<String> {
        let name = self.to_string();
        match self {
            ConfigSource::File(_) => configuration::edit(&name, text, edit),
            ConfigSource::Manifest(_) => manifest::edit(&name, text, edit),
        }
    }
}

impl fmt::Display for ConfigSource {
    /// The file's path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path().display().fmt(f)
    }
}
