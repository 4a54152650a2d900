//! The playbook: the YAML that names the stages of one migration.
//!
//! What differs between migrations is data here; the engine knows stages and steps. A playbook that
//! was read is in order: it changes nothing before its snapshot, cleans nothing before the new mode
//! serves, and ends with a confirmation.

mod controller;
mod hooks;
mod order;
mod prepare;
mod stage;
mod words;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::kube_proxy::mode;
use crate::state::kube_proxy::Mode;
use crate::yaml;

pub use controller::{ControllerChoice, Switch};
pub use hooks::{Hook, Hooks, Point, When};
pub use prepare::Prepare;
pub use stage::{
    Clean, Confirm, Conntrack, Converge, Invariants, Means, NoOptions, Parity, Preflight, Probes,
    Settle, StageName, StageOptions, Upgrade, Verify,
};
pub use words::duration;

use order::Stages;

/// One migration, or one upgrade within a mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Playbook {
    /// Its name: `iptables-to-ipvs`.
    #[serde(rename = "playbook")]
    pub name: String,
    /// The mode that it leaves.
    pub from: Mode,
    /// The mode that it brings; the same as `from` for an upgrade.
    pub to: Mode,
    /// Its stages, in the order in which they run.
    pub stages: Vec<StageOptions>,
    /// What is done when a stage fails.
    pub on_failure: OnFailure,
    /// What runs before and after its stages.
    pub hooks: Hooks,
}

/// What is done when a stage fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The node goes back to what it was.
    #[default]
    Rollback,
}

/// A playbook as it is written. Without `from` and `to`, whatever mode runs stays.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    playbook: String,
    from: Option<Mode>,
    to: Option<Mode>,
    stages: Stages,
    #[serde(default)]
    on_failure: OnFailure,
    #[serde(default)]
    hooks: Hooks,
}

/// The playbooks that are built in: file and text.
pub const BUILTIN: [(&str, &str); 3] = [
    ("iptables-to-ipvs.yaml", include_str!("../../playbooks/iptables-to-ipvs.yaml")),
    ("ipvs-to-iptables.yaml", include_str!("../../playbooks/ipvs-to-iptables.yaml")),
    (UPGRADE, include_str!("../../playbooks/upgrade.yaml")),
];

const UPGRADE: &str = "upgrade.yaml";

/// The built-in playbook from one mode to another, or for an upgrade where both are the same.
///
/// # Errors
/// [`Kind::Usage`] where there is none.
pub fn builtin(from: Mode, to: Mode) -> Result<Playbook> {
    let (file, text) = builtin_text(from, to)?;
    Playbook::parse(file, text, from)
}

/// As [`builtin`], unread: its file's name and its text, for the run's folder.
///
/// # Errors
/// [`Kind::Usage`] where there is none.
pub fn builtin_text(from: Mode, to: Mode) -> Result<(&'static str, &'static str)> {
    supported(to)?;
    let name = match from == to {
        true => UPGRADE.to_owned(),
        false => format!("{from}-to-{to}.yaml"),
    };
    BUILTIN.into_iter().find(|(file, _)| *file == name).ok_or_else(|| {
        Error::new(Kind::Usage, format!("--to {to}"), format!("there is no way from {from} to it"))
            .hint("proxyshift goes from iptables to ipvs and from ipvs to iptables")
    })
}

/// Refuses a mode that no playbook leads to yet, with what to do meanwhile.
///
/// # Errors
/// [`Kind::Usage`], as the mode says.
pub fn supported(to: Mode) -> Result<()> {
    match mode::of(to).unsupported() {
        Some(unsupported) => Err(unsupported.error(format!("--to {to}"))),
        None => Ok(()),
    }
}

/// The mode that a built-in playbook takes a node from to `to`.
pub fn origin(to: Mode) -> Option<Mode> {
    Mode::ALL.into_iter().find(|from| *from != to && builtin_text(*from, to).is_ok())
}

/// An error with its place: the YAML reader leaves the very first one out.
fn located(mut error: Error) -> Error {
    if !error.cause.contains(" at line ") {
        error.cause.push_str(" at line 1 column 1");
    }
    error
}

impl Playbook {
    /// The checks whose findings stop it.
    pub fn blocking(&self) -> Vec<String> {
        match self.stage(StageName::Preflight) {
            Some(StageOptions::Preflight(lists)) => lists.block.clone(),
            _ => Vec::new(),
        }
    }

    /// Reads a playbook, for a node where kube-proxy runs in mode `running`.
    ///
    /// # Errors
    /// [`Kind::Parse`] for what is no YAML, for unknown keys, stages and types, and for stages that
    /// must not stand where they stand, with line and column; [`Kind::Usage`] for a playbook that
    /// does not fit the node, or hooks of a stage that it does not have.
    pub fn parse(file: &str, text: &str, running: Mode) -> Result<Playbook> {
        let read: Document = yaml::parse(file, text).map_err(located)?;
        let unfit = |cause: String| Err(Error::new(Kind::Usage, file, cause));
        if read.playbook.is_empty() {
            return unfit("playbook: has no name".into());
        }
        let (from, to) = match (read.from, read.to) {
            (Some(from), Some(to)) if from == to => {
                return unfit(format!("from, to: both are {to}; an upgrade names neither"));
            }
            (Some(from), Some(to)) => (from, to),
            (None, None) => (running, running),
            _ => return unfit("from, to: names one and not the other".into()),
        };
        supported(to)?;
        // A node that is in the new mode already is on the way: what the old one left is to be cleaned.
        if from != running && to != running {
            let cause = format!("from: it leaves {from} mode, but kube-proxy runs in {running}");
            return Err(Error::new(Kind::Usage, file, cause)
                .hint("leave out --playbook to take the one that fits, or give another"));
        }
        let stages = read.stages.0;
        let change = if from == to { StageName::Upgrade } else { StageName::Switch };
        let wrong = if from == to { StageName::Switch } else { StageName::Upgrade };
        if stages.iter().any(|s| s.name() == wrong) {
            let cause = format!("stages: from {from} to {to} takes `{change}`, not `{wrong}`");
            return unfit(cause);
        }
        if !stages.iter().any(|s| s.name() == change) {
            return unfit(format!("stages: from {from} to {to} takes `{change}`"));
        }
        if let Some(point) =
            read.hooks.points().find(|p| stages.iter().all(|s| s.name() != p.stage))
        {
            return unfit(format!("hooks: {point}: there is no stage `{}`", point.stage));
        }
        let Document { playbook: name, on_failure, hooks, .. } = read;
        Ok(Playbook { name, from, to, stages, on_failure, hooks })
    }

    /// The stage of that name, if the playbook has it.
    pub fn stage(&self, name: StageName) -> Option<&StageOptions> {
        self.stages.iter().find(|s| s.name() == name)
    }

    /// Refuses checks and owners that nobody knows: a misspelt one would block nothing, or clean
    /// nothing, and say nothing.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming stage and word.
    pub fn refers_to_known(
        &self,
        is_check: impl Fn(&str) -> bool,
        is_owner: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let unknown = |stage: StageName, what, name: &str, hint: &str| {
            let cause = format!("{stage}: there is no {what} `{name}`");
            let object = format!("playbook {}", self.name);
            Err(Error::new(Kind::Usage, object, cause).hint(hint))
        };
        for stage in &self.stages {
            match stage {
                StageOptions::Preflight(p) => {
                    if let Some(id) = p.block.iter().chain(&p.warn).find(|id| !is_check(id)) {
                        let hint = "`proxyshift check --list` lists them";
                        return unknown(stage.name(), "check", id, hint);
                    }
                }
                StageOptions::Clean(c) if !is_owner(&c.leftovers_of) => {
                    let hint = "`proxyshift plan` names the owners on this node";
                    return unknown(stage.name(), "owner", &c.leftovers_of, hint);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
