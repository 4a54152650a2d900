//! Commands that the operator configures: a program with its arguments, and whether the command may
//! run twice.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A program and its arguments, executed directly and never given to a shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Argv(Vec<String>);

impl Argv {
    /// The program to execute: the first element.
    pub fn program(&self) -> &str {
        // Never empty: `try_from` is the only constructor.
        self.0.first().map_or("", String::as_str)
    }

    /// The arguments after the program.
    pub fn arguments(&self) -> &[String] {
        self.0.get(1..).unwrap_or_default()
    }
}

impl TryFrom<Vec<String>> for Argv {
    type Error = &'static str;

    fn try_from(words: Vec<String>) -> Result<Argv, &'static str> {
        match words.first() {
            Some(program) if !program.is_empty() => Ok(Argv(words)),
            _ => Err("a command is a list that begins with its program"),
        }
    }
}

impl From<Argv> for Vec<String> {
    fn from(argv: Argv) -> Vec<String> {
        argv.0
    }
}

impl fmt::Display for Argv {
    /// The program and its arguments with spaces between them: `kubectl drain node1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

/// Whether `resume` runs a command again that may already have run before the run was interrupted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rerun {
    /// `resume` runs the command again, because running it twice does no harm.
    Safe,
    /// `resume` asks the operator whether to run the command again.
    #[default]
    Ask,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_a_program() {
        let words = |all: &[&str]| all.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let argv = Argv::try_from(words(&["kubectl", "drain"])).unwrap();
        assert_eq!((argv.program(), argv.arguments().len()), ("kubectl", 1));
        assert_eq!(argv.to_string(), "kubectl drain");
        assert!(Argv::try_from(vec![]).is_err() && Argv::try_from(words(&[""])).is_err());
    }
}
