//! Values that several stages share, such as times.

use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;
use serde::de::{self, Deserializer, Visitor};

/// Reads a duration: `30s`, `2m`, `1h 30m`.
///
/// # Errors
/// For a text without a unit, and for a negative duration.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok();
    let parsed = parsed.and_then(|d| Duration::try_from(d).ok());
    parsed.ok_or_else(|| format!("`{text}` is no time: write 30s, 2m or 1h"))
}

/// Durations in playbooks, read with [`duration`] and written in the same form.
pub(super) mod time {
    use std::time::Duration;

    use jiff::SignedDuration;
    use serde::{Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        let time = SignedDuration::try_from(*time).unwrap_or(SignedDuration::MAX);
        to.serialize_str(&format!("{time:#}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        super::word(from, "a time as 30s or 2m", super::duration)
    }
}

/// Reads one YAML string and parses it. An error has the position of the string.
pub(super) fn word<'de, D: Deserializer<'de>, T>(
    from: D,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    from.deserialize_str(Word { expected, parse })
}

struct Word<F> {
    expected: &'static str,
    parse: F,
}

impl<T, F: FnOnce(&str) -> Result<T, String>> Visitor<'_> for Word<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_are_not_below_zero() {
        for (text, seconds) in [("0s", 0), ("30s", 30), ("2m", 120), ("1h 30m", 5400), ("1h", 3600)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_secs(seconds), "{text}");
        }
        for text in ["", "30", "-5s", "soon", "5 parsecs"] {
            assert!(duration(text).unwrap_err().contains("write 30s"), "{text}");
        }
    }
}
