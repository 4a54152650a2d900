//! The stage `prepare`: loads kernel modules and sets sysctls, now and for the next boot.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::apply::files::swap;
use crate::apply::{files, modules, sysctl};
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::kube_proxy::mode;
use crate::kube_proxy::proxy_state::ProxyState;
use crate::kube_proxy::running::configured;
use crate::node::live_facts;
use crate::node::modules::is_loaded;
use crate::node::sysctls;
use crate::plan::change::{Change, Edit, Irreversible};
use crate::plan::playbook::Prepare;
use crate::run::execution::{Execution, UndoContext};
use crate::run::payload::StepRef;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::{Stage, Undo};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::state::stage::{RunStage, StageName};

/// The function that undoes the stage.
pub(super) const UNDO: Option<Undo> = Some(undo);

/// The stage `prepare` with the options of the playbook.
pub(super) fn stage(options: Prepare) -> Box<dyn Stage> {
    Box::new(options)
}

impl Stage for Prepare {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Prepare)
    }

    fn preview(&self, previewer: &Previewer<'_>) -> Previewed {
        let loaded = |name: &str| {
            let list = previewer.state.files.get("modules.txt").map_or("", |text| text);
            list.lines().any(|line| line.split(' ').next() == Some(name))
        };
        let needed = needed_modules(previewer.state, previewer.to());
        let modules = modules_for(&self.modules, needed);
        let modules = modules.iter().map(|name| {
            if loaded(name) {
                format!("module {name}: loaded already")
            } else {
                format!("module {name}: loads it, unless it is built in")
            }
        });
        let now = previewer.state.sysctls();
        let sysctls = self.sysctls.iter().map(|(name, to)| {
            match now.as_ref().and_then(|now| now.get(name)) {
                Some(from) if from == to => format!("{name}: {to} already"),
                Some(from) => format!("{name}: {from} → {to}"),
                None => format!("{name}: → {to}, where there is none yet"),
            }
        });
        let (modules_file, sysctl_file) = (modules::BOOT_FILE, sysctl::BOOT_FILE);
        let lasting = format!("{modules_file} and {sysctl_file}: the same for the next boot");
        Previewed::lines(modules.chain(sysctls).chain([lasting]))
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let (sink, stage) = (execution.context.sink, StageName::Prepare.name());
        let task = Task::Prepare;
        sink.started(&task);
        let known = live_facts::modules::read();
        let to = execution.migration()?.modes.to;
        let wanted = modules_for(&self.modules, needed_modules(execution.base()?, to));
        let mut number = 0;
        for name in &wanted {
            if is_loaded(name, &known)? {
                continue;
            }
            number += 1;
            let step = StepRef::new(stage, number);
            let change = Irreversible::Module { name: name.clone() };
            step.begin::<Edit>(&mut execution.journal, Change::Irreversible(change))?;
            modules::load(execution.context.tools, name, &known)?;
            step.mark_done(&mut execution.journal)?;
        }
        let loaded = number;
        number = set_sysctls(execution, self.name(), number, &self.sysctls)?;
        let lasting = [
            (modules::BOOT_FILE, modules::boot_text(wanted.iter().map(String::as_str))),
            (sysctl::BOOT_FILE, sysctl::boot_text(&self.sysctls)),
        ];
        for (path, to) in lasting {
            let path = Path::new(path);
            let from = crate::node::files::read(path)?;
            if from.as_deref() == Some(&to) {
                continue;
            }
            number += 1;
            let step = StepRef::new(stage, number);
            let change =
                Change::File { path: path.into(), from: from.clone(), to: Some(to.clone()) };
            step.begin::<Edit>(&mut execution.journal, change)?;
            files::persist(path, from.as_deref(), Some(&to))?;
            step.mark_done(&mut execution.journal)?;
        }
        let settings = (number - loaded) as usize;
        sink.finished(&task, Outcome::Prepared { modules: wanted.len(), settings });
        Ok(())
    }
}

/// Sets the sysctls that have another value, and journals each. `number` is that of the stage's last
/// step. Returns the number of the last one now.
///
/// # Errors
/// When a sysctl cannot be read or set. Those before it stay set; the engine undoes them.
pub(super) fn set_sysctls(
    execution: &mut Execution<'_>,
    stage: RunStage,
    mut number: u32,
    wanted: &BTreeMap<String, String>,
) -> Result<u32> {
    for (name, to) in wanted {
        let from = sysctls::value_of(name)?;
        if from.as_deref() == Some(to) {
            continue;
        }
        number += 1;
        let step = StepRef::new(stage.name(), number);
        let change = Change::Sysctl { name: name.clone(), from, to: to.clone() };
        step.begin::<Edit>(&mut execution.journal, change)?;
        sysctl::set(name, to)?;
        step.mark_done(&mut execution.journal)?;
    }
    Ok(number)
}

/// The kernel modules that the node's kube-proxy needs in the mode `to`, as it is configured.
fn needed_modules(state: &NodeState, to: Mode) -> BTreeSet<String> {
    mode::of(to).modules(configured(state).as_ref(), ProxyState::of(state).version())
}

/// The modules that the playbook names, and those that kube-proxy needs, each once.
fn modules_for(named: &[String], needed: BTreeSet<String>) -> Vec<String> {
    let mut modules = named.to_vec();
    modules.extend(needed.into_iter().filter(|module| !named.contains(module)));
    modules
}

/// Restores the sysctls and files that the stage changed.
///
/// # Errors
/// None, because failures are collected in `undo`.
pub(in crate::run) fn undo(undo: &mut UndoContext<'_>) -> Result<()> {
    undo.restored += restore(undo.replay.begun.iter().rev(), &mut undo.failures);
    Ok(())
}

/// Restores only the files, because sysctls are reset by a reboot. Returns how many were restored.
pub(in crate::run) fn restore_persisted(changes: &[Change], failures: &mut Vec<String>) -> usize {
    let files = changes.iter().rev().filter(|c| matches!(c, Change::File { .. }));
    restore(files, failures)
}

/// Undoes changes of files and sysctls in the order of `changes`. Returns how many were undone.
fn restore<'a>(changes: impl Iterator<Item = &'a Change>, failures: &mut Vec<String>) -> usize {
    let mut count = 0;
    for change in changes {
        match undo_change(change) {
            Ok(undone) => count += usize::from(undone),
            Err(e) => failures.push(e.to_string()),
        }
    }
    count
}

/// Undoes a change of a file or a sysctl, if the present value is still the one that the run wrote.
/// Returns false for a change of another kind.
///
/// # Errors
/// [`Kind::LostRace`] when somebody has changed the value since; then the present value is kept.
fn undo_change(change: &Change) -> Result<bool> {
    match change {
        Change::File { path, from, to } => swap(path, to.as_deref(), from.as_deref())?,
        Change::Sysctl { name, from: Some(from), to } => {
            match sysctls::value_of(name)?.as_deref() {
                Some(now) if now == from => {}
                Some(now) if now != to => {
                    let cause =
                        format!("is {now} now, neither {from} nor {to}; it is left as found");
                    return Err(Error::new(Kind::LostRace, name, cause));
                }
                _ => sysctl::set(name, from)?,
            }
        }
        // The sysctl did not exist before. It came with a kernel module, which stays loaded, so the
        // sysctl stays too.
        Change::Sysctl { from: None, .. } => {}
        // Edits and kube-proxy's configuration are undone by other stages.
        Change::Objects(_)
        | Change::Configuration { .. }
        | Change::SwitchRequested { .. }
        | Change::PodReplaced(_)
        | Change::BridgeLoaded { .. }
        | Change::BridgeDeleted
        | Change::Irreversible(_) => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kube_proxy_needs_is_loaded_too() {
        let named = ["ip_vs".to_owned(), "ip_vs_rr".to_owned()];
        let with =
            |needed: &[&str]| modules_for(&named, needed.iter().map(|m| (*m).to_owned()).collect());
        assert_eq!(with(&["ip_vs_lc"]), ["ip_vs", "ip_vs_rr", "ip_vs_lc"]);
        assert_eq!(with(&["ip_vs_rr"]), named);
        assert_eq!(with(&[]), named);
    }
}
