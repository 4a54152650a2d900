//! The request of the verb `cleanup`: remove leftovers, and nothing else.

use std::time::Duration;

use crate::error::Result;
use crate::node::observe::observe;
use crate::plan::Plan;
use crate::plan::change::{Edit, detach, edits};
use crate::plan::invariants::remaining_state;
use crate::plan::leftovers::CleanupScope;
use crate::plan::playbook::{Confirm, Hooks};
use crate::run::Context;
use crate::run::engine::{self, Request, RunResult, Work, refuse_pending};
use crate::run::execution::Planned;
use crate::run::stage::Stage;
use crate::run::stage::clean::RemoveLeftovers;
use crate::run::stage::rehearse::{Rehearsed, rehearse};
use crate::run::stored::{Baseline, parse_snapshot};
use crate::store::run::{CleanupOptions, RunKind};
use crate::store::snapshots::Snapshot;

/// The edits that a clean-up would make now; nothing is changed.
///
/// # Errors
/// [`Kind::Pending`](crate::error::Kind::Pending) while another run is pending; or the error of a
/// capture that fails.
pub fn intended(context: &Context<'_>, scope: &CleanupScope) -> Result<Vec<Edit>> {
    refuse_pending(context)?;
    scope.edits(context.catalogue, &observe(context.tools, context.sink)?)
}

/// Removes leftovers. Returns none when there are none. `approve` is called once, with the plan,
/// before anything is changed. With `confirm_within`, the run is undone when nobody confirms it in
/// that time.
///
/// # Errors
/// [`Kind::RolledBack`](crate::error::Kind::RolledBack) or
/// [`Kind::NotRolledBack`](crate::error::Kind::NotRolledBack) when the clean-up failed after it had
/// changed something; after any other error the node is as before.
pub fn cleanup(
    context: &Context<'_>,
    scope: &CleanupScope,
    confirm_within: Option<Duration>,
    approve: &dyn Fn(&Plan) -> Result<bool>,
) -> Result<Option<RunResult>> {
    engine::run(context, &CleanupRequest { scope, confirm_within }, approve)
}

/// A clean-up as a [`Request`] to the engine.
struct CleanupRequest<'a> {
    scope: &'a CleanupScope,
    confirm_within: Option<Duration>,
}

impl Request for CleanupRequest<'_> {
    type Proposal = Plan;
    type Approved = ();

    fn verb(&self) -> &'static str {
        RunKind::CLEANUP
    }

    fn is_watched(&self) -> bool {
        self.confirm_within.is_some()
    }

    fn reason(&self) -> String {
        "before cleanup".into()
    }

    fn propose(&self, context: &Context<'_>) -> Result<Option<Plan>> {
        let now = observe(context.tools, context.sink)?;
        let plan = self.scope.plan(context.catalogue, &now)?;
        Ok((!plan.is_empty()).then_some(plan))
    }

    fn approved(&self, _: Plan) {}

    fn plan<'a>(
        &'a self,
        context: &Context<'_>,
        (): (),
        baseline: Baseline,
    ) -> Result<Option<Work<'a>>> {
        // A plan and a node state are each as large as the node. A captured state is scattered over
        // the heap, and such a heap gives no memory back. So the captured state is dropped, and the
        // state is read from the snapshot again.
        let Baseline { snapshot, state } = baseline;
        drop(state);
        let state = parse_snapshot(Snapshot::load(&snapshot.dir)?.files)?;
        let plan = self.scope.plan(context.catalogue, &state)?;
        if plan.is_empty() {
            return Ok(None);
        }
        let edits = edits(&plan, &state);
        let options = CleanupOptions {
            owners: self.scope.owners.clone(),
            black_holes: self.scope.black_holes,
            objects: plan.removals().count(),
            confirm_within: self.confirm_within.map(|time| time.as_secs()),
        };
        drop(plan);
        let base = remaining_state(state, &edits)?;
        let edits = detach(edits)?;
        // A rehearsal finds leftovers by itself. If the edits remove more than leftovers, they must
        // be given to the rehearsal.
        let rehearsed =
            if self.scope.black_holes { Rehearsed::Edits(&edits) } else { Rehearsed::CleanUp };
        rehearse(context, &snapshot, rehearsed)?;
        Ok(Some(Work {
            stages: stages(&options),
            kind: RunKind::Cleanup(options),
            snapshot: snapshot.id,
            base: None,
            planned: Some(Planned { base, edits }),
            room: 0,
            hooks: Hooks::default(),
            playbook: None,
        }))
    }
}

/// The scope of a clean-up with these options.
pub(super) fn scope(options: &CleanupOptions) -> CleanupScope {
    CleanupScope { owners: options.owners.clone(), black_holes: options.black_holes }
}

/// The stages of a clean-up, from the first one that changes the node.
pub(super) fn stages(options: &CleanupOptions) -> Vec<Box<dyn Stage>> {
    let clean = RemoveLeftovers { scope: scope(options), drain: None };
    let mut stages: Vec<Box<dyn Stage>> = vec![Box::new(clean)];
    if let Some(seconds) = options.confirm_within {
        stages.push(Box::new(Confirm { within: Duration::from_secs(seconds) }));
    }
    stages
}
