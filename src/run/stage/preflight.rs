//! The stage `preflight`: the checks that stop a run before anything is changed.

use crate::checks::{self, Facts, Finding, Verdict};
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::node::live_facts;
use crate::owners::matcher::Ownership;
use crate::plan::playbook::Preflight;
use crate::run::Context;
use crate::run::execution::Execution;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::{Stage, Undo};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::state::stage::{RunStage, StageName};

/// The stage changes nothing, so nothing undoes it.
pub(super) const UNDO: Option<Undo> = None;

/// The stage `preflight` with the options of the playbook.
pub(super) fn stage(options: Preflight) -> Box<dyn Stage> {
    Box::new(options)
}

impl Stage for Preflight {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Preflight)
    }

    fn preview(&self, previewer: &Previewer<'_>) -> Previewed {
        Previewed::line(format!(
            "asks {} checks that stop the run and {} that warn; `proxyshift check --to {}` asks \
             them now",
            self.block.len(),
            self.warn.len(),
            previewer.to()
        ))
    }

    fn run(&self, _: &mut Execution<'_>) -> Result<()> {
        // Nothing to do: the checks ran before the run had a journal.
        Ok(())
    }
}

/// Runs the checks that the playbook lists. Findings of its `block` list stop the run, unless they
/// are ignored; the others are returned.
///
/// # Errors
/// [`Kind::Blocked`], naming the checks.
pub(in crate::run) fn preflight(
    context: &Context<'_>,
    lists: &Preflight,
    now: &NodeState,
    to: Mode,
    ignore: &[String],
) -> Result<Vec<Finding>> {
    let task = Task::Check;
    context.sink.started(&task);
    let live = live_facts::probe(now, Some(context.store.dir()));
    let ownership = Ownership::of(context.catalogue, now);
    let facts =
        Facts { live: Some(&live), ..Facts::of(now, context.catalogue, &ownership, Some(to)) };
    let listed = |list: &[String], id: &str| list.iter().any(|i| i == id);
    let wanted =
        |id: &str| (listed(&lists.block, id) || listed(&lists.warn, id)) && !listed(ignore, id);
    let findings = checks::run(&facts, &wanted);
    context.sink.finished(&task, Outcome::Checked { checks: findings.len() });
    let (found, rest): (Vec<_>, Vec<_>) =
        findings.into_iter().partition(|f| matches!(f.verdict, Verdict::Found(_)));
    for finding in rest.iter().filter(|f| matches!(f.verdict, Verdict::Unknown(_))) {
        if let Verdict::Unknown(missing) = &finding.verdict {
            context.sink.note(format!("{}: not known: {missing}", finding.id));
        }
    }
    let (blocking, warnings): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|f| listed(&lists.block, f.id));
    match blocking.first() {
        None => Ok(warnings),
        Some(first) => {
            let ids: Vec<&str> = blocking.iter().map(|f| f.id).collect();
            let evidence = match &first.verdict {
                Verdict::Found(found) => found.evidence.join("; "),
                _ => String::new(),
            };
            Err(Error::new(Kind::Blocked, ids.join(", "), evidence).hint(format!(
                "`proxyshift check --to {} --only {}` says what to do; `--ignore ID` goes on all \
                 the same",
                to,
                ids.join(",")
            )))
        }
    }
}
