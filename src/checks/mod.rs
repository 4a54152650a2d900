//! Preflight checks: questions about a node before a change.
//!
//! A check has a stable id. It reads captured facts, never the node. Its verdict is ok, found or
//! unknown; unknown never counts as ok. A check with logic is a file; checks of one table are the
//! rows of one file. Each area lists its checks in its `mod.rs`.

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
mod sysctls;
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
pub use registry::{all, find};

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A migration or clean-up must not begin.
    Block,
    /// It harms traffic, now or after the change.
    Warn,
    /// Worth knowing.
    Info,
}

/// The missing data if the processes were not captured.
const NO_PROCESSES: &str = "the processes are not in this state";

/// The facts that checks read. All of them are captured before the checks run.
pub struct Facts<'a> {
    /// The node as it is.
    pub now: &'a NodeState,
    /// An earlier capture; without it, rises and changes are unknown.
    pub earlier: Option<&'a NodeState>,
    /// The time between the two captures.
    pub interval: Option<Duration>,
    /// The facts of a live node; `None` for a snapshot.
    pub live: Option<&'a LiveFacts>,
    /// The target mode of a migration, if there is one.
    pub to: Option<Mode>,
    /// The catalogue of owners.
    pub catalogue: &'a Catalogue,
    /// The owner of each object of `now`.
    pub ownership: &'a Ownership<'a>,
    /// The running mode, by what the kernel holds.
    pub running: RunningMode,
    /// kube-proxy's configuration, if it is known.
    pub settings: Option<KubeProxyConfig>,
    /// The clean-up plan of `now`, made when a check first needs it.
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

    /// The clean-up plan.
    pub fn leftovers(&self) -> &Plan {
        self.plan.get_or_init(|| leftovers(self.catalogue, self.now, self.ownership))
    }

    /// The edits for those removals of the clean-up plan that `wanted` accepts.
    fn removal(&self, wanted: impl Fn(&Object) -> bool) -> Vec<Edit> {
        let objects = self.leftovers().removals().filter(|o| wanted(o)).cloned().collect();
        edits(&Plan { objects }, self.now)
    }

    /// True if `mode` runs or is the target.
    pub fn concerns(&self, mode: Mode) -> bool {
        self.running.mode == Some(mode) || self.to == Some(mode)
    }
}

/// The outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong; the evidence.
    Ok(String),
    /// Something is wrong.
    Found(Found),
    /// Not known; the missing data.
    Unknown(String),
}

/// The verdict if the processes were not captured.
fn no_processes() -> Verdict {
    Verdict::Unknown(NO_PROCESSES.into())
}

/// The verdict on a snapshot, if the check needs a live node.
fn not_live() -> Verdict {
    Verdict::Unknown("a live node alone can be asked".into())
}

/// Something wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The rule, the counter, or the file and line.
    pub evidence: Vec<String>,
    /// The effect on traffic, in one sentence.
    pub effect: String,
    /// The commands or configuration lines that fix it, in order.
    pub remedy: Vec<String>,
    /// The edits that fix it, if proxyshift can apply them safely.
    pub fix: Vec<Edit>,
}

/// One check of the registry.
pub struct Check {
    /// Its stable id: `tools.conntrack`.
    pub id: &'static str,
    /// Its subject, as a noun phrase: `the conntrack binary that kube-proxy runs`.
    pub title: &'static str,
    /// The severity of its finding.
    pub severity: Severity,
    /// When it applies, in words, for the documentation.
    pub when: &'static str,
    /// Whether it applies.
    pub applies: fn(&Facts<'_>) -> bool,
    /// Its verdict on the facts.
    pub evaluate: fn(&Facts<'_>) -> Verdict,
    /// A reference: an issue, a KEP, a manual page.
    pub reference: &'static str,
}

/// A check's verdict, with the check.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The check's id.
    pub id: &'static str,
    /// The check's title.
    pub title: &'static str,
    /// The check's severity.
    pub severity: Severity,
    /// The verdict.
    pub verdict: Verdict,
    /// The check's reference.
    pub reference: &'static str,
}

impl Finding {
    /// True for a finding that must stop a run.
    pub fn blocks(&self) -> bool {
        self.severity == Severity::Block && matches!(self.verdict, Verdict::Found(_))
    }

    /// The rank in a report: found before unknown before ok, and the most serious first.
    fn rank(&self) -> (u8, Severity, &'static str) {
        let outcome = match self.verdict {
            Verdict::Found(_) => 0,
            Verdict::Unknown(_) => 1,
            Verdict::Ok(_) => 2,
        };
        (outcome, self.severity, self.id)
    }
}

/// Runs the checks that apply and whose id `wanted` accepts. The most serious findings come first.
pub fn run(facts: &Facts<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings: Vec<Finding> = all()
        .filter(|check| wanted(check.id) && (check.applies)(facts))
        .map(|check| Finding {
            id: check.id,
            title: check.title,
            severity: check.severity,
            verdict: (check.evaluate)(facts),
            reference: check.reference,
        })
        .collect();
    findings.sort_by_key(Finding::rank);
    findings
}

/// True: the check applies to every node.
pub(crate) fn always(_: &Facts<'_>) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_sorted_words() {
        let ids: Vec<_> = all().map(|c| c.id).collect();
        assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len());
        for check in all() {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            assert!(check.id.chars().all(plain) && check.id.contains('.'), "{}", check.id);
            assert!(!check.title.is_empty() && !check.reference.is_empty(), "{}", check.id);
        }
    }
}
