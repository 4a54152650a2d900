//! `rollback --to S`: undoes every run since the snapshot S.

use serde_json::json;

use crate::error::Result;
use crate::front::cli::command::Invocation;
use crate::front::cli::command::as_root;
use crate::run::rollback::to::{RollbackPlan, RollbackReport, rollback_to};
use crate::ui::table::{columns, counted};

/// How many foreign changes are named.
const SHOWN: usize = 5;

pub(super) fn run(command: &Invocation<'_>, name: &str) -> Result<u8> {
    command.can_ask("rollback --to", "see with `proxyshift status` which runs it would undo")?;
    as_root()?;
    let dir = command.snapshot_dir(name)?;
    let report = command
        .with_context(|context| rollback_to(context, &dir, &|plan| approve(command, plan)))?;
    command.answer(&document(&report), &text(&report));
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
    eprintln!(
        "Back to snapshot {} of {} ({}). These runs are undone, the last first:\n{}\
         What others have changed since stays.",
        snapshot.id,
        snapshot.time,
        snapshot.why,
        columns(&runs.iter().map(row).collect::<Vec<_>>()),
    );
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

fn text(report: &RollbackReport) -> String {
    let mut text = match report.undone.len() {
        0 => format!("Nothing to undo: no run has changed anything since {}.", report.snapshot),
        n => {
            let runs = report.undone.iter().map(super::text).collect::<Vec<_>>().join("\n");
            format!("{runs}\nBack at snapshot {}: {} undone.", report.snapshot, counted(n, "run"))
        }
    };
    if !report.others.is_empty() {
        let n = counted(report.others.len(), "difference");
        text += &format!("\n{n} from it left, by others; they stay:");
        text.extend(report.others.iter().take(SHOWN).map(|difference| format!("\n  {difference}")));
        if report.others.len() > SHOWN {
            text += &format!("\n  … `proxyshift snapshot diff {}` shows all", report.snapshot);
        }
    }
    text
}
