//! What the kernel is given before kube-proxy gets its new mode.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

/// What the new mode needs of the kernel. It is set now and persisted for the next boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prepare {
    /// Kernel modules to load.
    #[serde(deserialize_with = "modules")]
    pub modules: Vec<String>,
    /// Sysctls by their dotted names, with their new values.
    #[serde(deserialize_with = "sysctls")]
    pub sysctls: BTreeMap<String, String>,
}

/// Names of kernel modules: they become a line of a file, and a word of a command.
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

/// Sysctls: their names become paths below `/proc/sys`.
fn sysctls<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, String>, D::Error> {
    let read = BTreeMap::<String, Value>::deserialize(from)?;
    let is_name = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    if let Some(name) = read.keys().find(|n| !n.contains('.') || !n.split('.').all(is_name)) {
        return Err(de::Error::custom(format!("`{name}` is no name of a sysctl, as net.ipv4.x")));
    }
    Ok(read.into_iter().map(|(name, Value(value))| (name, value)).collect())
}

/// A value of a sysctl, as a number or as text.
struct Value(String);

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Value, D::Error> {
        from.deserialize_any(OneValue)
    }
}

struct OneValue;

impl Visitor<'_> for OneValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or one line of text")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value(number.to_string()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value(number.to_string()))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        match text.contains('\n') {
            true => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
            false => Ok(Value(text.to_owned())),
        }
    }
}
