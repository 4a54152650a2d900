//! The playbook: the YAML that names the stages of one migration.
//!
//! The differences between migrations are data here; the engine knows only stages. A playbook that
//! parsed is in order: it changes nothing before its snapshot, cleans nothing before the new mode
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
pub use hooks::{Hook, Hooks, Point, StageSide};
pub use prepare::Prepare;
pub use stage::{
    Clean, Confirm, ConntrackScope, Converge, Invariants, NoOptions, ParityScope, Preflight,
    Probes, Settle, StageName, StageOptions, Upgrade, UpgradeMethod, Verify,
};
pub use words::duration;

use order::Stages;

/// One migration, or one upgrade within a mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Playbook {
    /// Its name: `iptables-to-ipvs`.
    #[serde(rename = "playbook")]
    pub name: String,
    /// The mode before.
    pub from: Mode,
    /// The mode after; the same as `from` for an upgrade.
    pub to: Mode,
    /// Its stages, in the order in which they run.
    pub stages: Vec<StageOptions>,
    /// The reaction to a stage that fails.
    pub on_failure: OnFailure,
    /// The commands before and after its stages.
    pub hooks: Hooks,
}

/// The reaction to a stage that fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The run is undone.
    #[default]
    Rollback,
}

/// The YAML of a playbook. Without `from` and `to` the mode is kept.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlaybook {
    playbook: String,
    from: Option<Mode>,
    to: Option<Mode>,
    stages: Stages,
    #[serde(default)]
    on_failure: OnFailure,
    #[serde(default)]
    hooks: Hooks,
}

/// The built-in playbooks: file name and text.
pub const BUILTIN: [(&str, &str); 3] = [
    ("iptables-to-ipvs.yaml", include_str!("../../playbooks/iptables-to-ipvs.yaml")),
    ("ipvs-to-iptables.yaml", include_str!("../../playbooks/ipvs-to-iptables.yaml")),
    (UPGRADE, include_str!("../../playbooks/upgrade.yaml")),
];

const UPGRADE: &str = "upgrade.yaml";

/// The built-in playbook from one mode to another; an upgrade if both are the same.
///
/// # Errors
/// [`Kind::Usage`] if there is none.
pub fn builtin(from: Mode, to: Mode) -> Result<Playbook> {
    let (file, text) = builtin_text(from, to)?;
    Playbook::parse(file, text, from)
}

/// As [`builtin`], but the file's name and text, for the run's folder.
///
/// # Errors
/// [`Kind::Usage`] if there is none.
pub fn builtin_text(from: Mode, to: Mode) -> Result<(&'static str, &'static str)> {
    supported(to)?;
    let name = if from == to { UPGRADE.to_owned() } else { format!("{from}-to-{to}.yaml") };
    BUILTIN.into_iter().find(|(file, _)| *file == name).ok_or_else(|| {
        Error::new(Kind::Usage, format!("--to {to}"), format!("there is no way from {from} to it"))
            .hint("proxyshift goes from iptables to ipvs and from ipvs to iptables")
    })
}

/// Refuses a mode that no playbook leads to yet. The hint says what to do meanwhile.
///
/// # Errors
/// [`Kind::Usage`], with the mode's reason.
pub fn supported(to: Mode) -> Result<()> {
    match mode::of(to).unsupported() {
        Some(unsupported) => Err(unsupported.error(format!("--to {to}"))),
        None => Ok(()),
    }
}

/// The mode that the built-in playbook to `to` starts from.
pub fn origin(to: Mode) -> Option<Mode> {
    Mode::ALL.into_iter().find(|from| *from != to && builtin_text(*from, to).is_ok())
}

/// Adds line and column to an error: the YAML reader omits those of the very first one.
fn located(mut error: Error) -> Error {
    if !error.cause.contains(" at line ") {
        error.cause.push_str(" at line 1 column 1");
    }
    error
}

impl Playbook {
    /// The checks with findings that stop the run.
    pub fn blocking(&self) -> Vec<String> {
        match self.stage(StageName::Preflight) {
            Some(StageOptions::Preflight(lists)) => lists.block.clone(),
            _ => Vec::new(),
        }
    }

    /// Reads a playbook, for a node where kube-proxy runs in mode `running`.
    ///
    /// # Errors
    /// [`Kind::Parse`], with line and column, for a text that is not YAML, for unknown keys, stages
    /// and types, and for stages out of order. [`Kind::Usage`] for a playbook that does not fit the
    /// node, or hooks of a stage that it does not have.
    pub fn parse(file: &str, text: &str, running: Mode) -> Result<Playbook> {
        let read: RawPlaybook = yaml::parse(file, text).map_err(located)?;
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
        // A node that is already in the new mode is accepted: the leftovers of the old mode are
        // still to be cleaned.
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
        let RawPlaybook { playbook: name, on_failure, hooks, .. } = read;
        Ok(Playbook { name, from, to, stages, on_failure, hooks })
    }

    /// The stage of that name, if the playbook has it.
    pub fn stage(&self, name: StageName) -> Option<&StageOptions> {
        self.stages.iter().find(|s| s.name() == name)
    }

    /// Refuses unknown checks and owners. A misspelt name would block or clean nothing, without a
    /// message.
    ///
    /// # Errors
    /// [`Kind::Usage`], with the stage and the name.
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
