//! The stage `clean`: removes leftovers. In a migration the stage takes its own snapshot and
//! rehearses by itself, because the leftovers exist only after the switch.

use std::time::Duration;

use crate::error::Result;
use crate::interrupt;
use crate::owners::component::KUBE_PROXY;
use crate::owners::matcher::{Owner, Ownership};
use crate::plan::Plan;
use crate::plan::change::{Edit, TableEdit, Target};
use crate::plan::leftovers::CleanupScope;
use crate::plan::merge;
use crate::plan::playbook::Clean;
use crate::run::execution::{Execution, Planned, UndoContext};
use crate::run::payload::Replay;
use crate::run::preview::{Previewed, Previewer};
use crate::run::snapshot::take_snapshot;
use crate::run::stage::drain::{self, Leaving};
use crate::run::stage::rehearse::{Rehearsed, rehearse};
use crate::run::stage::{Stage, Undo};
use crate::run::stored::load_state;
use crate::run::undo_edits::{execute_undo, undo_all_edits};
use crate::state::NodeState;
use crate::state::object::ObjectKind;
use crate::state::stage::RunStage;
use crate::store::run::RunKind;

/// The timeout of the stage, not counting the margin that the watchdog allows every stage. A
/// clean-up of a large node takes minutes.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The function that undoes the stage.
pub(super) const UNDO: Option<Undo> = Some(undo);

/// The stage `clean` with the options of the playbook.
pub(super) fn stage(options: Clean) -> Box<dyn Stage> {
    Box::new(RemoveLeftovers {
        scope: CleanupScope::of_owner(&options.leftovers_of),
        drain: Some(options.drain),
    })
}

/// Removes the leftovers in `scope`.
pub(in crate::run) struct RemoveLeftovers {
    /// Which leftovers are removed.
    pub(in crate::run) scope: CleanupScope,
    /// How long to wait for open connections through virtual servers; none if they are not counted.
    pub(in crate::run) drain: Option<Duration>,
}

impl Stage for RemoveLeftovers {
    fn name(&self) -> RunStage {
        RunStage::CLEAN
    }

    fn timeout(&self) -> Duration {
        self.drain.unwrap_or_default() + TIMEOUT
    }

    fn preview(&self, previewer: &Previewer<'_>) -> Previewed {
        let mut does = vec![match previewer.plan.removals().count() {
            0 => format!("finds nothing that {} will have left", self.scope.owners.join(", ")),
            n if previewer.from == previewer.to() => {
                format!("removes {n} objects that are left over")
            }
            n => format!("removes {n} objects that {} mode will have left", previewer.from),
        }];
        if let Some(drain) = self.drain.filter(|drain| !drain.is_zero()) {
            let seconds = drain.as_secs();
            does.push(format!(
                "waits up to {seconds} s for open connections through ipvs, and cuts what is left \
                 of them"
            ));
        }
        Previewed { with: counts(previewer.plan), ..Previewed::lines(does) }
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let context = execution.context;
        let Some(planned) = self.planned(execution)? else {
            context.sink.note("nothing is left over of the old mode");
            return Ok(());
        };
        if let Some(drain) = self.drain {
            drain::wait(context, &Leaving::of_edits(&planned.edits), drain, &|| {
                interrupt::check("draining")
            })?;
        }
        let plan_again = || self.scope.edits(context.catalogue, &context.observe_owners()?);
        execution.apply(self.name(), planned, &plan_again)
    }
}

impl RemoveLeftovers {
    /// The edits, and the node state before them; none when there are no leftovers. A resumed stage
    /// plans its edits from the node as it is now, but its undo restores the state before the first
    /// attempt.
    fn planned(&self, execution: &mut Execution<'_>) -> Result<Option<Planned>> {
        let context = execution.context;
        if let Some(planned) = execution.planned.take() {
            return Ok(Some(planned));
        }
        if let Some(base) = execution.clean_base()? {
            let edits = self.scope.edits(context.catalogue, &context.observe_owners()?)?;
            return Ok(Some(Planned { base, edits }));
        }
        let baseline = take_snapshot(context, "before the stage clean")?;
        if let Some(pending) = &mut execution.run.pending {
            pending.clean_snapshot = Some(baseline.snapshot.id.clone());
        }
        context.store.update(&mut execution.run)?;
        context.store.keep_snapshot_in_memory(&execution.run, &baseline.snapshot);
        rehearse(context, &baseline.snapshot, Rehearsed::CleanUp)?;
        let base = baseline.state;
        let edits = self.scope.edits(context.catalogue, &base)?;
        Ok((!edits.is_empty()).then_some(Planned { base, edits }))
    }
}

/// How many objects of each kind are removed, as texts: `12 chains`.
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

/// Restores the objects that the stage removed, if the run is a clean-up or a migration.
///
/// # Errors
/// [`Kind::NotRolledBack`](crate::error::Kind::NotRolledBack) when an edit cannot be undone.
pub(in crate::run) fn undo(undo: &mut UndoContext<'_>) -> Result<()> {
    match undo.run.kind {
        RunKind::Fix { .. } => Ok(()),
        RunKind::Cleanup(_) => undo_all_edits(undo),
        RunKind::Migrate(_) => restore_cleaned(undo),
    }
}

/// Restores what a migration removed. When kube-proxy has changed its mode and serves, only foreign
/// objects are restored, because kube-proxy makes its own objects anew.
fn restore_cleaned(undo: &mut UndoContext<'_>) -> Result<()> {
    let context = undo.context;
    let Some(id) = undo.run.clean_snapshot() else { return Ok(()) };
    let Replay { mut done, open, failed, .. } = undo.replay.take_edits();
    done.extend(failed.into_iter().chain(open.map(|(edit, _)| edit)));
    if done.is_empty() {
        return Ok(());
    }
    let base = load_state(context, undo.run, id)?;
    let changed_mode = undo.run.modes().is_some_and(|modes| modes.from != modes.to);
    if undo.serves && changed_mode {
        let ownership = Ownership::of(context.catalogue, &base);
        done = done.into_iter().filter_map(|edit| foreign_part(edit, &ownership)).collect();
    }
    let plan = |now: &NodeState| merge::undo(&done, &base, now);
    let edits = plan(&context.observe_objects()?).edits;
    undo.restored += edits.iter().map(Edit::objects).sum::<usize>();
    let plan_again = || Ok(plan(&context.observe_objects()?).edits);
    execute_undo(context, undo.journal, &base, edits, &plan_again)
}

/// The part of an edit that concerns foreign objects; none if all are kube-proxy's own.
fn foreign_part(edit: Edit, ownership: &Ownership<'_>) -> Option<Edit> {
    let ours = |owner: Option<Owner<'_>>| owner.is_some_and(|owner| owner.name == KUBE_PROXY);
    let Edit { direction, target } = edit;
    let Target::Table(mut table) = target else {
        let foreign = target.id().is_some_and(|id| !ours(ownership.of_object(&id)));
        return foreign.then_some(Edit { direction, target });
    };
    let TableEdit { ruleset, table: name, rules, chains } = &mut table;
    chains.retain(|chain| !ours(ownership.chain(*ruleset, name, &chain.name)));
    rules.retain(|rule| !ours(ownership.rule(*ruleset, name, &rule.chain, rule.position)));
    let is_empty = chains.is_empty() && rules.is_empty();
    (!is_empty).then_some(Edit { direction, target: Target::Table(table) })
}
