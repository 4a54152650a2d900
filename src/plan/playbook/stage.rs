//! The stages and their options.

use std::time::Duration;

use serde::de::MapAccess;
use serde::{Deserialize, Serialize};

use super::controller::Switch;
use super::prepare::Prepare;
use super::words::time;
use crate::owners::component::KUBE_PROXY;
use crate::state::argv::{Argv, Rerun};

use crate::state::stage::for_each_stage;

pub use crate::state::stage::StageName;

/// Makes the enum [`StageOptions`] from the list of stages.
macro_rules! stage_options {
    ($($(#[$meaning:meta])* $Name:ident, $word:literal, $module:ident, $Options:ident, $changes:literal;)*) => {
        /// A stage with its options.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
        pub enum StageOptions {
            $($(#[$meaning])* #[serde(rename = $word)] $Name($Options),)*
        }

        impl StageOptions {
            /// The stage's name.
            pub fn name(&self) -> StageName {
                match self {
                    $(StageOptions::$Name(_) => StageName::$Name,)*
                }
            }

            /// Reads the options of the stage `name`.
            pub(super) fn read<'de, A: MapAccess<'de>>(
                name: StageName,
                map: &mut A,
            ) -> Result<StageOptions, A::Error> {
                Ok(match name {
                    $(StageName::$Name => StageOptions::$Name(map.next_value()?),)*
                })
            }
        }
    };
}
for_each_stage!(stage_options);

/// The options of a stage that has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoOptions {}

/// The checks that run before the change, and what their findings do. No other check runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preflight {
    /// The ids of checks whose findings stop the run.
    pub block: Vec<String>,
    /// The ids of checks whose findings are only shown.
    pub warn: Vec<String>,
}

/// The options of the stage `bridge`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BridgeOptions {
    /// How long to wait until the connections through ipvs have ended. New ones go by the bridge.
    #[serde(with = "time")]
    pub drain: Duration,
}

/// The options of the stage `upgrade`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawUpgrade")]
pub struct Upgrade {
    /// How kube-proxy is upgraded.
    #[serde(flatten)]
    pub by: UpgradeMethod,
    /// How long the upgrade may take. If it takes longer, the run is undone.
    #[serde(with = "time")]
    pub timeout: Duration,
}

/// How kube-proxy is upgraded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum UpgradeMethod {
    /// A command upgrades kube-proxy.
    Command {
        /// The program and its arguments.
        run: Argv,
        /// Whether the command may run again after it was interrupted.
        again: Rerun,
    },
    /// An administrator has changed the image in kube-proxy's DaemonSet, whose strategy OnDelete holds it
    /// back, and this node lets it in by deleting its own pod.
    Controller {
        /// The DaemonSet, which is found on the node.
        controller: FoundController,
    },
    /// The operator upgrades kube-proxy, and the run waits meanwhile.
    Operator {
        /// The text that asks the operator to upgrade.
        ask: String,
    },
}

/// The one word for a controller that an upgrade may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundController {
    /// The one that is found on the node.
    Auto,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUpgrade {
    run: Option<Argv>,
    again: Option<Rerun>,
    ask: Option<String>,
    controller: Option<FoundController>,
    #[serde(with = "time", default = "half_an_hour")]
    timeout: Duration,
}

fn half_an_hour() -> Duration {
    minutes(30)
}

impl TryFrom<RawUpgrade> for Upgrade {
    type Error = &'static str;

    fn try_from(raw: RawUpgrade) -> Result<Upgrade, &'static str> {
        let by = match (raw.run, raw.ask, raw.controller, raw.again) {
            (Some(run), None, None, again) => {
                UpgradeMethod::Command { run, again: again.unwrap_or_default() }
            }
            (None, Some(ask), None, None) => UpgradeMethod::Operator { ask },
            (None, None, Some(controller), None) => UpgradeMethod::Controller { controller },
            _ => return Err("an upgrade has one of `run`, with `again`, `ask`, or `controller`"),
        };
        Ok(Upgrade { by, timeout: raw.timeout })
    }
}

/// The options of the stage `converge`: what must hold before the clean-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Converge {
    /// What the new mode must serve like the old mode.
    pub parity: ParityScope,
    /// How long the stage waits.
    #[serde(with = "time")]
    pub timeout: Duration,
}

impl Default for Converge {
    fn default() -> Converge {
        Converge { parity: ParityScope::Services, timeout: minutes(2) }
    }
}

/// What parity compares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ParityScope {
    /// Every service with its backends: see [`crate::kube_proxy::parity`].
    #[default]
    Services,
}

/// The options of the stage `clean`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clean {
    /// The component whose leftovers are removed.
    pub leftovers_of: String,
    /// How long to wait until open connections through virtual servers end.
    #[serde(with = "time")]
    pub drain: Duration,
}

impl Default for Clean {
    fn default() -> Clean {
        Clean { leftovers_of: KUBE_PROXY.into(), drain: Duration::ZERO }
    }
}

/// The options of the stage `verify`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Verify {
    /// The invariants to verify.
    pub invariants: Invariants,
    /// The probes to repeat.
    pub probes: Probes,
}

/// Which invariants are verified against the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariants {
    /// All invariants.
    #[default]
    All,
}

/// Which probes must pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probes {
    /// The probes that passed before the change.
    #[default]
    Baseline,
}

/// The options of the stage `settle`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settle {
    /// Which conntrack entries to clear.
    pub conntrack: ConntrackScope,
}

/// Which conntrack entries to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConntrackScope {
    /// Entries of flows to a service that do not lead there: those of UDP whose endpoint is gone, and
    /// those of any protocol that began while nobody translated.
    #[default]
    #[serde(alias = "stale-service-udp")]
    StaleServiceEntries,
}

/// The options of the stage `confirm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Confirm {
    /// How long the operator may take to confirm. Without a confirmation in this time, the run is
    /// undone.
    #[serde(with = "time")]
    pub within: Duration,
}

impl Default for Confirm {
    fn default() -> Confirm {
        Confirm { within: minutes(5) }
    }
}

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}
