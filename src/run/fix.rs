//! The request of `check --fix`: apply the remedies of checks.

use crate::error::{Error, Kind, Result};
use crate::node::observe::observe;
use crate::plan::change::Edit;
use crate::plan::playbook::Hooks;
use crate::run::Context;
use crate::run::engine::{self, Request, RunResult, Work};
use crate::run::execution::Planned;
use crate::run::stage::apply::ApplyRemedies;
use crate::run::stage::rehearse::{Rehearsed, rehearse};
use crate::run::stored::Baseline;
use crate::state::NodeState;
use crate::store::run::RunKind;

/// The edits that end one finding of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// The id of the check, such as `docker.masquerade`.
    pub id: &'static str,
    /// The edits, in the order in which they are applied.
    pub edits: Vec<Edit>,
}

/// Applies those remedies of `judge` that `approve` accepts. Returns none when there is nothing to
/// apply. `approve` is called for each remedy, before anything is changed.
///
/// # Errors
/// [`Kind::RolledBack`] or [`Kind::NotRolledBack`] when the run failed after it had changed
/// something; after any other error the node is as before.
pub fn fix(
    context: &Context<'_>,
    judge: &dyn Fn(&NodeState) -> Result<Vec<Remedy>>,
    approve: &dyn Fn(&Remedy) -> Result<bool>,
) -> Result<Option<RunResult>> {
    let approved = std::cell::OnceCell::new();
    let plan_again = |now: &NodeState| {
        let approved: &[Remedy] = approved.get().map_or(&[], |all: &Vec<Remedy>| all);
        Ok(still_approved(approved, judge(now)?))
    };
    let request = FixRequest { judge, approve, approved: &approved, plan_again: &plan_again };
    engine::run(context, &request, &|_| Ok(true))
}

/// A fix as a [`Request`] to the engine.
struct FixRequest<'a> {
    judge: &'a dyn Fn(&NodeState) -> Result<Vec<Remedy>>,
    approve: &'a dyn Fn(&Remedy) -> Result<bool>,
    /// The remedies that the operator approved; empty until the operator was asked.
    approved: &'a std::cell::OnceCell<Vec<Remedy>>,
    plan_again: &'a dyn Fn(&NodeState) -> Result<Vec<Edit>>,
}

impl Request for FixRequest<'_> {
    type Proposal = ();
    type Approved = ();

    fn verb(&self) -> &'static str {
        RunKind::FIX
    }

    fn reason(&self) -> String {
        "before check --fix".into()
    }

    fn propose(&self, context: &Context<'_>) -> Result<Option<()>> {
        let mut approved = Vec::new();
        for remedy in (self.judge)(&observe(context.tools, context.sink)?)? {
            if (self.approve)(&remedy)? {
                approved.push(remedy);
            }
        }
        let any = !approved.is_empty();
        let _ = self.approved.set(approved);
        Ok(any.then_some(()))
    }

    fn approved(&self, (): ()) {}

    fn plan<'a>(
        &'a self,
        context: &Context<'_>,
        (): (),
        baseline: Baseline,
    ) -> Result<Option<Work<'a>>> {
        let Baseline { snapshot, state: base } = baseline;
        let edits = (self.plan_again)(&base)?;
        if edits.is_empty() {
            context.sink.note("someone else mended it meanwhile");
            return Ok(None);
        }
        rehearse(context, &snapshot, Rehearsed::Edits(&edits))?;
        let checks = self.approved.get().into_iter().flatten().map(|r| r.id.to_owned()).collect();
        Ok(Some(Work {
            kind: RunKind::Fix { checks },
            snapshot: snapshot.id,
            stages: vec![Box::new(ApplyRemedies { plan_again: self.plan_again })],
            base: None,
            planned: Some(Planned { base, edits }),
            room: 0,
            hooks: Hooks::default(),
            playbook: None,
        }))
    }
}

/// The edits of `found` that were approved, even if their rules have other indexes by now.
fn still_approved(approved: &[Remedy], found: Vec<Remedy>) -> Vec<Edit> {
    let known = |remedy: &Remedy, edit: &Edit| {
        approved
            .iter()
            .filter(|a| a.id == remedy.id)
            .flat_map(|a| &a.edits)
            .any(|e| e.lines() == edit.lines())
    };
    let mut edits = Vec::new();
    for remedy in &found {
        edits.extend(remedy.edits.iter().filter(|e| known(remedy, e)).cloned());
    }
    edits
}

/// The error of a resumed fix. An interrupted fix can only be undone; the next check finds what is
/// still to be fixed.
pub(super) fn not_resumed(id: &str) -> Error {
    Error::new(Kind::Pending, format!("run {id}"), "was applying remedies of checks")
        .hint("`proxyshift rollback` undoes it; then run `proxyshift check --fix` again")
}
