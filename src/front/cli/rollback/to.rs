//! `rollback --to S`: undoes every run since the snapshot S.

use serde_json::json;

use crate::error::Result;
use crate::front::cli::command::Invocation;
use crate::front::cli::command::as_root;
use crate::run::rollback::to::{RollbackPlan, RollbackReport, rollback_to};
use crate::ui::page::Page;
use crate::ui::table::counted;

/// How many foreign changes are named.
const SHOWN: usize = 5;

pub(super) fn run(command: &Invocation<'_>, name: &str) -> Result<u8> {
    command.can_ask("rollback --to", "see with `proxyshift status` which runs it would undo")?;
    as_root()?;
    let dir = command.snapshot(name)?.dir;
    let report = command
        .with_context(|context| rollback_to(context, &dir, &|plan| approve(command, plan)))?;
    command.answer(&document(&report), text(&report));
    Ok(0)
}

/// Shows the runs that would be undone, and asks for a yes.
fn approve(command: &Invocation<'_>, plan: &RollbackPlan) -> Result<bool> {
    if command.args.yes {
        return Ok(true);
    }
    let RollbackPlan { snapshot, runs } = plan;
    let row = |run: &crate::store::run::Run| {
        vec![format!("  {}", run.id), run.verb().to_owned(), run.started.clone()]
    };
    let mut shown = Page::from(format!(
        "Back to snapshot {} of {} ({}). These runs are undone, the last first:",
        snapshot.id, snapshot.time, snapshot.why,
    ));
    shown.columns(&runs.iter().map(row).collect::<Vec<_>>());
    shown.line("What others have changed since stays.");
    command.ui.say(shown);
    command.ui.confirm(
        "Undo them?",
        "each is verified before the next",
        "nothing is changed",
        false,
    )
}

fn document(report: &RollbackReport) -> serde_json::Value {
    let sum =
        |of: fn(&crate::run::rollback::UndoReport) -> usize| report.undone.iter().map(of).sum();
    let (restored, taken_out): (usize, usize) = (sum(|r| r.restored), sum(|r| r.taken_out));
    json!({
        "schema": "proxyshift.rollback", "version": 1, "snapshot": report.snapshot,
        "run": report.undone.first().map(|r| &r.run), "runs": report.undone,
        "restored": restored, "taken_out": taken_out,
        "already_back": report.undone.iter().flat_map(|r| &r.already_back).collect::<Vec<_>>(),
        "others": report.others,
    })
}

fn text(report: &RollbackReport) -> Page {
    let mut text = Page::new();
    report.undone.iter().for_each(|run| text.page(&super::text(run)));
    let snapshot = &report.snapshot;
    text.line(match report.undone.len() {
        0 => format!("Nothing to undo: no run has changed anything since {snapshot}."),
        n => format!("Back at snapshot {snapshot}: {} undone.", counted(n, "run")),
    });
    if !report.others.is_empty() {
        let n = counted(report.others.len(), "difference");
        text.line(format!("{n} from it left, by others; they stay:"));
        text.lines(report.others.iter().take(SHOWN).map(|difference| format!("  {difference}")));
        if report.others.len() > SHOWN {
            text.line(format!("  … `proxyshift snapshot diff {snapshot}` shows all"));
        }
    }
    text
}
