//! The options of the stage `switch`: the controller of kube-proxy, and the stage's timeout.

use std::fmt;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::words::time;
use crate::state::kube_proxy::Controller;

/// The options of the stage `switch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawSwitch")]
pub struct Switch {
    /// Who stops and starts kube-proxy.
    pub controller: ControllerChoice,
    /// The text that asks somebody to change kube-proxy's mode, where the node itself may not; none if the
    /// controller does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ask: Option<String>,
    /// How long the stage may take.
    #[serde(with = "time")]
    pub timeout: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSwitch {
    #[serde(default = "auto")]
    controller: ControllerChoice,
    ask: Option<String>,
    #[serde(deserialize_with = "some_time", default)]
    timeout: Option<Duration>,
}

fn auto() -> ControllerChoice {
    ControllerChoice::Auto
}

fn some_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    time::deserialize(from).map(Some)
}

/// How long a controller may take, and how long somebody who is asked.
const CONTROLLER: Duration = Duration::from_secs(120);
const REQUESTED: Duration = Duration::from_secs(30 * 60);

impl TryFrom<RawSwitch> for Switch {
    type Error = &'static str;

    fn try_from(raw: RawSwitch) -> Result<Switch, &'static str> {
        let RawSwitch { controller, ask, timeout } = raw;
        if controller != ControllerChoice::Auto && ask.is_some() {
            return Err("a switch names either a `controller`, or `ask`");
        }
        let default = if ask.is_some() { REQUESTED } else { CONTROLLER };
        Ok(Switch { controller, ask, timeout: timeout.unwrap_or(default) })
    }
}

impl Default for Switch {
    fn default() -> Switch {
        Switch { controller: ControllerChoice::Auto, ask: None, timeout: CONTROLLER }
    }
}

/// Which controller of kube-proxy the stage uses: `auto` in the playbook, or a [`Controller`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControllerChoice {
    /// The controller that is found on the node.
    Auto,
    /// The controller that the playbook names.
    #[serde(untagged)]
    Named(Controller),
}

impl<'de> Deserialize<'de> for ControllerChoice {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<ControllerChoice, D::Error> {
        from.deserialize_any(WordOrMap)
    }
}

/// Reads the word `auto` or a map that describes a controller. This type exists because the YAML
/// reader's own form of an enum would need a tag.
struct WordOrMap;

impl<'de> Visitor<'de> for WordOrMap {
    type Value = ControllerChoice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`auto`, or one of `systemd: UNIT`, `static-pod: PATH`, `commands: {…}`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ControllerChoice, E> {
        match text {
            "auto" => Ok(ControllerChoice::Auto),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ControllerChoice, A::Error> {
        let controller = Controller::deserialize(MapAccessDeserializer::new(&mut map))?;
        if matches!(controller, Controller::DaemonSet(_)) {
            return Err(de::Error::custom("DaemonSets are found by `auto`, and only so"));
        }
        match map.next_key::<String>()? {
            None => Ok(ControllerChoice::Named(controller)),
            Some(_) => Err(de::Error::custom("a node has one controller of kube-proxy")),
        }
    }
}
