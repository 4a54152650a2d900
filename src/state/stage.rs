//! The stages of a run and their names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The list of stages, in the order of a playbook. Calls `$then!` with a row for each stage: a doc
/// comment, its variant of [`StageName`], its name in playbooks and journals, its module in
/// `run/stage`, the type of its options in `plan/playbook`, and whether it changes the node.
macro_rules! for_each_stage {
    ($then:ident) => {
        $then! {
            /// Runs the checks, before anything is changed.
            Preflight, "preflight", preflight, Preflight, false;
            /// Takes the snapshot that a rollback goes back to.
            Snapshot, "snapshot", snapshot, NoOptions, false;
            /// Rehearses the run in a private namespace, the sandbox.
            Rehearse, "rehearse", rehearse, NoOptions, false;
            /// Loads kernel modules and sets sysctls, now and for the next boot.
            Prepare, "prepare", prepare, Prepare, true;
            /// Loads the bridge, which serves while kube-proxy changes its mode.
            Bridge, "bridge", bridge, BridgeOptions, true;
            /// Edits kube-proxy's configuration and restarts kube-proxy.
            Switch, "switch", switch, Switch, true;
            /// Replaces kube-proxy by another version.
            Upgrade, "upgrade", upgrade, Upgrade, true;
            /// Waits until kube-proxy serves in its new mode.
            Converge, "converge", converge, Converge, false;
            /// Deletes the bridge, once the new mode serves.
            RemoveBridge, "remove-bridge", remove_bridge, NoOptions, true;
            /// Removes leftovers: objects whose owner is gone or no longer uses them.
            Clean, "clean", clean, Clean, true;
            /// Verifies, against the kernel, what must hold after a migration.
            Verify, "verify", verify, Verify, false;
            /// Deletes stale entries of the conntrack table.
            Settle, "settle", settle, Settle, true;
            /// Waits until the operator confirms the run.
            Confirm, "confirm", confirm, Confirm, false;
        }
    };
}
pub(crate) use for_each_stage;

/// Defines [`StageName`] from the list of stages.
macro_rules! stage_names {
    ($($(#[$meaning:meta])* $Name:ident, $word:literal, $module:ident, $Options:ident, $changes:literal;)*) => {
        /// The names of stages, in the order of a playbook.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub enum StageName {
            $($(#[$meaning])* #[serde(rename = $word)] $Name,)*
        }

        impl StageName {
            /// All stages, in the order of a playbook.
            pub const ALL: [StageName; [$($word),*].len()] = [$(StageName::$Name),*];

            /// The stage's name in a playbook and in the journal: `preflight`.
            pub fn name(self) -> &'static str {
                match self {
                    $(StageName::$Name => $word,)*
                }
            }

            /// Whether the stage changes the node.
            pub fn changes_the_node(self) -> bool {
                match self {
                    $(StageName::$Name => $changes,)*
                }
            }
        }
    };
}
for_each_stage!(stage_names);

impl StageName {
    /// The stage called `name`.
    pub fn find(name: &str) -> Option<StageName> {
        StageName::ALL.into_iter().find(|stage| stage.name() == name)
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a run does at the moment: a stage of its playbook, or one of the steps that no playbook
/// has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum RunStage {
    /// The run has begun, but has not reached its first stage.
    Begun,
    /// The run is in a stage of its playbook, or a clean-up is in its stage `clean`.
    Playbook(StageName),
    /// The run applies the remedies of checks.
    Fix,
    /// The run is being undone.
    Rollback,
}

impl RunStage {
    /// The stage `clean`, which removes leftovers.
    pub const CLEAN: RunStage = RunStage::Playbook(StageName::Clean);
    /// The stage `confirm`, which waits for the operator's confirmation.
    pub const CONFIRM: RunStage = RunStage::Playbook(StageName::Confirm);

    /// The stage's name in `run.json` and in the journal.
    pub fn name(self) -> &'static str {
        match self {
            RunStage::Begun => "begun",
            RunStage::Playbook(stage) => stage.name(),
            RunStage::Fix => "fix",
            RunStage::Rollback => "rollback",
        }
    }

    /// The stage called `name`.
    pub fn find(name: &str) -> Option<RunStage> {
        let own = [RunStage::Begun, RunStage::Fix, RunStage::Rollback];
        let own = own.into_iter().find(|stage| stage.name() == name);
        own.or_else(|| StageName::find(name).map(RunStage::Playbook))
    }

    /// The stage of a playbook; none for `begun`, `fix` and `rollback`.
    pub fn of_playbook(self) -> Option<StageName> {
        match self {
            RunStage::Playbook(stage) => Some(stage),
            RunStage::Begun | RunStage::Fix | RunStage::Rollback => None,
        }
    }
}

impl From<RunStage> for &'static str {
    fn from(stage: RunStage) -> &'static str {
        stage.name()
    }
}

impl TryFrom<String> for RunStage {
    type Error = String;

    fn try_from(name: String) -> Result<RunStage, String> {
        RunStage::find(&name).ok_or_else(|| format!("no stage is named `{name}`"))
    }
}

impl fmt::Display for RunStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_is_found_by_its_name() {
        let own = [RunStage::Begun, RunStage::Fix, RunStage::Rollback];
        for stage in own.into_iter().chain(StageName::ALL.map(RunStage::Playbook)) {
            assert_eq!(RunStage::find(stage.name()), Some(stage));
            let json = serde_json::to_string(&stage).unwrap();
            assert_eq!(serde_json::from_str::<RunStage>(&json).unwrap(), stage);
        }
        assert!(serde_json::from_str::<RunStage>("\"nowhere\"").is_err());
    }
}
