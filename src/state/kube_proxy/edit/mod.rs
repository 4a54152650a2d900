//! The source of kube-proxy's configuration, and the edit of its text. No I/O.

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

/// The source of kube-proxy's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfigSource {
    /// Its configuration file, by its path on the host.
    File(PathBuf),
    /// The arguments in the manifest of its static pod.
    Manifest(PathBuf),
}

impl ConfigSource {
    /// Its file on the host.
    pub fn path(&self) -> &Path {
        match self {
            ConfigSource::File(path) | ConfigSource::Manifest(path) => path,
        }
    }

    /// The edited text: changes the lines concerned and no other byte. The same text, if nothing is
    /// to change.
    ///
    /// # Errors
    /// [`crate::error::Kind::Parse`], with file and line, for an unsupported form.
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
