//! Check mode: previews a task. Nothing is written, not even a store or a lock file.

use crate::error::Result;
use crate::front::ansible::answer::ModuleResult;
use crate::front::ansible::diff::Diff;
use crate::front::ansible::options::ModuleTask;
use crate::front::ansible::options::State;
use crate::front::ansible::states::NOTHING_TO_UNDO;
use crate::front::ansible::states::checked;
use crate::front::ansible::states::cleaned_already;
use crate::front::ansible::states::guard;
use crate::front::ansible::states::migrated_already;
use crate::front::ansible::states::unchanged;
use crate::front::ansible::states::undone;
use crate::guard::unit::Unit;
use crate::node::systemd;
use crate::plan::change::Edit;
use crate::plan::leftovers::CleanupScope;
use crate::run::confirm::{self, Confirmed};
use crate::run::migrate::{self, MigrateOptions};
use crate::run::rollback::to::{self, RollbackPlan};
use crate::run::snapshot;
use crate::run::{Context, cleanup, rollback};
use crate::ui::table::counted;

/// Previews what `task` would change on the node.
///
/// # Errors
/// Every error that would fail the task before its first change.
pub(super) fn check_mode(context: &Context<'_>, task: &ModuleTask) -> Result<ModuleResult> {
    match &task.state {
        State::Checked { to, snapshot, ignore } => {
            checked(context, *to, snapshot.as_deref(), ignore)
        }
        State::Snapshotted => Ok(match snapshot::latest_if_current(context)? {
            Some(snapshot) => {
                unchanged(&format!("snapshot {} still tells what the node is", snapshot.id))
            }
            None => ModuleResult { changed: true, ..unchanged("a snapshot would be taken") },
        }),
        State::Cleaned { owners, .. } => match cleaned_already(context, owners)? {
            Some(answer) => Ok(answer),
            None => {
                let wanted = CleanupScope { owners: owners.clone(), black_holes: false };
                let edits = cleanup::intended(context, &wanted)?;
                let objects = edits.iter().map(Edit::objects).sum();
                Ok(would(&edits, &format!("{} would be removed", counted(objects, "object"))))
            }
        },
        State::Migrated { to, playbook, ignore, .. } => {
            if let Some(answer) = migrated_already(context, *to)? {
                return Ok(answer);
            }
            let playbook = playbook.as_deref();
            let requested =
                MigrateOptions { to: *to, playbook, confirm_within: None, confirm: true, ignore };
            let from = migrate::intended(context, &requested)?.from;
            let edits = cleanup::intended(context, &CleanupScope::of_owner("kube-proxy"))?;
            let diff = Some(Diff::of(&edits).modes(from.name(), to.name()));
            let msg = format!("kube-proxy would go from {from} to {to} mode");
            Ok(ModuleResult { changed: true, diff, ..unchanged(&msg) })
        }
        State::Confirmed => Ok(match confirm::awaited(context)? {
            Confirmed::Now(run) => ModuleResult {
                changed: true,
                ..unchanged(&format!("run {} would be confirmed", run.id))
            },
            Confirmed::Already(run) => unchanged(&format!("run {} was confirmed before", run.id)),
        }),
        State::RolledBack { to: Some(snapshot) } => {
            let RollbackPlan { snapshot, runs } =
                to::intended(context, &context.store.find(snapshot)?.dir)?;
            let runs: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
            let msg = undone(&snapshot.id, &runs, "would undo");
            Ok(ModuleResult { changed: !runs.is_empty(), ..unchanged(&msg) })
        }
        State::RolledBack { to: None } => {
            let Some(run) = rollback::revertible_run(context)? else {
                return Ok(unchanged(NOTHING_TO_UNDO));
            };
            let msg = format!("run {} would be undone", run.id);
            if let Some(modes) = run.modes() {
                let diff = Some(Diff::default().modes(modes.to.name(), modes.from.name()));
                return Ok(ModuleResult { changed: true, diff, ..unchanged(&msg) });
            }
            Ok(would(&rollback::intended_edits(context, &run)?, &msg))
        }
        State::Guarded { exceptions } => {
            let guard = guard(context, exceptions);
            let rules = guard.intended()?;
            let answer = would(&rules, "the exceptions would be set right");
            let unit = systemd::runs_the_node()
                && Unit::new(&guard, context.store).needs_change(&rules)?;
            if unit && !answer.changed {
                return Ok(ModuleResult {
                    changed: true,
                    ..unchanged("their unit would be set right")
                });
            }
            Ok(answer)
        }
    }
}

fn would(edits: &[Edit], msg: &str) -> ModuleResult {
    if edits.is_empty() {
        return unchanged("nothing would be changed");
    }
    ModuleResult { changed: true, diff: Some(Diff::of(edits)), ..unchanged(msg) }
}
