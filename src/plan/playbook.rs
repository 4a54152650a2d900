//! The playbook: the YAML file that names the stages of one migration.
//!
//! The differences between migrations are data in a playbook; the engine knows only stages. A
//! playbook that was parsed has its stages in a safe order: nothing is changed before the snapshot,
//! nothing is cleaned before the new mode serves, and the last stage is a confirmation.

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
    BridgeOptions, Clean, Confirm, ConntrackScope, Converge, FoundController, Invariants,
    NoOptions, ParityScope, Preflight, Probes, Settle, StageName, StageOptions, Upgrade,
    UpgradeMethod, Verify,
};
pub use words::duration;

use order::Stages;

/// One migration, or one upgrade within a mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Playbook {
    /// The playbook's name: `iptables-to-ipvs`.
    #[serde(rename = "playbook")]
    pub name: String,
    /// kube-proxy's mode before the migration.
    pub from: Mode,
    /// kube-proxy's mode after the migration; the same as `from` for an upgrade.
    pub to: Mode,
    /// The stages, in the order in which they run.
    pub stages: Vec<StageOptions>,
    /// What happens when a stage fails.
    pub on_failure: OnFailure,
    /// The operator's commands before and after stages.
    pub hooks: Hooks,
}

/// What happens when a stage fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The run is undone.
    #[default]
    Rollback,
}

/// A playbook as YAML has it. Without `from` and `to`, kube-proxy keeps its mode.
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

/// The built-in playbooks, as pairs of file name and text.
pub const BUILTIN: [(&str, &str); 7] = [
    ("iptables-to-ipvs.yaml", include_str!("../../playbooks/iptables-to-ipvs.yaml")),
    ("ipvs-to-iptables.yaml", include_str!("../../playbooks/ipvs-to-iptables.yaml")),
    ("iptables-to-nftables.yaml", include_str!("../../playbooks/iptables-to-nftables.yaml")),
    ("nftables-to-iptables.yaml", include_str!("../../playbooks/nftables-to-iptables.yaml")),
    ("ipvs-to-nftables.yaml", include_str!("../../playbooks/ipvs-to-nftables.yaml")),
    ("nftables-to-ipvs.yaml", include_str!("../../playbooks/nftables-to-ipvs.yaml")),
    (UPGRADE, include_str!("../../playbooks/upgrade.yaml")),
];

const UPGRADE: &str = "upgrade.yaml";

/// The built-in playbook that leads from one mode to another. If both modes are the same, the
/// playbook is an upgrade.
///
/// # Errors
/// [`Kind::Usage`] if no built-in playbook leads from `from` to `to`.
pub fn builtin(from: Mode, to: Mode) -> Result<Playbook> {
    let (file, text) = builtin_text(from, to)?;
    Playbook::parse(file, text, from)
}

/// Like [`builtin`], but returns the file's name and text, which are kept in the run's folder.
///
/// # Errors
/// [`Kind::Usage`] if no built-in playbook leads from `from` to `to`.
pub fn builtin_text(from: Mode, to: Mode) -> Result<(&'static str, &'static str)> {
    reachable(to)?;
    let name = if from == to { UPGRADE.to_owned() } else { format!("{from}-to-{to}.yaml") };
    BUILTIN.into_iter().find(|(file, _)| *file == name).ok_or_else(|| {
        Error::new(Kind::Usage, format!("--to {to}"), format!("there is no way from {from} to it"))
            .hint("proxyshift moves kube-proxy between iptables, ipvs and nftables")
    })
}

/// Refuses a mode that no migration and no upgrade leads to.
fn reachable(to: Mode) -> Result<()> {
    match mode::of(to).unsupported() {
        Some(unsupported) => Err(unsupported.error(format!("--to {to}"))),
        None => Ok(()),
    }
}

/// The mode from which the built-in playbook to the mode `to` starts.
pub fn origin(to: Mode) -> Option<Mode> {
    Mode::ALL.into_iter().find(|from| *from != to && builtin_text(*from, to).is_ok())
}

/// Adds line and column to an error that lacks them, because the YAML reader omits them at the very
/// start of the file.
fn located(mut error: Error) -> Error {
    if !error.cause.contains(" at line ") {
        error.cause.push_str(" at line 1 column 1");
    }
    error
}

impl Playbook {
    /// The ids of the checks whose findings stop the run.
    pub fn blocking(&self) -> Vec<String> {
        match self.stage(StageName::Preflight) {
            Some(StageOptions::Preflight(lists)) => lists.block.clone(),
            _ => Vec::new(),
        }
    }

    /// Reads a playbook for a node where kube-proxy runs in the mode `running`.
    ///
    /// # Errors
    /// [`Kind::Parse`], with line and column, for a text that is not YAML, for unknown keys, stages
    /// and types, and for stages out of order. [`Kind::Usage`] for a playbook that does not fit the
    /// node, and for hooks of a stage that the playbook does not have.
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
        reachable(to)?;
        // A node that is already in the new mode is accepted, because the leftovers of the old mode
        // are still to be cleaned.
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

    /// The options of the stage with that name, if the playbook has the stage.
    pub fn stage(&self, name: StageName) -> Option<&StageOptions> {
        self.stages.iter().find(|s| s.name() == name)
    }

    /// Refuses check ids and owners that do not exist. A misspelt one would block or clean nothing,
    /// without a message.
    ///
    /// # Errors
    /// [`Kind::Usage`], with the stage and the misspelt check id or owner.
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
