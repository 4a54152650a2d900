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
    /// The playbook whose stages are previewed.
    pub playbook: Playbook,
    /// The mode that kube-proxy runs in now.
    pub from: Mode,
    /// The previews of the stages, in order.
    pub stages: Vec<StagePreview>,
    /// What the stage `clean` will remove once the new mode serves, and what it will keep.
    pub plan: Plan,
}

/// What one stage would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StagePreview {
    /// The name of the stage.
    pub stage: StageName,
    /// Whether the stage changes the node.
    pub changes: bool,
    /// What the stage does, one line each.
    pub does: Vec<String>,
    /// The objects that the stage deals with, one line each: the services that it waits for, or the
    /// objects that it counts.
    pub with: Vec<String>,
    /// Why the run would stop at this stage, as far as that is known now.
    pub stops: Option<String>,
}

/// The part of a preview that the stage itself gives; the hooks are added to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Previewed {
    pub(super) does: Vec<String>,
    pub(super) with: Vec<String>,
    pub(super) stops: Option<String>,
}

impl Previewed {
    /// The preview of a stage that does one thing.
    pub(super) fn line(line: impl Into<String>) -> Previewed {
        Previewed::lines([line.into()])
    }

    /// The preview of a stage that does the things in `lines`.
    pub(super) fn lines(lines: impl IntoIterator<Item = String>) -> Previewed {
        Previewed { does: lines.into_iter().collect(), ..Previewed::default() }
    }

    /// The preview of a stage at which `error` would stop the run.
    pub(super) fn stops(error: &Error) -> Previewed {
        Previewed { stops: Some(describe(error)), ..Previewed::default() }
    }
}

/// A node state, and the migration that is previewed on it.
pub(super) struct Previewer<'a> {
    pub(super) catalogue: &'a Catalogue,
    pub(super) state: &'a NodeState,
    /// Whether the state is that of this node, so that files of this node may be read.
    pub(super) live: bool,
    /// The mode that kube-proxy runs in now.
    pub(super) from: Mode,
    pub(super) playbook: &'a Playbook,
    /// The services that the old mode serves now.
    pub(super) served: &'a Services,
    /// What the stage `clean` will remove and keep.
    pub(super) plan: &'a Plan,
}

impl Previewer<'_> {
    /// The mode that the playbook leads to.
    pub(super) fn to(&self) -> Mode {
        self.playbook.to
    }
}

/// An error as text, with its hint in parentheses.
fn describe(error: &Error) -> String {
    let hint = error.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{error}{hint}")
}
