//! The options of the stage `prepare`: kernel modules and sysctls for the new mode.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

/// The kernel modules and sysctls that the new mode needs. The stage applies them at once, and also
/// persists them for the next boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prepare {
    /// Names of the kernel modules to load.
    #[serde(deserialize_with = "modules")]
    pub modules: Vec<String>,
    /// The new values of sysctls, keyed by dotted name.
    #[serde(deserialize_with = "sysctls")]
    pub sysctls: BTreeMap<String, String>,
}

/// Reads names of kernel modules. Each name becomes a line of a file and an argument of a command,
/// so its characters are checked.
fn modules<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    let wrong = |n: &&String| {
        n.is_empty()
            || n.starts_with('-')
            || !n.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    match names.iter().find(wrong) {
        Some(name) => Err(de::Error::custom(format!("`{name}` is no name of a kernel module"))),
        None => Ok(names),
    }
}

/// Reads sysctls. Their names become paths below `/proc/sys`, so the characters are checked.
fn sysctls<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let read = BTreeMap::<String, SysctlValue>::deserialize(from)?;
    let is_name = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    if let Some(name) = read.keys().find(|n| !n.contains('.') || !n.split('.').all(is_name)) {
        return Err(de::Error::custom(format!("`{name}` is no name of a sysctl, as net.ipv4.x")));
    }
    Ok(read.into_iter().map(|(name, SysctlValue(value))| (name, value)).collect())
}

/// The value of a sysctl, which a playbook may write as a number or as text.
struct SysctlValue(String);

impl<'de> Deserialize<'de> for SysctlValue {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<SysctlValue, D::Error> {
        from.deserialize_any(OneValue)
    }
}

struct OneValue;

impl Visitor<'_> for OneValue {
    type Value = SysctlValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or one line of text")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<SysctlValue, E> {
        Ok(SysctlValue(number.to_string()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<SysctlValue, E> {
        Ok(SysctlValue(number.to_string()))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SysctlValue, E> {
        if text.contains('\n') {
            Err(E::invalid_value(de::Unexpected::Str(text), &self))
        } else {
            Ok(SysctlValue(text.to_owned()))
        }
    }
}
