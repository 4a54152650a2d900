//! YAML, kept in one place so that the crate behind it can be exchanged.
//!
//! Only proxyshift's own formats and size-capped configuration files are read with it.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};

/// The largest document that is read, in bytes: configuration files are a few KiB.
const LIMIT: usize = 1 << 20;

/// A YAML document of any shape.
pub type Value = serde_yaml::Value;

/// Reads one document into `T`; `name` is the file, for the error, which carries the line.
pub fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<T> {
    if text.len() > LIMIT {
        return Err(Error::new(Kind::Parse, name, format!("larger than {LIMIT} bytes")));
    }
    serde_yaml::from_str(text).map_err(|e| Error::new(Kind::Parse, name, e))
}

/// Writes one document; `name` is the file, for the error.
pub fn render<T: Serialize>(name: &str, value: &T) -> Result<String> {
    serde_yaml::to_string(value).map_err(|e| Error::new(Kind::Unexpected, name, e))
}
