//! What a migration would do to a node, stage by stage; nothing is changed.

use serde::Serialize;

use crate::error::Error;
use crate::kube_proxy::services::Services;
use crate::owners::catalogue::Catalogue;
use crate::plan::Plan;
use crate::plan::playbook::{Playbook, StageName};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;

/// What a migration would do.
#[derive(Debug, Clone)]
pub struct Preview {
    /// The playbook.
    pub playbook: Playbook,
    /// The mode that runs now.
    pub from: Mode,
    /// Its stages.
    pub stages: Vec<StagePreview>,
    /// What it will remove once the new mode serves, and what it keeps.
    pub plan: Plan,
}

/// What one stage would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StagePreview {
    /// The stage.
    pub stage: StageName,
    /// Whether it changes the node.
    pub changes: bool,
    /// What it does, a line each.
    pub does: Vec<String>,
    /// What it does that with, a line each: the services it waits for, the objects it counts.
    pub with: Vec<String>,
    /// Why the run would stop here, as far as that is known now.
    pub stops: Option<String>,
}

/// What a stage says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Previewed {
    pub(super) does: Vec<String>,
    pub(super) with: Vec<String>,
    pub(super) stops: Option<String>,
}

impl Previewed {
    /// It does one thing.
    pub(super) fn line(line: impl Into<String>) -> Previewed {
        Previewed::lines([line.into()])
    }

    /// It does these things.
    pub(super) fn lines(lines: impl IntoIterator<Item = String>) -> Previewed {
        Previewed { does: lines.into_iter().collect(), ..Previewed::default() }
    }

    /// The run would stop here.
    pub(super) fn stops(error: &Error) -> Previewed {
        Previewed { stops: Some(describe(error)), ..Previewed::default() }
    }
}

/// A node, and the migration that is previewed on it.
pub(super) struct Previewer<'a> {
    pub(super) catalogue: &'a Catalogue,
    pub(super) state: &'a NodeState,
    /// Whether the state is that of this node.
    pub(super) live: bool,
    /// The mode that runs now.
    pub(super) from: Mode,
    pub(super) playbook: &'a Playbook,
    /// What is served now.
    pub(super) served: &'a Services,
    /// What the stage `clean` will find.
    pub(super) plan: &'a Plan,
}

impl Previewer<'_> {
    /// The mode after the migration.
    pub(super) fn to(&self) -> Mode {
        self.playbook.to
    }
}

/// An error with its hint.
fn describe(error: &Error) -> String {
    let hint = error.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{error}{hint}")
}
