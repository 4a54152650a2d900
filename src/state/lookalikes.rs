//! The format of `lookalikes.json`: processes that have the name of a component but do not count.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// A process that has the name of a component, and whose word does not count. Nothing but what the
/// kernel says of it is known: its arguments, files and answers are never read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookalike {
    /// The PID.
    pub pid: u32,
    /// The component's process name that the process bears: `kube-proxy`. Empty if it may be any.
    pub name: String,
    /// The real user of the process.
    pub uid: u32,
    /// Why the process does not count.
    pub doubt: Doubt,
}

/// Why the word of a process does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doubt {
    /// One of its real, effective and saved users is not root.
    User,
    /// Its user namespace is not ours, so its root may be anybody.
    UserNamespace,
    /// It lacks CAP_NET_ADMIN, without which nobody writes rules.
    NetAdmin,
    /// Its program runs as root whoever starts it (set-user-ID), so anybody may have given it its
    /// name.
    SetUserId,
    /// It keeps its arguments from being read. Its name is empty if nothing else tells it.
    Silent,
    /// The kernel does not say who it is.
    Unreadable,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Doubt::User => "it does not run as root",
            Doubt::UserNamespace => "it runs in another user namespace",
            Doubt::NetAdmin => "it lacks CAP_NET_ADMIN",
            Doubt::SetUserId => "its program is set-user-ID, so anybody may have started it",
            Doubt::Silent => "it keeps its arguments from being read",
            Doubt::Unreadable => "the kernel does not say who it is",
        })
    }
}

impl fmt::Display for Lookalike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "of any name" } else { &self.name };
        write!(f, "{} ({name})", self.pid)
    }
}

/// Parses `lookalikes.json`. Errors name `file` and the line.
pub fn parse(file: &str, text: &str) -> Result<Vec<Lookalike>> {
    serde_json::from_str(text).map_err(|e| Error::new(Kind::Parse, file, e))
}

/// Renders the text of `lookalikes.json`.
pub fn render(lookalikes: &[Lookalike]) -> Result<String> {
    serde_json::to_string_pretty(lookalikes)
        .map(|text| text + "\n")
        .map_err(|e| Error::new(Kind::Unexpected, "lookalikes.json", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_survive() {
        let all = [Doubt::User, Doubt::UserNamespace, Doubt::NetAdmin, Doubt::SetUserId];
        let all =
            all.map(|doubt| Lookalike { pid: 7, name: "kube-proxy".into(), uid: 1000, doubt });
        let text = render(&all).unwrap();
        assert!(text.contains("\"doubt\": \"set-user-id\""), "{text}");
        assert_eq!(parse("lookalikes.json", &text).unwrap(), all);
        assert!(parse("lookalikes.json", "[{}]").is_err());
    }
}
