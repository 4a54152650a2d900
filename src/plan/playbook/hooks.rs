//! Hooks: commands of the operator that run before and after stages.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

use super::stage::StageName;
use super::words::{time, word};
use crate::state::argv::{Argv, Rerun};

/// The operator's commands, keyed by the point in a run at which they run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hooks(BTreeMap<Point, Vec<Hook>>);

/// One command of the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// The program and its arguments.
    pub run: Argv,
    /// How long the command may run.
    #[serde(with = "time", default = "five_minutes")]
    pub timeout: Duration,
    /// Whether the command may run again after it was interrupted.
    #[serde(default)]
    pub again: Rerun,
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

/// A point in a run, before or after a stage: `before_switch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The stage that the point is at.
    pub stage: StageName,
    /// Whether the point is before or after the stage.
    pub when: StageSide,
}

/// One side of a stage: before it or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StageSide {
    /// Before the stage starts.
    Before,
    /// After the stage has succeeded.
    After,
}

impl Hooks {
    /// The commands that run at a point, in order.
    pub fn at(&self, when: StageSide, stage: StageName) -> &[Hook] {
        self.0.get(&Point { stage, when }).map_or(&[], Vec::as_slice)
    }

    /// The points at which commands run.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        self.0.keys().copied()
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.when {
            StageSide::Before => "before",
            StageSide::After => "after",
        };
        write!(f, "{when}_{}", self.stage)
    }
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Point, D::Error> {
        word(from, "before_STAGE or after_STAGE", |text| {
            let point = text.split_once('_').and_then(|(when, stage)| {
                let when = match when {
                    "before" => StageSide::Before,
                    "after" => StageSide::After,
                    _ => return None,
                };
                Some(Point { when, stage: StageName::find(stage)? })
            });
            let expected = "expected before_STAGE or after_STAGE";
            point.ok_or_else(|| format!("unknown hook `{text}`, {expected}"))
        })
    }
}
