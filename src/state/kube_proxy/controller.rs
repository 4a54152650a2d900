//! The controller of kube-proxy, as one type for playbooks, journals and code.
//!
//! Each kind of controller is a variant of [`Controller`] that holds its identity. For each kind,
//! `node/kube_proxy_controller/KIND.rs` finds kube-proxy's configuration, and
//! `apply/kube_proxy/KIND.rs` stops and starts kube-proxy.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{ConfigSource, Mode};
use crate::state::argv::{Argv, Rerun};

/// The process name of a kube-proxy that is a program of its own.
pub const PROGRAM: &str = "kube-proxy";

/// The controller that starts and stops kube-proxy. Serialised as a map of one key: `{systemd:
/// kube-proxy.service}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Controller {
    /// systemd starts kube-proxy as a unit.
    Systemd(SystemdUnit),
    /// The kubelet starts kube-proxy from the manifest of a static pod.
    StaticPod(StaticPod),
    /// Commands that the operator configured start and stop kube-proxy.
    Commands(Commands),
    /// Two DaemonSets have kube-proxy's pods, and a label of the Node decides between them.
    DaemonSet(Box<DaemonSetPair>),
}

/// Evaluates one expression with the content of a [`Controller`], whatever its kind.
macro_rules! for_kind {
    ($controller:expr, $kind:ident => $result:expr) => {
        match $controller {
            $crate::state::kube_proxy::controller::Controller::Systemd($kind) => $result,
            $crate::state::kube_proxy::controller::Controller::StaticPod($kind) => $result,
            $crate::state::kube_proxy::controller::Controller::Commands($kind) => $result,
            $crate::state::kube_proxy::controller::Controller::DaemonSet($kind) => {
                let $kind = &**$kind;
                $result
            }
        }
    };
}
pub(crate) use for_kind;

/// The systemd unit that runs kube-proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SystemdUnit {
    /// The unit's name: `kube-proxy.service`.
    pub unit: String,
}

/// The static pod that runs kube-proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StaticPod {
    /// The path of the pod's manifest: `/etc/kubernetes/manifests/kube-proxy.yaml`.
    #[serde(deserialize_with = "absolute")]
    pub manifest: PathBuf,
}

/// The operator's commands that stop and start kube-proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commands {
    /// Stops kube-proxy. When the command has succeeded, kube-proxy's process is gone, or is about
    /// to end.
    pub stop: Argv,
    /// Starts kube-proxy. The command exits while kube-proxy keeps running.
    pub start: Argv,
    /// Restarts kube-proxy; without this command, `stop` and then `start` run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Argv>,
    /// Whether `resume` may run these commands a second time.
    #[serde(default)]
    pub again: Rerun,
    /// The name of the process to wait for, if kube-proxy is part of another program, such as
    /// `k3s`.
    #[serde(default = "kube_proxy", skip_serializing_if = "is_kube_proxy")]
    pub program: String,
}

/// The two DaemonSets that `proxyshift cluster prepare` arranges: one for the Nodes without the label
/// `proxyshift.dev/mode`, and one for those that have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DaemonSetPair {
    /// The path of the kubelet's kubeconfig, by whose credentials the node acts.
    pub kubeconfig: PathBuf,
    /// The name of the Node.
    pub node: String,
    /// The uid of the Node. One that was registered anew is another.
    pub node_uid: String,
    /// The namespace of both.
    pub namespace: String,
    /// The one whose pod ran when the controller was found.
    pub current: ModeDaemonSet,
    /// The other.
    pub other: ModeDaemonSet,
}

/// A DaemonSet that runs kube-proxy in one mode, on the Nodes that the label selects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeDaemonSet {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The value of the label that its Nodes have; none if they must not have it.
    pub label: Option<String>,
    /// The ConfigMap with its configuration.
    pub config_map: ConfigMapKey,
    /// The mode there.
    pub mode: Mode,
}

/// A text in a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigMapKey {
    /// The namespace of the ConfigMap.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The key of the text: `config.conf`.
    pub key: String,
}

impl Controller {
    /// What is edited where `source` has the configuration: the source itself, or what selects another.
    pub fn edited(&self, source: &ConfigSource) -> String {
        match self {
            Controller::DaemonSet(pair) => format!("the mode label of Node {}", pair.node),
            _ => source.to_string(),
        }
    }
}

impl DaemonSetPair {
    /// The one that runs kube-proxy in `mode`.
    pub fn of_mode(&self, mode: Mode) -> Option<&ModeDaemonSet> {
        [&self.current, &self.other].into_iter().find(|set| set.mode == mode)
    }

    /// The one that runs where the Node has this label, or none.
    pub fn of_label(&self, label: Option<&str>) -> Option<&ModeDaemonSet> {
        [&self.current, &self.other].into_iter().find(|set| set.label.as_deref() == label)
    }
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
    /// The controller as it reads within a sentence: `unit kube-proxy.service`.
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

impl fmt::Display for DaemonSetPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DaemonSetPair { namespace, current, other, .. } = self;
        write!(f, "DaemonSets {namespace}/{} and {}", current.name, other.name)
    }
}

impl fmt::Display for ConfigMapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigMap {}/{}", self.namespace, self.name)
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
