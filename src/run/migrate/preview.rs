//! What a migration would do to a node, stage by stage, told without doing any of it.

use std::path::Path;

use serde::Serialize;
use similar::{ChangeTag, TextDiff};

use crate::apply::{modules, sysctl};
use crate::error::{Error, Kind, Result};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::{Service, ServiceKey, Services};
use crate::kube_proxy::takeover::predict_takeover;
use crate::node::kube_proxy_controller::read_config;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::plan::leftovers::leftovers_after;
use crate::plan::playbook::{Means, Playbook, Prepare, Stage, StageName, When};
use crate::plan::{Plan, playbook};
use crate::run::migrate::{Asked, kube_proxy, read_playbook, running};
use crate::run::probes;
use crate::state::NodeState;
use crate::state::kube_proxy::{CommandLine, ConfigSource, Instances, Mode};
use crate::state::object::ObjectKind;
use crate::state::sysctl::Sysctls;

/// What a migration would do.
#[derive(Debug, Clone)]
pub struct Preview {
    /// The playbook.
    pub playbook: Playbook,
    /// The mode that runs now.
    pub from: Mode,
    /// Its stages.
    pub stages: Vec<StagePreview>,
    /// What it will remove once the new mode serves, and what stays.
    pub plan: Plan,
}

/// What one stage would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StagePreview {
    /// The stage.
    pub stage: StageName,
    /// Whether it changes the node.
    pub changes: bool,
    /// What it does, a line each.
    pub does: Vec<String>,
    /// What it does that with, a line each: the services it asks for, the objects it counts.
    pub with: Vec<String>,
    /// Why the run would stop here, as far as that can be told now.
    pub stops: Option<String>,
}

/// What `migrate` would do to a node in that state; `live` says that it is this node's. None where
/// the mode asked for runs already and no other playbook is given: there is a clean-up to do, if
/// anything.
///
/// # Errors
/// [`Kind::Usage`] for a mode that no playbook leads to, or a playbook that does not fit;
/// [`Kind::Blocked`] where it is not clear which mode runs.
pub fn preview(
    catalogue: &Catalogue,
    state: &NodeState,
    live: bool,
    to: Mode,
    playbook: Option<&Path>,
) -> Result<Option<Preview>> {
    playbook::supported(to)?;
    let from = running(catalogue, state)?;
    if from == to && playbook.is_none() {
        return Ok(None);
    }
    let asked = Asked { to, playbook, confirm_within: None, confirm: true, ignore: &[] };
    let (playbook, _) = read_playbook(&asked, from)?;
    let view = View { catalogue, state, live, from, playbook: &playbook };
    let plan = view.leftovers()?;
    let served = mode::of(from).services(state);
    let stages = playbook.stages.iter().map(|stage| view.ahead(stage, &served, &plan)).collect();
    Ok(Some(Preview { stages, plan, from, playbook }))
}

/// A node and the playbook for it.
struct View<'a> {
    catalogue: &'a Catalogue,
    state: &'a NodeState,
    live: bool,
    from: Mode,
    playbook: &'a Playbook,
}

impl View<'_> {
    /// What the stage `clean` will find; what it takes is its owner's alone.
    fn leftovers(&self) -> Result<Plan> {
        let Some(Stage::Clean(clean)) = self.playbook.stage(StageName::Clean) else {
            return Ok(Plan::default());
        };
        let after = predict_takeover(self.catalogue, self.state, self.playbook.to)?;
        let plan = leftovers_after(self.catalogue, &after, self.playbook.to);
        Ok(plan.of_owners(std::slice::from_ref(&clean.leftovers_of)))
    }

    fn ahead(&self, stage: &Stage, served: &Services, plan: &Plan) -> StagePreview {
        let to = self.playbook.to;
        let name = stage.name();
        let (mut with, mut stops) = (Vec::new(), None);
        let mut does = match stage {
            Stage::Preflight(lists) => vec![format!(
                "asks {} checks that stop the run and {} that warn; `proxyshift check --to {to}` \
                 asks them now",
                lists.block.len(),
                lists.warn.len()
            )],
            Stage::Snapshot {} => {
                vec!["takes a snapshot, and proves that it restores in a private namespace".into()]
            }
            Stage::Rehearse {} => vec![format!(
                "tries the clean-up and its undoing on a private copy; `proxyshift rehearse --to \
                 {to}` does it now"
            )],
            Stage::Prepare(prepare) => self.prepare(prepare),
            Stage::Switch(_) => self.switch().unwrap_or_else(|e| {
                stops = Some(said(&e));
                Vec::new()
            }),
            Stage::Upgrade(upgrade) => vec![match &upgrade.by {
                Means::Command { run, .. } => format!("runs `{run}`"),
                Means::Operator { ask } => format!("asks: {ask}"),
            }],
            Stage::Converge(converge) => {
                let asked = served.iter().filter(|(_, s)| !s.backends.is_empty());
                with = asked.map(|(key, service)| served_by(key, service)).collect();
                vec![format!(
                    "waits up to {} s until kube-proxy serves these {} service ports in {to} mode, \
                     each with every backend",
                    converge.timeout.as_secs(),
                    with.len()
                )]
            }
            Stage::Clean(clean) => {
                with = counts(plan);
                let mut does = vec![match plan.removals().count() {
                    0 => format!("finds nothing that {} will have left", clean.leftovers_of),
                    n if self.from == to => format!("removes {n} objects that are left over"),
                    n => format!("removes {n} objects that {} mode will have left", self.from),
                }];
                if !clean.drain.is_zero() {
                    let seconds = clean.drain.as_secs();
                    does.push(format!(
                        "waits up to {seconds} s for open connections through ipvs, and cuts what \
                         is left of them"
                    ));
                }
                does
            }
            Stage::Verify(_) => {
                let probes = probes::choose(served, self.state);
                with = probes.iter().map(ToString::to_string).collect();
                vec![format!(
                    "proves that what is not kube-proxy's is all there, in the same order, and \
                     asks {} services that answered before",
                    with.len()
                )]
            }
            Stage::Settle(_) => {
                vec!["forgets stale UDP connections to services; cannot be undone".into()]
            }
            Stage::Confirm(confirm) => vec![format!(
                "waits {} s for `proxyshift confirm`, and undoes the run without it",
                confirm.within.as_secs()
            )],
        };
        for (when, word) in [(When::Before, "before"), (When::After, "after")] {
            let hooks = self.playbook.hooks.at(when, name);
            does.extend(hooks.iter().map(|hook| format!("{word} it runs `{}`", hook.run)));
        }
        StagePreview { stage: name, changes: name.changes_the_node(), does, with, stops }
    }

    fn prepare(&self, prepare: &Prepare) -> Vec<String> {
        let loaded = |name: &str| {
            let list = self.state.files.get("modules.txt").map_or("", |text| text);
            list.lines().any(|line| line.split(' ').next() == Some(name))
        };
        let modules = prepare.modules.iter().map(|name| match loaded(name) {
            true => format!("module {name}: loaded already"),
            false => format!("module {name}: loads it, unless it is built in"),
        });
        let text = self.state.files.get("sysctl.txt");
        let now = text.and_then(|text| Sysctls::parse("sysctl.txt", text).ok());
        let sysctls = prepare.sysctls.iter().map(|(name, to)| {
            match now.as_ref().and_then(|now| now.get(name)) {
                Some(from) if from == to => format!("{name}: {to} already"),
                Some(from) => format!("{name}: {from} → {to}"),
                None => format!("{name}: → {to}, where there is none yet"),
            }
        });
        let (modules_file, sysctl_file) = (modules::BOOT_FILE, sysctl::BOOT_FILE);
        let lasting = format!("{modules_file} and {sysctl_file}: the same for the next boot");
        modules.chain(sysctls).chain([lasting]).collect()
    }

    /// The lines of kube-proxy's settings that the switch changes.
    fn switch(&self) -> Result<Vec<String>> {
        let (settings, text, who) = match self.live {
            true => self.live_settings()?,
            false => self.captured_settings()?,
        };
        let ownership = Ownership::of(self.catalogue, self.state);
        let edit = mode::of(self.playbook.to).config_edit(self.state, &ownership);
        let after = settings.edit(&text, &edit)?;
        let diff = TextDiff::from_lines(text.as_str(), after.as_str());
        let lines = diff.iter_all_changes().filter_map(|change| {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => return None,
            };
            Some(format!("{sign} {}", change.value().trim_end()))
        });
        let mut does = vec![format!("edits {settings}, and {who} kube-proxy at once")];
        does.extend(lines);
        Ok(does)
    }

    fn live_settings(&self) -> Result<(ConfigSource, String, String)> {
        let (controller, settings) = kube_proxy(self.playbook, self.state)?
            .ok_or_else(|| Error::new(Kind::NotFound, "kube-proxy's settings", "are not found"))?;
        let text = read_config(&settings)?
            .ok_or_else(|| Error::new(Kind::NotFound, settings.to_string(), "is gone"))?;
        Ok((settings, text, format!("by {controller} restarts")))
    }

    /// As far as a capture has them: the file that kube-proxy was started with.
    fn captured_settings(&self) -> Result<(ConfigSource, String, String)> {
        let unknown = |cause: &str| {
            Err(Error::new(Kind::NotFound, "kube-proxy's settings", cause)
                .hint("on the node itself, `proxyshift plan` finds them"))
        };
        let processes = self.state.processes.as_deref().unwrap_or_default();
        let process = match Instances::of(processes) {
            Instances::One(process) => process,
            Instances::None => return unknown("no kube-proxy is in this state"),
            Instances::Many(_) => return unknown("more than one kube-proxy is in this state"),
        };
        let Some(config) = CommandLine::parse(&process.args)?.config else {
            return unknown("are flags of its command line, in no file of this state");
        };
        let Some(text) = self.state.file(&config).map(str::to_owned) else {
            return unknown("are in a file that this state does not hold");
        };
        Ok((ConfigSource::File(config.into()), text, "restarts".into()))
    }
}

/// An error with what to do about it.
fn said(error: &Error) -> String {
    let hint = error.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{error}{hint}")
}

/// `10.96.0.10:53/udp (kube-system/kube-dns:dns) → 192.168.66.5:53, 192.168.66.6:53`.
fn served_by(key: &ServiceKey, service: &Service) -> String {
    let name = service.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let backends: Vec<String> = service.backends.iter().map(ToString::to_string).collect();
    format!("{key}{name} → {}", backends.join(", "))
}

/// How many objects of each kind go.
fn counts(plan: &Plan) -> Vec<String> {
    let kinds = [
        (ObjectKind::Chain, "chains"),
        (ObjectKind::Rule, "rules"),
        (ObjectKind::Table, "nft tables"),
        (ObjectKind::Set, "ipsets"),
        (ObjectKind::VirtualServer, "virtual servers"),
        (ObjectKind::RealServer, "real servers"),
        (ObjectKind::Link, "links"),
    ];
    let count = |kind| plan.removals().filter(|o| o.kind() == kind).count();
    let counted = kinds.into_iter().map(|(kind, words)| (count(kind), words));
    counted.filter(|(n, _)| *n > 0).map(|(n, words)| format!("{n} {words}")).collect()
}
