//! After an undo, and in place of one where the journal is damaged: compares the node with the
//! baseline, so that no undo is proven by the journal alone.

use crate::error::{Error, Kind, Result};
use crate::plan::foreign_rules::missing_foreign;
use crate::plan::leftovers::CleanupScope;
use crate::run::record_end::record_end;
use crate::run::{Context, boot_unit};
use crate::state::NodeState;
use crate::store::run::{CleanupOptions, Run, RunKind, RunState};

/// How many differences an error names.
const SHOWN: usize = 5;

/// What is different from the baseline after an undo.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Foreign changes, which are kept, one sentence each.
    pub(super) others: Vec<String>,
    /// What the run may have changed and the journal does not know of, one sentence each.
    pub(super) failures: Vec<String>,
}

/// Compares the node with `base`, the state before `run`, after its undo. Of a migration, only what
/// others added is named: kube-proxy has written its rules anew, and what others lost is an error of
/// the stage `verify`.
///
/// `cut_off`: the run was interrupted, so that the end of its journal may be lost without a trace.
/// Then an object that the run was to remove, and that is not there, counts as the run's change.
///
/// # Errors
/// When the node cannot be observed, or the catalogue cannot be read.
pub(super) fn compare(
    context: &Context<'_>,
    run: &Run,
    base: &NodeState,
    cut_off: bool,
) -> Result<Compared> {
    let mut compared = Compared::default();
    if run.migration().is_some() {
        let now = context.observe_with_owners_of(base)?;
        let added = missing_foreign(context.catalogue, &now, base);
        compared.others = added.iter().map(|object| format!("new: {object}")).collect();
        name_others(context, &compared.others);
        return Ok(compared);
    }
    let now = context.observe_objects()?;
    if let (RunKind::Cleanup(options), true) = (&run.kind, cut_off) {
        let CleanupOptions { owners, black_holes, .. } = options;
        let scope = CleanupScope { owners: owners.clone(), black_holes: *black_holes };
        let plan = scope.plan(context.catalogue, base)?;
        let missing = plan.removals().filter(|object| !object.id.present_in(&now));
        compared.failures.extend(missing.map(|object| {
            format!("{}: is not there, and the journal says nothing of it", object.id)
        }));
        if compared.failures.len() > SHOWN {
            let more = compared.failures.split_off(SHOWN).len();
            compared.failures.push(format!("and {more} more"));
        }
    }
    if compared.failures.is_empty() {
        compared.others = differences(base, &now);
        name_others(context, &compared.others);
    }
    Ok(compared)
}

/// Notes the first of the foreign changes, and how many more there are.
fn name_others(context: &Context<'_>, others: &[String]) {
    for other in others.iter().take(SHOWN) {
        context.sink.note(format!("changed by someone else meanwhile, kept: {other}"));
    }
    if let Some(more) = others.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        context.sink.note(format!("and {more} more changes of others, all kept"));
    }
}

/// How the netfilter objects differ, one sentence each. Links and routes come and go with pods.
fn differences(base: &NodeState, now: &NodeState) -> Vec<String> {
    let mut differences = base.differences(now);
    differences.retain(|one| !["link", "route", "rule"].contains(&one.part.as_str()));
    differences.iter().map(ToString::to_string).collect()
}

/// Closes a run that cannot be undone because its journal is damaged, as `cause` says. Nothing is
/// changed, because what the journal lacks is not known. The error says what is different from
/// `base`, the state before the run, if that could be read.
pub(super) fn journal_is_damaged(
    context: &Context<'_>,
    run: &mut Run,
    base: Option<&NodeState>,
    cause: &Error,
) -> Error {
    let known = match base.map(|base| Ok(differences(base, &context.observe_objects()?))) {
        Some(Ok(differences)) => differs(&differences),
        Some(Err(e)) => unknown(&e),
        None => "its rules were made anew since".to_owned(),
    };
    record_end(context, run, RunState::UndonePartly);
    boot_unit::remove(context, run);
    let cause = format!("its journal cannot be trusted ({cause}), so nothing was undone; {known}");
    Error::new(Kind::NotRolledBack, format!("run {}", run.id), cause).hint(format!(
        "`proxyshift snapshot diff {}` shows all that is different; restore by hand with the \
         snapshot's restore.sh",
        run.snapshot
    ))
}

fn differs(differences: &[String]) -> String {
    let shown = differences.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    match differences.len() {
        0 => "the node is as in the snapshot".into(),
        n if n > SHOWN => format!("different from the snapshot: {shown} and {} more", n - SHOWN),
        _ => format!("different from the snapshot: {shown}"),
    }
}

fn unknown(e: &Error) -> String {
    format!("what is different from the snapshot is not known ({e})")
}
