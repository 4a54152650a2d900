//! Preflight: what an operator would have wanted to know the night before.
//!
//! The registry is a plain list. A check is one file with a stable id; it looks at facts that were
//! captured before, never at the node, and says ok, found or unknown. Unknown never looks like ok.

mod backends;
mod cni;
mod conntrack;
mod dns;
mod docker;
mod invalid;
mod ipvs;
mod kernel;
mod kube_proxy;
mod markdown;
mod registry;
#[cfg(test)]
mod testing;
mod tools;
mod writers;

use std::cell::OnceCell;
use std::time::Duration;

use serde::Serialize;

use crate::kube_proxy::running::{RunningMode, configured};
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::plan::change::{Edit, edits};
use crate::plan::leftovers::leftovers;
use crate::plan::{Object, Plan};
use crate::state::NodeState;
use crate::state::kube_proxy::{KubeProxyConfig, Mode};
use crate::state::live_facts::LiveFacts;

pub(crate) use invalid::{felix_setting, first_gate};
pub use markdown::markdown;
pub use registry::CHECKS;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A migration or clean-up must not begin.
    Block,
    /// It will hurt, or does already.
    Warn,
    /// Worth knowing.
    Info,
}

/// What the checks look at: all of it captured before.
pub struct Facts<'a> {
    /// The node as it is.
    pub now: &'a NodeState,
    /// The node some time earlier; without it, what rises or changes is unknown.
    pub earlier: Option<&'a NodeState>,
    /// How long ago `earlier` was.
    pub interval: Option<Duration>,
    /// What only a live node can be asked; none for a snapshot.
    pub live: Option<&'a LiveFacts>,
    /// The mode that kube-proxy is to go to, if it is to go anywhere.
    pub to: Option<Mode>,
    /// Who owns what.
    pub catalogue: &'a Catalogue,
    /// The owner of each object of `now`.
    pub ownership: &'a Ownership<'a>,
    /// The mode that runs, by what the kernel holds.
    pub running: RunningMode,
    /// What kube-proxy was told, where that is known.
    pub settings: Option<KubeProxyConfig>,
    /// What a clean-up would say of `now`, once a check has asked.
    pub plan: OnceCell<Plan>,
}

impl<'a> Facts<'a> {
    /// The facts of one state.
    pub fn of(
        now: &'a NodeState,
        catalogue: &'a Catalogue,
        ownership: &'a Ownership<'a>,
        to: Option<Mode>,
    ) -> Facts<'a> {
        let running = RunningMode::of(now, ownership);
        let settings = configured(now);
        Facts {
            now,
            earlier: None,
            interval: None,
            live: None,
            to,
            catalogue,
            ownership,
            running,
            settings,
            plan: OnceCell::new(),
        }
    }

    /// What a clean-up would remove and keep.
    pub fn leftovers(&self) -> &Plan {
        self.plan.get_or_init(|| leftovers(self.catalogue, self.now, self.ownership))
    }

    /// The edits that remove those of a clean-up's objects that `wanted` takes.
    fn removal(&self, wanted: impl Fn(&Object) -> bool) -> Vec<Edit> {
        let objects = self.leftovers().removals().filter(|o| wanted(o)).cloned().collect();
        edits(&Plan { objects }, self.now)
    }

    /// True when kube-proxy runs in `mode`, or is to.
    pub fn concerns(&self, mode: Mode) -> bool {
        self.running.mode == Some(mode) || self.to == Some(mode)
    }
}

/// What a check says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All is well; what shows it.
    Ok(String),
    /// Something is wrong.
    Found(Found),
    /// It cannot be said; what was missing.
    Unknown(String),
}

/// Something wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The very rule, counter, or file and line.
    pub evidence: Vec<String>,
    /// What it does to traffic, in one sentence.
    pub effect: String,
    /// Commands or configuration lines that end it, in order.
    pub remedy: Vec<String>,
    /// Edits that end it, where proxyshift can make them safely.
    pub fix: Vec<Edit>,
}

/// One check of the registry.
pub struct Check {
    /// Its stable id: `tools.conntrack`.
    pub id: &'static str,
    /// What it looks at, as a noun phrase: `the conntrack binary that kube-proxy runs`.
    pub title: &'static str,
    /// How much it matters when it finds something.
    pub severity: Severity,
    /// When it applies, in words, for the documentation.
    pub when: &'static str,
    /// Whether it applies.
    pub applies: fn(&Facts<'_>) -> bool,
    /// Its judgement.
    pub judge: fn(&Facts<'_>) -> Verdict,
    /// Where to read more: an issue, a KEP, a manual page.
    pub reference: &'static str,
}

/// A check's id, what it is about, and what it said.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The check's id.
    pub id: &'static str,
    /// The check's title.
    pub title: &'static str,
    /// The check's severity.
    pub severity: Severity,
    /// What it said.
    pub verdict: Verdict,
    /// The check's reference.
    pub reference: &'static str,
}

impl Finding {
    /// True for something found that must stop a run.
    pub fn blocks(&self) -> bool {
        self.severity == Severity::Block && matches!(self.verdict, Verdict::Found(_))
    }

    /// 0 found, 1 unknown, 2 ok: found things first, most serious first among them.
    fn rank(&self) -> (u8, Severity, &'static str) {
        let outcome = match self.verdict {
            Verdict::Found(_) => 0,
            Verdict::Unknown(_) => 1,
            Verdict::Ok(_) => 2,
        };
        (outcome, self.severity, self.id)
    }
}

/// Runs the checks that apply and whose id `wanted` takes; most serious findings first.
pub fn run(facts: &Facts<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings: Vec<Finding> = CHECKS
        .iter()
        .filter(|check| wanted(check.id) && (check.applies)(facts))
        .map(|check| Finding {
            id: check.id,
            title: check.title,
            severity: check.severity,
            verdict: (check.judge)(facts),
            reference: check.reference,
        })
        .collect();
    findings.sort_by_key(Finding::rank);
    findings
}

/// Applies to every node.
pub(crate) fn always(_: &Facts<'_>) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_sorted_words() {
        let ids: Vec<_> = CHECKS.iter().map(|c| c.id).collect();
        assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len());
        for check in CHECKS {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            assert!(check.id.chars().all(plain) && check.id.contains('.'), "{}", check.id);
            assert!(!check.title.is_empty() && !check.reference.is_empty(), "{}", check.id);
        }
    }
}
