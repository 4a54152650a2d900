//! Parses and renders YAML. No other module does, so that the crate that does the work can be
//! replaced.
//!
//! Parses only proxyshift's own formats and configuration files of limited size.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};

/// The largest document that is parsed, in bytes. Configuration files have a few KiB.
const LIMIT: usize = 1 << 20;

/// A YAML document of any shape.
pub type Value = serde_yaml::Value;

/// Parses one document into `T`. `name` is the file's name; errors give it and the line.
pub fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<T> {
    if text.len() > LIMIT {
        return Err(Error::new(Kind::Parse, name, format!("larger than {LIMIT} bytes")));
    }
    serde_yaml::from_str(text).map_err(|e| Error::new(Kind::Parse, name, e))
}

/// Renders one document. `name` is the file's name, for errors.
pub fn render<T: Serialize>(name: &str, value: &T) -> Result<String> {
    serde_yaml::to_string(value).map_err(|e| Error::new(Kind::Unexpected, name, e))
}
