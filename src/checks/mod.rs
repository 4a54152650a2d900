//! Preflight checks: questions about a node that are answered before a change.
//!
//! A check has a stable id. It reads captured facts, never the node itself. Its verdict is ok,
//! found or unknown, and unknown never counts as ok. A check that has its own logic has its own
//! file; checks that differ only in their data share a file. Each area lists its checks in its
//! `mod.rs`.

mod backends;
mod cni;
mod conntrack;
mod dns;
mod docker;
mod exposed;
mod firewall;
mod invalid;
mod ipvs;
mod kernel;
mod kube_proxy;
mod markdown;
mod nftables;
mod registry;
mod sysctls;
#[cfg(test)]
mod testing;
mod tools;
mod writers;

use std::cell::OnceCell;
use std::time::Duration;

use serde::Serialize;

use crate::error::Error;
use crate::kube_proxy::mode;
use crate::kube_proxy::proxy_state::ProxyState;
use crate::kube_proxy::running::{RunningMode, configured};
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::plan::change::{Change, edits};
use crate::plan::leftovers::leftovers;
use crate::plan::{Object, Plan};
use crate::state::NodeState;
use crate::state::kube_proxy::{KubeProxyConfig, Mode};
use crate::state::live_facts::LiveFacts;

pub(crate) use invalid::{LIBERAL, felix_setting, first_gate, gate_in, program};
pub use markdown::markdown;
pub use registry::{all, find};

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// While this is found, no migration or clean-up may begin.
    Block,
    /// What was found harms traffic, now or after the change.
    Warn,
    /// What was found is worth knowing, but does no harm.
    Info,
}

/// The missing data that a verdict names if the processes were not captured.
const NO_PROCESSES: &str = "the processes are not in this state";

/// The facts that checks read. All of them are captured before the checks run.
pub struct Facts<'a> {
    /// The node's current state.
    pub now: &'a NodeState,
    /// An earlier capture of the node. Without it, checks cannot tell what rose or changed.
    pub earlier: Option<&'a NodeState>,
    /// The time between the two captures.
    pub interval: Option<Duration>,
    /// What only a living node can answer; `None` if the state is from a snapshot.
    pub live: Option<&'a LiveFacts>,
    /// Why the rules of the live node cannot be read, if so. Then `now` has none, and only the checks
    /// that need none are judged.
    pub unread: Option<&'a Error>,
    /// The target mode of a migration, if there is one.
    pub to: Option<Mode>,
    /// The catalogue of owners.
    pub catalogue: &'a Catalogue,
    /// The owner of each object in `now`.
    pub ownership: &'a Ownership<'a>,
    /// How kube-proxy is on the node.
    pub proxy: ProxyState<'a>,
    /// The mode in which kube-proxy runs, judged by what the kernel holds.
    pub running: RunningMode,
    /// kube-proxy's configuration, if it is known.
    pub settings: Option<KubeProxyConfig>,
    /// The clean-up plan of `now`, made when a check first needs it.
    pub plan: OnceCell<Plan>,
}

impl<'a> Facts<'a> {
    /// The facts of a single state, with no earlier capture and no live node. `to` is the target
    /// mode.
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
            unread: None,
            to,
            catalogue,
            ownership,
            proxy: ProxyState::of(now),
            running,
            settings,
            plan: OnceCell::new(),
        }
    }

    /// The clean-up plan of the current state.
    pub fn leftovers(&self) -> &Plan {
        self.plan.get_or_init(|| leftovers(self.catalogue, self.now, self.ownership))
    }

    /// The edits that carry out those removals of the clean-up plan that `wanted` accepts.
    fn removal(&self, wanted: impl Fn(&Object) -> bool) -> Vec<Change> {
        let objects = self.leftovers().removals().filter(|o| wanted(o)).cloned().collect();
        edits(&Plan { objects }, self.now).into_iter().map(Change::Objects).collect()
    }

    /// True if `mode` is the running mode, the configured mode or the target mode.
    pub fn concerns(&self, mode: Mode) -> bool {
        let configured = self.settings.as_ref().map(KubeProxyConfig::mode);
        [self.running.mode, configured, self.to].contains(&Some(mode))
    }
}

/// The outcome of a check: ok, found or unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong. The string is the evidence.
    Ok(String),
    /// Something is wrong. The payload has the evidence, the effect and the remedy.
    Found(Found),
    /// Not known. The string names the missing data.
    Unknown(String),
}

/// The verdict of a check that needs the processes, for a state without processes.
fn no_processes() -> Verdict {
    Verdict::Unknown(NO_PROCESSES.into())
}

/// The verdict of a check that needs a live node, if it runs on a snapshot.
fn not_live() -> Verdict {
    Verdict::Unknown("a live node alone can be asked".into())
}

/// What a check found wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What shows that something is wrong: the rule, the counter, or the file and line.
    pub evidence: Vec<String>,
    /// The effect on traffic, in one sentence.
    pub effect: String,
    /// The commands or configuration lines that correct what is wrong, in order.
    pub remedy: Vec<String>,
    /// The changes that correct what is wrong, if proxyshift can make them safely; otherwise empty.
    /// They are changes of objects and of sysctls.
    pub fix: Vec<Change>,
}

/// A check that the registry lists.
pub struct Check {
    /// The check's stable id: `tools.conntrack`.
    pub id: &'static str,
    /// What the check is about, as a noun phrase: `the conntrack binary that kube-proxy runs`.
    pub title: &'static str,
    /// How serious a finding of this check is.
    pub severity: Severity,
    /// When the check applies, in words, for the documentation.
    pub when: &'static str,
    /// Whether the check applies to these facts.
    pub applies: fn(&Facts<'_>) -> bool,
    /// Gives the check's verdict on these facts.
    pub evaluate: fn(&Facts<'_>) -> Verdict,
    /// Where to read more: an issue, a KEP, a manual page.
    pub reference: &'static str,
}

/// The verdict of one check, and those fields of the check that a report needs.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The check's id.
    pub id: &'static str,
    /// The check's title.
    pub title: &'static str,
    /// The check's severity.
    pub severity: Severity,
    /// The check's verdict on the node.
    pub verdict: Verdict,
    /// The check's reference.
    pub reference: &'static str,
}

impl Finding {
    /// True if the finding must stop a run.
    pub fn blocks(&self) -> bool {
        self.severity == Severity::Block && matches!(self.verdict, Verdict::Found(_))
    }

    /// The rank of the finding in a report: found before unknown before ok, then the most serious
    /// first.
    fn rank(&self) -> (u8, Severity, &'static str) {
        let outcome = match self.verdict {
            Verdict::Found(_) => 0,
            Verdict::Unknown(_) => 1,
            Verdict::Ok(_) => 2,
        };
        (outcome, self.severity, self.id)
    }
}

/// Runs the checks that apply and whose ids `wanted` accepts. Returns the most serious findings
/// first.
pub fn run(facts: &Facts<'_>, wanted: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let unlisted = Mode::ALL.into_iter().find_map(|m| mode::of(m).unlisted_table(facts.now));
    let mut findings: Vec<Finding> = all()
        .filter(|check| wanted(check.id) && (check.applies)(facts))
        .map(|check| Finding {
            id: check.id,
            title: check.title,
            severity: check.severity,
            verdict: match (facts.unread, &unlisted) {
                (Some(_), _) if !registry::judges_without_rules(check.id) => {
                    Verdict::Unknown("the rules cannot be read: see backends.garbled".into())
                }
                (None, Some(table)) if !registry::judges_without_services(check.id) => {
                    Verdict::Unknown(format!("the node's nft cannot list {table}"))
                }
                _ => (check.evaluate)(facts),
            },
            reference: check.reference,
        })
        .collect();
    findings.sort_by_key(Finding::rank);
    findings
}

/// The value of [`Check::applies`] for checks that apply to every node.
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
