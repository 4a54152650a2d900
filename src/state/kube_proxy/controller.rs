//! The controller of kube-proxy: one type for playbooks, journals and code.
//!
//! A kind of controller is a variant here, with its identity. `node/kube_proxy_controller/KIND.rs`
//! finds its configuration; `apply/kube_proxy/KIND.rs` stops and starts it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::state::argv::{Argv, Rerun};

/// The name of kube-proxy's own process.
pub const PROGRAM: &str = "kube-proxy";

/// The controller that starts and stops kube-proxy. Serialised as a map of one key: `{systemd:
/// kube-proxy.service}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Controller {
    /// systemd.
    Systemd(SystemdUnit),
    /// The kubelet, from a manifest.
    StaticPod(StaticPod),
    /// Commands of the operator.
    Commands(Commands),
}

/// Evaluates one expression for any kind of [`Controller`].
macro_rules! for_kind {
    ($controller:expr, $kind:ident => $result:expr) => {
        match $controller {
            $crate::state::kube_proxy::controller::Controller::Systemd($kind) => $result,
            $crate::state::kube_proxy::controller::Controller::StaticPod($kind) => $result,
            $crate::state::kube_proxy::controller::Controller::Commands($kind) => $result,
        }
    };
}
pub(crate) use for_kind;

/// A unit of systemd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SystemdUnit {
    /// Its name: `kube-proxy.service`.
    pub unit: String,
}

/// A static pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StaticPod {
    /// Its manifest: `/etc/kubernetes/manifests/kube-proxy.yaml`.
    #[serde(deserialize_with = "absolute")]
    pub manifest: PathBuf,
}

/// Commands of the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commands {
    /// Stops kube-proxy. After its success the process is gone, or is about to end.
    pub stop: Argv,
    /// Starts kube-proxy, and exits while it runs.
    pub start: Argv,
    /// Restarts kube-proxy; `stop` and `start` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Argv>,
    /// Whether they may run twice.
    #[serde(default)]
    pub again: Rerun,
    /// The process to wait for, where kube-proxy is part of another program: `k3s`.
    #[serde(default = "kube_proxy", skip_serializing_if = "is_kube_proxy")]
    pub program: String,
}

fn kube_proxy() -> String {
    PROGRAM.to_owned()
}

fn is_kube_proxy(program: &str) -> bool {
    program == PROGRAM
}

fn absolute<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(de::Error::custom(format!("`{}` is no absolute path", path.display())))
    }
}

impl fmt::Display for Controller {
    /// In sentences: `unit kube-proxy.service`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for_kind!(self, kind => kind.fmt(f))
    }
}

impl fmt::Display for SystemdUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {}", self.unit)
    }
}

impl fmt::Display for StaticPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "static pod {}", self.manifest.display())
    }
}

impl fmt::Display for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command `{}`", self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_read_from_a_journal_and_names_a_program() {
        let parse = |text: &str| serde_json::from_str::<Controller>(text);
        let unit = parse(r#"{"systemd": "kube-proxy.service"}"#).unwrap();
        assert_eq!(unit, Controller::Systemd(SystemdUnit { unit: "kube-proxy.service".into() }));
        let commands = r#"{"commands": {"stop": ["a", "b c"], "start": ["d"]}}"#;
        let commands = parse(commands).unwrap();
        assert_eq!(commands.to_string(), "command `d`");
        let Controller::Commands(read) = &commands else { panic!("{commands}") };
        assert_eq!((read.program.as_str(), read.again), ("kube-proxy", Rerun::Ask));
        let pod = parse(r#"{"static-pod": "/m.yaml"}"#).unwrap();
        for controller in [unit, commands, pod] {
            let text = serde_json::to_string(&controller).unwrap();
            assert_eq!(parse(&text).unwrap(), controller, "{text}");
        }
        for wrong in [
            r#"{"systemd": {}}"#,
            r#"{"systemd": "x", "static-pod": "/y"}"#,
            r#"{"static-pod": "m.yaml"}"#,
            r#"{"commands": {"stop": [], "start": ["d"]}}"#,
            r#"{"commands": {"stop": "a b", "start": ["d"]}}"#,
            r#"{"commands": {"stop": ["a"], "start": ["d"], "pid": 1}}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
