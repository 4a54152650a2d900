//! The order of stages. It is checked while the stages are read, so that an error has the line of
//! the stage that is out of order.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::stage::{StageName, StageOptions};

/// The stages of a playbook, in a valid order.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Stages(pub(super) Vec<StageOptions>);

impl<'de> Deserialize<'de> for Stages {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Stages, D::Error> {
        from.deserialize_seq(All)
    }
}

struct All;

impl<'de> Visitor<'de> for All {
    type Value = Stages;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of stages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Stages, A::Error> {
        let mut stages = Vec::new();
        while let Some(stage) = list.next_element_seed(Next(&stages))? {
            stages.push(stage);
        }
        complete(&names(&stages)).map_err(de::Error::custom)?;
        Ok(Stages(stages))
    }
}

/// Reads the stage that follows the given stages.
struct Next<'a>(&'a [StageOptions]);

impl<'de> DeserializeSeed<'de> for Next<'_> {
    type Value = StageOptions;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<StageOptions, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Next<'_> {
    type Value = StageOptions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one stage with its options, as `snapshot: {}`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StageOptions, A::Error> {
        let Some(name) = map.next_key::<StageName>()? else {
            return Err(de::Error::custom("a stage without a name"));
        };
        may_follow(&names(self.0), name).map_err(de::Error::custom)?;
        let stage = StageOptions::read(name, &mut map)?;
        match map.next_key::<String>()? {
            None => Ok(stage),
            Some(key) => {
                let cause =
                    format!("`{key}` stands beside `{name}`: each stage is an item of its own");
                Err(de::Error::custom(cause))
            }
        }
    }
}

fn names(stages: &[StageOptions]) -> Vec<StageName> {
    stages.iter().map(StageOptions::name).collect()
}

/// Refuses `stage` if it may not follow the stages `before`.
fn may_follow(before: &[StageName], stage: StageName) -> Result<(), String> {
    let has = |name| before.contains(&name);
    if has(stage) {
        return Err(format!("the stage `{stage}` is named twice"));
    }
    if stage.changes_the_node() && !has(StageName::Snapshot) {
        return Err(format!("`{stage}` changes the node, so `snapshot` must stand before it"));
    }
    if stage == StageName::Clean && !has(StageName::Converge) {
        return Err("`clean` must stand behind `converge`: what still serves is not cleaned".into());
    }
    match before.last() {
        Some(last) if *last > stage => Err(format!("`{stage}` must stand before `{last}`")),
        _ => Ok(()),
    }
}

/// Refuses a list of stages that ends too early.
fn complete(stages: &[StageName]) -> Result<(), String> {
    let has = |name: &StageName| stages.contains(name);
    let changed = [StageName::Switch, StageName::Upgrade].into_iter().find(has);
    if let Some(change) = changed {
        for needed in [StageName::Converge, StageName::Verify] {
            if !has(&needed) {
                return Err(format!("after `{change}` there must be `{needed}`"));
            }
        }
    }
    match (has(&StageName::Bridge), has(&StageName::RemoveBridge)) {
        (true, false) => return Err("there is `bridge`, and no `remove-bridge`".into()),
        (false, true) => return Err("there is `remove-bridge`, and no `bridge`".into()),
        (true, true) if changed.is_none() => {
            return Err("there is `bridge`, and nothing that it is needed for".into());
        }
        _ => {}
    }
    if has(&StageName::Confirm) {
        Ok(())
    } else {
        Err("there is no `confirm`: what nobody confirms is undone".into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether the list neither cleans too early nor changes anything without a snapshot. Written
    /// independently of the rules above, to test them.
    fn is_safe(stages: &[StageName]) -> bool {
        let position_of = |name| stages.iter().position(|s| *s == name);
        let first_change = stages.iter().position(|s| s.changes_the_node());
        let snapshot_first = match (position_of(StageName::Snapshot), first_change) {
            (_, None) => true,
            (snapshot, Some(change)) => snapshot.is_some_and(|s| s < change),
        };
        let clean_last = position_of(StageName::Clean).is_none_or(|clean| {
            position_of(StageName::Converge).is_some_and(|c| c < clean)
                && position_of(StageName::Switch).is_none_or(|s| s < clean)
        });
        // What loads the bridge also deletes it, and only once kube-proxy serves.
        let bridged = match (position_of(StageName::Bridge), position_of(StageName::RemoveBridge)) {
            (None, None) => true,
            (Some(bridge), Some(removed)) => {
                let between = [StageName::Switch, StageName::Upgrade].map(position_of);
                between.iter().flatten().all(|at| bridge < *at && *at < removed)
                    && between.iter().any(Option::is_some)
                    && position_of(StageName::Converge).is_some_and(|c| c < removed)
            }
            _ => false,
        };
        let once = StageName::ALL.iter().all(|n| stages.iter().filter(|s| *s == n).count() <= 1);
        snapshot_first
            && clean_last
            && bridged
            && once
            && stages.last() == Some(&StageName::Confirm)
    }

    fn accepted(stages: &[StageName]) -> bool {
        let follows = |at: usize| may_follow(&stages[..at], stages[at]).is_ok();
        (0..stages.len()).all(follows) && complete(stages).is_ok()
    }

    #[test]
    fn a_bridge_is_loaded_and_deleted_around_the_change() {
        use StageName::{Bridge, Clean, Confirm, Converge, RemoveBridge, Snapshot, Switch, Verify};
        let whole = [Snapshot, Bridge, Switch, Converge, RemoveBridge, Clean, Verify, Confirm];
        assert!(accepted(&whole));
        for without in [Bridge, RemoveBridge, Switch] {
            let stages: Vec<StageName> = whole.into_iter().filter(|s| *s != without).collect();
            assert!(!accepted(&stages), "without {without}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_safe(
            stages in prop::collection::vec(prop::sample::select(&StageName::ALL[..]), 0..14)
        ) {
            prop_assert!(!accepted(&stages) || is_safe(&stages), "{stages:?}");
        }

        #[test]
        fn the_usual_order_with_gaps_is_accepted_when_it_is_safe(
            mut stages in prop::sample::subsequence(&StageName::ALL[..], 0..=13)
        ) {
            if stages.contains(&StageName::Bridge) || stages.contains(&StageName::RemoveBridge) {
                stages.extend([StageName::Bridge, StageName::Switch, StageName::RemoveBridge]);
            }
            let complete = [StageName::Converge, StageName::Verify, StageName::Snapshot];
            stages.extend(complete);
            stages.push(StageName::Confirm);
            stages.sort();
            stages.dedup();
            prop_assert!(accepted(&stages) && is_safe(&stages), "{stages:?}");
        }
    }
}
