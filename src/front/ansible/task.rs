//! Runs one task: opens the store, performs or previews the task, and adds the diff and the facts.

use crate::error::{Kind, Result};
use crate::event::Silent;
use crate::front::ansible::answer::{EventCollector, ModuleResult};
use crate::front::ansible::check_mode::check_mode;
use crate::front::ansible::diff::Diff;
use crate::front::ansible::options::{ModuleTask, State};
use crate::front::ansible::states::{facts, mode_of, perform};
pub(in crate::front) use crate::front::cli::command::as_root;
use crate::node::observe::observe;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::run::Context;
use crate::run::event_log::EventLogger;
use crate::store::Store;

/// Brings the node into the requested state, or previews that in check mode.
pub(super) fn run_task(task: &ModuleTask, events: &EventCollector) -> ModuleResult {
    let (tools, lock_wait) = (Tools::find(), task.lock_wait);
    let answer = Catalogue::builtin().and_then(|catalogue| {
        let (store, catalogue) = (store(task)?, &catalogue);
        let recorder = EventLogger::new(&store, events);
        let context =
            Context { tools: &tools, store: &store, catalogue, sink: &recorder, lock_wait };
        for stray in store.strays()? {
            context.sink.warning(stray.warning());
        }
        let answer = in_context(&context, task);
        if let Some(error) = &answer.error {
            recorder.failed(error);
        }
        Ok(answer)
    });
    answer.unwrap_or_else(ModuleResult::failed)
}

/// Opens the store. In check mode, a store that does not exist is not created.
fn store(task: &ModuleTask) -> Result<Store> {
    let dir = task.store.as_deref();
    if task.check || matches!(task.state, State::Checked { .. }) {
        return Store::read_only(dir);
    }
    as_root()?;
    Store::open(dir)
}

fn in_context(context: &Context<'_>, task: &ModuleTask) -> ModuleResult {
    let performs = !task.check && !matches!(task.state, State::Checked { .. });
    let observed = || observe(context.tools, &Silent).ok();
    let before = if task.diff && performs { observed() } else { None };
    let result = if task.check { check_mode(context, task) } else { perform(context, task) };
    let mut answer = result.unwrap_or_else(|error| ModuleResult {
        changed: error.kind == Kind::NotRolledBack,
        ..ModuleResult::failed(error)
    });
    let now = observed();
    if let (Some(before), Some(now)) = (&before, &now) {
        let diff = Diff::between(before, now);
        answer.diff = Some(match (mode_of(context, before), mode_of(context, now)) {
            (Some(from), Some(to)) => diff.modes(from, to),
            _ => diff,
        });
    }
    answer.diff = answer.diff.filter(|_| task.diff);
    answer.facts = facts(context, now.as_ref());
    ModuleResult { verbose: task.verbose, ..answer }
}
