//! How kube-proxy is run on this node, and how it is told its mode.
//!
//! [`Controller::detect`] says who starts and stops it, [`Settings::find`] which file tells it the
//! mode. A switch reads that file ([`read`]), edits the text ([`Settings::edit`]), and has kube-proxy
//! run with it ([`Controller::tell`]): up to 1.30 it exits by itself when its file is written, so
//! that is one step.

mod argv;
mod configuration;
mod detect;
mod file;
mod line;
mod manifest;
mod operate;
mod settings;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};

pub use file::{read, swap};
pub use settings::{Change, Settings};

/// Who starts and stops kube-proxy; in a journal `{"kind": "systemd", "unit": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Controller {
    /// systemd.
    Systemd {
        /// The unit: `kube-proxy.service`.
        unit: String,
    },
    /// The kubelet, from a file.
    StaticPod {
        /// The manifest: `/etc/kubernetes/manifests/kube-proxy.yaml`.
        manifest: PathBuf,
    },
    /// Commands of the operator's.
    Commands {
        /// Stops it; when it succeeds, no such process is left, or will soon be.
        stop: Argv,
        /// Starts it, and ends while it runs.
        start: Argv,
        /// Does both; without it, `stop` and `start` do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        restart: Option<Argv>,
        /// The program whose process is waited for, where kube-proxy is a part of another: `k3s`.
        #[serde(default = "kube_proxy")]
        program: String,
    },
}

fn kube_proxy() -> String {
    "kube-proxy".into()
}

impl fmt::Display for Controller {
    /// For sentences: `unit kube-proxy.service`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Controller::Systemd { unit } => write!(f, "unit {unit}"),
            Controller::StaticPod { manifest } => write!(f, "static pod {}", manifest.display()),
            Controller::Commands { start, .. } => write!(f, "command `{start}`"),
        }
    }
}

/// A program and its arguments; never a line for a shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Argv(Vec<String>);

impl TryFrom<Vec<String>> for Argv {
    type Error = Error;

    fn try_from(words: Vec<String>) -> Result<Self, Error> {
        match words.first() {
            Some(program) if !program.is_empty() => Ok(Argv(words)),
            _ => Err(Error::new(Kind::Usage, "command", "it names no program")),
        }
    }
}

impl From<Argv> for Vec<String> {
    fn from(argv: Argv) -> Vec<String> {
        argv.0
    }
}

impl fmt::Display for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_comes_back_from_a_journal_and_names_a_program() {
        let parse = |text: &str| serde_json::from_str::<Controller>(text);
        let unit = parse(r#"{"kind": "systemd", "unit": "kube-proxy.service"}"#).unwrap();
        assert_eq!(unit, Controller::Systemd { unit: "kube-proxy.service".into() });
        let commands = r#"{"kind": "commands", "stop": ["a", "b c"], "start": ["d"]}"#;
        let commands = parse(commands).unwrap();
        assert_eq!(commands.to_string(), "command `d`");
        assert_eq!(parse(&serde_json::to_string(&commands).unwrap()).unwrap(), commands);
        for wrong in [
            r#"{"kind": "systemd"}"#,
            r#"{"kind": "systemd", "unit": "x", "manifest": "y"}"#,
            r#"{"kind": "commands", "stop": [], "start": ["d"]}"#,
            r#"{"kind": "commands", "stop": "a b", "start": ["d"]}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
