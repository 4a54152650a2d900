//! Runs one task: opens the store, acts or predicts, and adds the diff and the facts.

use crate::error::{Kind, Result};
use crate::event::Silent;
use crate::front::ansible::answer::{EventCollector, ModuleResult};
use crate::front::ansible::check_mode::check_mode;
use crate::front::ansible::diff::Diff;
use crate::front::ansible::options::{State, Task};
use crate::front::ansible::states::{act, facts, mode_of};
pub(in crate::front) use crate::front::cli::command::as_root;
use crate::node::observe::observe;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::run::Context;
use crate::run::event_log::EventLogger;
use crate::store::Store;

/// Brings the node into the state asked for, or says what that would change.
pub(super) fn run_task(task: &Task, heard: &EventCollector) -> ModuleResult {
    let (tools, lock_wait) = (Tools::find(), task.lock_wait);
    let answer = Catalogue::builtin().and_then(|catalogue| {
        let (store, catalogue) = (store(task)?, &catalogue);
        let recorder = EventLogger::new(&store, heard);
        let context =
            Context { tools: &tools, store: &store, catalogue, sink: &recorder, lock_wait };
        let answer = in_context(&context, task);
        if let Some(error) = &answer.error {
            recorder.failed(error);
        }
        Ok(answer)
    });
    answer.unwrap_or_else(ModuleResult::failed)
}

/// The store; looking makes none.
fn store(task: &Task) -> Result<Store> {
    let dir = task.store.as_deref();
    if task.check || matches!(task.state, State::Checked { .. }) {
        return Ok(Store::read_only(dir));
    }
    as_root()?;
    Store::open(dir)
}

fn in_context(context: &Context<'_>, task: &Task) -> ModuleResult {
    let acts = !task.check && !matches!(task.state, State::Checked { .. });
    let seen = || observe(context.tools, &Silent).ok();
    let before = if task.diff && acts { seen() } else { None };
    let result = if task.check { check_mode(context, task) } else { act(context, task) };
    let mut answer = result.unwrap_or_else(|error| ModuleResult {
        changed: error.kind == Kind::NotRolledBack,
        ..ModuleResult::failed(error)
    });
    let now = seen();
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
