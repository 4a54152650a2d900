//! How kube-proxy is given its new mode, and what stops and starts it.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::words::{Again, Argv, time};

/// How kube-proxy is given its new mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Switch {
    /// What stops and starts kube-proxy.
    pub controller: Controller,
    /// How long that may take.
    #[serde(with = "time")]
    pub timeout: Duration,
}

impl Default for Switch {
    fn default() -> Switch {
        Switch { controller: Controller::Auto, timeout: Duration::from_secs(120) }
    }
}

/// What stops and starts kube-proxy: `auto`, or a map of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Controller {
    /// Whatever is found on the node.
    Auto,
    /// A systemd unit, by name: `systemd: kube-proxy.service`.
    Systemd(String),
    /// The manifest of a static pod, by path: `static-pod: /etc/kubernetes/manifests/…`.
    StaticPod(String),
    /// Commands.
    Commands(Commands),
}

/// The operator's own commands for kube-proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commands {
    /// Stops it.
    pub stop: Argv,
    /// Starts it.
    pub start: Argv,
    /// Restarts it; without this it is stopped and started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Argv>,
    /// Whether they may run twice.
    #[serde(default)]
    pub again: Again,
}

impl<'de> Deserialize<'de> for Controller {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Controller, D::Error> {
        from.deserialize_any(OneController)
    }
}

struct OneController;

impl<'de> Visitor<'de> for OneController {
    type Value = Controller;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`auto`, or one of `systemd: UNIT`, `static-pod: PATH`, `commands: {…}`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Controller, E> {
        match text {
            "auto" => Ok(Controller::Auto),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Controller, A::Error> {
        const KINDS: [&str; 3] = ["systemd", "static-pod", "commands"];
        let kind: Option<String> = map.next_key()?;
        let controller = match kind.as_deref() {
            Some("systemd") => Controller::Systemd(map.next_value()?),
            Some("static-pod") => {
                let path: String = map.next_value()?;
                if !path.starts_with('/') {
                    return Err(de::Error::custom(format!("`{path}` is no absolute path")));
                }
                Controller::StaticPod(path)
            }
            Some("commands") => Controller::Commands(map.next_value()?),
            Some(other) => return Err(de::Error::unknown_field(other, &KINDS)),
            None => return Err(de::Error::invalid_length(0, &self)),
        };
        match map.next_key::<String>()? {
            None => Ok(controller),
            Some(_) => Err(de::Error::custom("a node has one controller of kube-proxy")),
        }
    }
}
