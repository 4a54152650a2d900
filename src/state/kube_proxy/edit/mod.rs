//! Where kube-proxy's configuration comes from, and how its text is edited. No I/O.

mod config_edit;
mod configuration;
mod line;
mod manifest;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::controller::ConfigMapKey;
use crate::error::{Error, Kind, Result};

pub use config_edit::ConfigEdit;
pub use manifest::{command_line, host_path, runs_kube_proxy};

/// What holds kube-proxy's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConfigSource {
    /// kube-proxy's configuration file, with its path on the host.
    File(PathBuf),
    /// The manifest of kube-proxy's static pod, whose arguments are the configuration.
    Manifest(PathBuf),
    /// The ConfigMap that a DaemonSet's pods mount. It is never edited: another has the text after.
    ConfigMap(Box<ConfigMapKey>),
}

impl ConfigSource {
    /// The path of the file on the host.
    ///
    /// # Errors
    /// [`Kind::Contested`] for a ConfigMap, which is every node's.
    pub fn path(&self) -> Result<&Path> {
        match self {
            ConfigSource::File(path) | ConfigSource::Manifest(path) => Ok(path),
            ConfigSource::ConfigMap(map) => {
                let cause = "it is no file of this node, and the same for others";
                Err(Error::new(Kind::Contested, map.to_string(), cause))
            }
        }
    }

    /// The text after the edit. Only the lines of the edited fields change, and no other byte. If
    /// nothing is to change, the same text is returned.
    ///
    /// # Errors
    /// [`crate::error::Kind::Parse`], with file and line, for YAML in an unsupported form.
    pub fn edit(&self, text: &str, edit: &ConfigEdit) -> Result<String> {
        let name = self.to_string();
        match self {
            ConfigSource::File(_) | ConfigSource::ConfigMap(_) => {
                configuration::edit(&name, text, edit)
            }
            ConfigSource::Manifest(_) => manifest::edit(&name, text, edit),
        }
    }
}

impl fmt::Display for ConfigSource {
    /// Displayed as the path of the file, or the name of the ConfigMap.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigSource::File(path) | ConfigSource::Manifest(path) => path.display().fmt(f),
            ConfigSource::ConfigMap(map) => map.fmt(f),
        }
    }
}
