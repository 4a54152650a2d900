//! What runs before and after stages.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

use super::stage::StageName;
use super::words::{time, word};
use crate::state::argv::{Argv, Rerun};

/// Commands by the point at which they run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hooks(BTreeMap<Point, Vec<Hook>>);

/// One command of the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// What is run.
    pub run: Argv,
    /// How long it may take.
    #[serde(with = "time", default = "five_minutes")]
    pub timeout: Duration,
    /// Whether it may run twice.
    #[serde(default)]
    pub again: Rerun,
}

fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

/// A point in a run: `before_switch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The stage.
    pub stage: StageName,
    /// Which side of it.
    pub when: When,
}

/// Which side of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum When {
    /// Before it.
    Before,
    /// After it, when it has succeeded.
    After,
}

impl Hooks {
    /// The commands at a point, in order.
    pub fn at(&self, when: When, stage: StageName) -> &[Hook] {
        self.0.get(&Point { stage, when }).map_or(&[], Vec::as_slice)
    }

    /// The points that have any.
    pub fn points(&self) -> impl Iterator<Item = Point> {
        self.0.keys().copied()
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.when {
            When::Before => "before",
            When::After => "after",
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
                    "before" => When::Before,
                    "after" => When::After,
                    _ => return None,
                };
                Some(Point { when, stage: StageName::find(stage)? })
            });
            let expected = "expected before_STAGE or after_STAGE";
            point.ok_or_else(|| format!("unknown hook `{text}`, {expected}"))
        })
    }
}
