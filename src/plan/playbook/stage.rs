//! The stages and their options.

use std::time::Duration;

use serde::de::MapAccess;
use serde::{Deserialize, Serialize};

use super::controller::Switch;
use super::prepare::Prepare;
use super::words::time;
use crate::state::argv::{Argv, Rerun};

use crate::state::stage::for_each_stage;

pub use crate::state::stage::StageName;

/// Makes [`StageOptions`] of the list of stages.
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

            /// Reads the options that follow a stage's name.
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

/// No options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoOptions {}

/// Which checks are asked, and what their findings do. No other check is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preflight {
    /// The ids of checks whose findings stop the run.
    pub block: Vec<String>,
    /// The ids of checks whose findings are shown.
    pub warn: Vec<String>,
}

/// How kube-proxy comes to its new version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawUpgrade")]
pub struct Upgrade {
    /// Who does it.
    #[serde(flatten)]
    pub by: Means,
    /// How long it may take; the run is undone then.
    #[serde(with = "time")]
    pub timeout: Duration,
}

/// Who upgrades kube-proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Means {
    /// A command.
    Command {
        /// What is run.
        run: Argv,
        /// Whether it may run twice.
        again: Rerun,
    },
    /// The operator; the run waits meanwhile.
    Operator {
        /// What the operator is told.
        ask: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUpgrade {
    run: Option<Argv>,
    again: Option<Rerun>,
    ask: Option<String>,
    #[serde(with = "time", default = "half_an_hour")]
    timeout: Duration,
}

fn half_an_hour() -> Duration {
    minutes(30)
}

impl TryFrom<RawUpgrade> for Upgrade {
    type Error = &'static str;

    fn try_from(raw: RawUpgrade) -> Result<Upgrade, &'static str> {
        let by = match (raw.run, raw.ask, raw.again) {
            (Some(run), None, again) => Means::Command { run, again: again.unwrap_or_default() },
            (None, Some(ask), None) => Means::Operator { ask },
            _ => return Err("an upgrade has either `run`, with `again`, or `ask`"),
        };
        Ok(Upgrade { by, timeout: raw.timeout })
    }
}

/// What must be seen before anything is cleaned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Converge {
    /// What must be the same as before.
    pub parity: Parity,
    /// How long it may take.
    #[serde(with = "time")]
    pub timeout: Duration,
}

impl Default for Converge {
    fn default() -> Converge {
        Converge { parity: Parity::Services, timeout: minutes(2) }
    }
}

/// What must be the same in both modes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parity {
    /// Every service with its backends: [`crate::plan::parity`].
    #[default]
    Services,
}

/// What is cleaned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Clean {
    /// The owner whose leftovers go.
    pub leftovers_of: String,
    /// How long open connections through virtual servers are waited for.
    #[serde(with = "time")]
    pub drain: Duration,
}

impl Default for Clean {
    fn default() -> Clean {
        Clean { leftovers_of: "kube-proxy".into(), drain: Duration::ZERO }
    }
}

/// What is proven after the change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Verify {
    /// Which invariants.
    pub invariants: Invariants,
    /// Which probes.
    pub probes: Probes,
}

/// Which invariants are held against the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariants {
    /// All.
    #[default]
    All,
}

/// Which probes must pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probes {
    /// Those that passed before the change.
    #[default]
    Baseline,
}

/// What is forgotten at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settle {
    /// Which tracked connections.
    pub conntrack: Conntrack,
}

/// Which tracked connections are forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conntrack {
    /// UDP flows to service addresses whose backend is gone.
    #[default]
    StaleServiceUdp,
}

/// How long the operator has to confirm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Confirm {
    /// The run is undone after this.
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
