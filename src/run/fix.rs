//! The request of `check --fix`: apply the remedies of checks.

use std::collections::BTreeMap;

use crate::error::{Error, Kind, Result};
use crate::node::observe::observe;
use crate::plan::playbook::Hooks;
use crate::run::Context;
use crate::run::engine::{self, Request, RunResult, Work};
use crate::run::execution::Planned;
use crate::run::stage::apply::ApplyRemedies;
use crate::run::stage::rehearse::{Rehearsed, rehearse};
use crate::run::stored::Baseline;
use crate::state::NodeState;
use crate::store::run::RunKind;

pub use crate::run::stage::apply::Remedy;

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
    // `propose` asks for each remedy, so there is nothing left to approve.
    engine::run(context, &FixRequest { judge, approve }, &|_| Ok(true))
}

/// A fix as a [`Request`] to the engine.
struct FixRequest<'a> {
    judge: &'a dyn Fn(&NodeState) -> Result<Vec<Remedy>>,
    approve: &'a dyn Fn(&Remedy) -> Result<bool>,
}

impl Request for FixRequest<'_> {
    type Proposal = Vec<Remedy>;
    type Approved = Vec<Remedy>;

    fn verb(&self) -> &'static str {
        RunKind::FIX
    }

    fn is_watched(&self) -> bool {
        false
    }

    fn reason(&self) -> String {
        "before check --fix".into()
    }

    fn propose(&self, context: &Context<'_>) -> Result<Option<Vec<Remedy>>> {
        let mut approved = Vec::new();
        for remedy in (self.judge)(&observe(context.tools, context.sink)?)? {
            if (self.approve)(&remedy)? {
                approved.push(remedy);
            }
        }
        Ok((!approved.is_empty()).then_some(approved))
    }

    fn approved(&self, remedies: Vec<Remedy>) -> Vec<Remedy> {
        remedies
    }

    fn plan<'a>(
        &'a self,
        context: &Context<'_>,
        approved: Vec<Remedy>,
        baseline: Baseline,
    ) -> Result<Option<Work<'a>>> {
        let Baseline { snapshot, state: base } = baseline;
        let checks = approved.iter().map(|r| r.id.to_owned()).collect();
        let sysctls = BTreeMap::new();
        let mut stage = ApplyRemedies { judge: self.judge, approved, sysctls };
        let needed = stage.needed(&base)?;
        if needed.is_empty() {
            context.sink.note("someone else mended it meanwhile");
            return Ok(None);
        }
        stage.sysctls = needed.sysctls;
        let edits = needed.edits;
        if !edits.is_empty() {
            rehearse(context, &snapshot, Rehearsed::Edits(&edits))?;
        }
        Ok(Some(Work {
            kind: RunKind::Fix { checks },
            snapshot: snapshot.id,
            stages: vec![Box::new(stage)],
            base: None,
            planned: Some(Planned { base, edits }),
            room: 0,
            hooks: Hooks::default(),
            playbook: None,
        }))
    }
}

/// The error of a resumed fix. An interrupted fix can only be undone; the next check finds what is
/// still to be fixed.
pub(super) fn not_resumed(id: &str) -> Error {
    Error::new(Kind::Pending, format!("run {id}"), "was applying remedies of checks")
        .hint("`proxyshift rollback` undoes it; then run `proxyshift check --fix` again")
}
