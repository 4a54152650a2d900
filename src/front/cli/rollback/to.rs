//! `rollback --to S`.

use serde_json::json;

use crate::error::Result;
use crate::front::cli::command::Command;
use crate::front::cli::command::as_root;
use crate::run::rollback::to::{RollbackPlan, RollbackReport, rollback_to};
use crate::ui::table::{columns, counted};

/// How much of what others changed is shown.
const SHOWN: usize = 5;

pub(super) fn run(command: &Command<'_>, name: &str) -> Result<u8> {
    command.can_ask("rollback --to", "see with `proxyshift status` which runs it would undo")?;
    as_root()?;
    let dir = command.snapshot_dir(name)?;
    let back =
        command.with_context(|context| rollback_to(context, &dir, &|way| approve(command, way)))?;
    command.answer(&document(&back), &text(&back));
    Ok(0)
}

/// What is undone; the operator's yes.
fn approve(command: &Command<'_>, way: &RollbackPlan) -> Result<bool> {
    if command.args.yes {
        return Ok(true);
    }
    let RollbackPlan { snapshot, runs } = way;
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

fn document(back: &RollbackReport) -> serde_json::Value {
    let sum = |of: fn(&crate::run::rollback::UndoReport) -> usize| back.undone.iter().map(of).sum();
    let (restored, taken_out): (usize, usize) = (sum(|r| r.restored), sum(|r| r.taken_out));
    json!({
        "schema": "proxyshift.rollback", "version": 1, "snapshot": back.snapshot,
        "run": back.undone.first().map(|r| &r.run), "runs": back.undone,
        "restored": restored, "taken_out": taken_out,
        "already_back": back.undone.iter().flat_map(|r| &r.already_back).collect::<Vec<_>>(),
        "others": back.others,
    })
}

fn text(back: &RollbackReport) -> String {
    let mut text = match back.undone.len() {
        0 => format!("Nothing to undo: no run has changed anything since {}.", back.snapshot),
        n => {
            let runs = back.undone.iter().map(super::text).collect::<Vec<_>>().join("\n");
            format!("{runs}\nBack at snapshot {}: {} undone.", back.snapshot, counted(n, "run"))
        }
    };
    if !back.others.is_empty() {
        let n = counted(back.others.len(), "difference");
        text += &format!("\n{n} from it left, by others; they stay:");
        text.extend(back.others.iter().take(SHOWN).map(|other| format!("\n  {other}")));
        if back.others.len() > SHOWN {
            text += &format!("\n  … `proxyshift snapshot diff {}` shows all", back.snapshot);
        }
    }
    text
}
