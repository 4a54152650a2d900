//! The words that several stages share: times, commands, and whether one may be run again.

use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

/// Reads a time: `30s`, `2m`, `1h 30m`.
///
/// # Errors
/// A text without a unit, or below zero.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok();
    let parsed = parsed.and_then(|d| Duration::try_from(d).ok());
    parsed.ok_or_else(|| format!("`{text}` is no time: write 30s, 2m or 1h"))
}

/// Times in playbooks, read with [`duration`] and written the same way.
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

/// Reads one word with `parse`; an error points at the word.
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

/// A command: a program and its arguments, run without a shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Argv(Vec<String>);

impl Argv {
    /// A command; none without a program.
    pub fn new(words: Vec<String>) -> Option<Argv> {
        words.first().is_some_and(|program| !program.is_empty()).then_some(Argv(words))
    }

    /// The program.
    pub fn program(&self) -> &str {
        // Never empty, by its making.
        self.0.first().map_or("", String::as_str)
    }

    /// What the program is given.
    pub fn arguments(&self) -> &[String] {
        self.0.get(1..).unwrap_or_default()
    }
}

/// `kubectl drain node1`.
impl fmt::Display for Argv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

impl<'de> Deserialize<'de> for Argv {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Argv, D::Error> {
        let wrong = || de::Error::custom("a command is a list that begins with its program");
        Argv::new(Vec::deserialize(from)?).ok_or_else(wrong)
    }
}

/// Whether a command that may have run already, when everything was cut off, is run again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Again {
    /// Twice is as good as once.
    Safe,
    /// The operator is asked first.
    #[default]
    Ask,
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

    #[test]
    fn a_command_has_a_program() {
        let argv = Argv::new(vec!["kubectl".into(), "drain".into()]).unwrap();
        assert_eq!((argv.program(), argv.arguments().len()), ("kubectl", 1));
        assert_eq!(argv.to_string(), "kubectl drain");
        assert!(Argv::new(vec![]).is_none() && Argv::new(vec![String::new()]).is_none());
    }
}
