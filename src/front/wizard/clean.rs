//! The questions of a clean-up, one for each step.

use std::time::Duration;

use crate::error::Result;
use crate::front::cli::cleanup as verb;
pub(in crate::front) use crate::front::cli::command::Invocation;
use crate::front::cli::confirm_prompt;
use crate::front::cli::plan;
use crate::front::wizard::Answers;
use crate::front::wizard::print_summary;
use crate::plan::Plan;
use crate::plan::leftovers::CleanupScope;
use crate::run::cleanup;
use crate::ui::table::counted;

/// How long a clean-up waits to be confirmed.
const WITHIN: Duration = Duration::from_secs(300);

pub(super) fn run(command: &Invocation<'_>, answers: &Answers) -> Result<u8> {
    command.ui.heading("A way back by itself?");
    let confirmed = command.ui.confirm(
        "Undo it unless you keep it?",
        "afterwards you have 5 minutes to keep it, else it is undone",
        "it stays, until you roll it back",
        true,
    )?;
    let within = confirmed.then_some(WITHIN);
    let all = CleanupScope::default();
    let report = command.with_context(|context| {
        cleanup::cleanup(context, &all, within, &|plan| approve(command, plan))
    })?;
    verb::answer(command, report.as_ref());
    let code = match report.filter(|_| confirmed) {
        Some(report) => confirm_prompt::run(command, &report.run.id)?,
        None => 0,
    };
    let same = if confirmed { "cleanup --confirm-within 5m --yes" } else { "cleanup --yes" };
    print_summary(command, &answers.same(same));
    Ok(code)
}

/// Shows how many objects of each owner would be removed, and on request all these objects. Then
/// asks for a yes.
fn approve(command: &Invocation<'_>, plan: &Plan) -> Result<bool> {
    let ui = command.ui;
    let count = counted(plan.removals().count(), "object");
    ui.heading(&format!("What goes: {count}"));
    ui.say(plan::by_owner(plan));
    if ui.yes_or_no("Show all of them?", false)? {
        ui.say(plan::text(plan, command.args.verbose));
    }
    let yes = "a snapshot is taken and proven, the removal rehearsed, then they go";
    ui.confirm(&format!("Remove {count}?"), yes, "nothing is changed", false)
}
