//! The annotation of a Node that has its pending run, so that the cluster's administrator sees it.

use serde::{Deserialize, Serialize};

use crate::state::kube_proxy::Mode;

/// The value of the annotation [`RUN_ANNOTATION`](super::RUN_ANNOTATION), as JSON. It is there while a
/// run is pending. Anybody who may write the Node may have written it: it informs, and permits nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunNote {
    /// The run's id in the node's store.
    pub id: String,
    /// The mode of before.
    pub from: Mode,
    /// The mode that the node moves to; the same for a run that changes none.
    pub to: Mode,
    /// How far the run is.
    pub state: NoteState,
    /// When it is undone unless it is confirmed or extended, in UTC: `2026-11-21T20:15:02Z`; none if it
    /// waits for nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
}

/// How far a pending run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteState {
    /// Its stages are under way, or its process died.
    Running,
    /// It waits for `confirm`.
    Unconfirmed,
    /// It is being undone.
    RollingBack,
    /// It could not be undone entirely: a person is needed.
    UndonePartly,
}

impl RunNote {
    /// Parses the annotation's value; none for what is no note.
    pub fn parse(text: &str) -> Option<RunNote> {
        serde_json::from_str(text).ok()
    }

    /// The annotation's value.
    pub fn value(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_one_line_of_json() {
        let note = RunNote {
            id: "20261121T201502Z-0a1b2c".into(),
            from: Mode::Iptables,
            to: Mode::Nftables,
            state: NoteState::RollingBack,
            deadline: None,
        };
        let text = r#"{"id":"20261121T201502Z-0a1b2c","from":"iptables","to":"nftables","state":"rolling-back"}"#;
        assert_eq!(note.value(), text);
        assert_eq!(RunNote::parse(text), Some(note));
        assert_eq!(RunNote::parse("nftables"), None);
    }
}
