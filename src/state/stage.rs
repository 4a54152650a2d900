//! The stages of a run, by name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The list of stages, in the order of a playbook. Calls `$then!` with each: its meaning, its
/// name, its word in playbooks and journals, its module in `run/stage`, the type of its options in
/// `plan/playbook`, and whether it changes the node.
macro_rules! for_each_stage {
    ($then:ident) => {
        $then! {
            /// Runs the checks.
            Preflight, "preflight", preflight, Preflight, false;
            /// Takes the snapshot for the rollback.
            Snapshot, "snapshot", snapshot, NoOptions, false;
            /// Rehearses the run in a sandbox.
            Rehearse, "rehearse", rehearse, NoOptions, false;
            /// Loads modules and sets sysctls.
            Prepare, "prepare", prepare, Prepare, true;
            /// Edits kube-proxy's configuration and restarts it.
            Switch, "switch", switch, Switch, true;
            /// Replaces kube-proxy by another version.
            Upgrade, "upgrade", upgrade, Upgrade, true;
            /// Waits until the new mode serves.
            Converge, "converge", converge, Converge, false;
            /// Removes leftovers.
            Clean, "clean", clean, Clean, true;
            /// Verifies the node against the kernel.
            Verify, "verify", verify, Verify, false;
            /// Deletes stale entries of conntrack.
            Settle, "settle", settle, Settle, true;
            /// Waits for the operator.
            Confirm, "confirm", confirm, Confirm, false;
        }
    };
}
pub(crate) use for_each_stage;

/// Makes [`StageName`] of the list.
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
            /// All of them, in order.
            pub const ALL: [StageName; [$($word),*].len()] = [$(StageName::$Name),*];

            /// Its word in a playbook and in the journal.
            pub fn name(self) -> &'static str {
                match self {
                    $(StageName::$Name => $word,)*
                }
            }

            /// Whether it changes the node.
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
    /// The stage of that name.
    pub fn find(name: &str) -> Option<StageName> {
        StageName::ALL.into_iter().find(|stage| stage.name() == name)
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The stage of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum RunStage {
    /// A run before its first stage.
    Begun,
    /// A stage of a playbook, or of a clean-up.
    Playbook(StageName),
    /// The remedies of checks are applied.
    Fix,
    /// The run is undone.
    Rollback,
}

impl RunStage {
    /// The stage that removes leftovers.
    pub const CLEAN: RunStage = RunStage::Playbook(StageName::Clean);
    /// The stage that waits for the operator's confirmation.
    pub const CONFIRM: RunStage = RunStage::Playbook(StageName::Confirm);

    /// Its name in `run.json` and in the journal.
    pub fn name(self) -> &'static str {
        match self {
            RunStage::Begun => "begun",
            RunStage::Playbook(stage) => stage.name(),
            RunStage::Fix => "fix",
            RunStage::Rollback => "rollback",
        }
    }

    /// The stage of that name.
    pub fn find(name: &str) -> Option<RunStage> {
        let own = [RunStage::Begun, RunStage::Fix, RunStage::Rollback];
        let own = own.into_iter().find(|stage| stage.name() == name);
        own.or_else(|| StageName::find(name).map(RunStage::Playbook))
    }

    /// The stage of a playbook, if it is one.
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
